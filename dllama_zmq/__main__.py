"""`python -m dllama_zmq` is `dllama-zmq`."""

from dllama_zmq.cli import main

main()
