"""The command line: `dllama-zmq up, down, status, logs, worker, generate`.

Text goes to stdout, everything else to stderr. Errors are one sentence and an exit code: 1 failed, 2 wrong use,
130 stopped by Ctrl-C.
"""

from dllama_zmq.cli.app import main

__all__ = ["main"]
