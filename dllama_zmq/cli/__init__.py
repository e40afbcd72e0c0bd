"""The command line, `dllama-zmq COMMAND`.

Text goes to stdout, everything else to stderr. Errors are one sentence and an exit code: 1 failed, 2 wrong use,
130 stopped by Ctrl-C.
"""

import gc
import os
import signal
import sys


class Terminated(SystemExit):
    """SIGTERM or SIGHUP: cleanup runs, then the process ends by that signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def main() -> None:
    """Run the command line and exit with its code."""
    gc.disable()  # until the command is loaded
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
                signal.signal(number, _terminate)
        _open_standard_streams()
        _mend_home()
        from dllama_zmq.cli.app import main as run  # here, since Ctrl-C may come while modules are loaded

        run()
    except Terminated as ending:
        signal.signal(ending.number, signal.SIG_DFL)
        os.kill(os.getpid(), ending.number)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()  # the process ends: what is left is not searched for garbage


def _terminate(number: int, frame: object) -> None:
    raise Terminated(number)


def _mend_home() -> None:
    """Replace a HOME that is empty or relative, which would put folders into / or the current folder."""
    if not os.path.isabs(os.environ.get("HOME", "/")):
        import pwd

        try:
            os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:  # a user without an entry has no home
            del os.environ["HOME"]


def _open_standard_streams() -> None:
    """Open streams that the caller has closed (`>&-`) on /dev/null; else the next file would take their place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest one that is free
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
