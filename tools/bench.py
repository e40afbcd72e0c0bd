"""`dllama-zmq bench` from a checkout, with the same flags: how fast a model runs on this machine.

python tools/bench.py --shape tinyllama --layers 4 --nodes 1,2
"""

import sys

from dllama_zmq.cli import main

sys.argv[:1] = ["dllama-zmq", "bench"]
main()
