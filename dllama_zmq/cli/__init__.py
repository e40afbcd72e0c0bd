"""The command line: `dllama-zmq up, down, status, logs, worker, generate, bench`.

Text goes to stdout, everything else to stderr. Errors are one sentence and an exit code: 1 failed, 2 wrong use,
130 stopped by Ctrl-C.
"""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from dllama_zmq.cli.app import main as run  # in here, for Ctrl-C may come while modules are loaded

        run()
    except KeyboardInterrupt:
        sys.exit(130)
