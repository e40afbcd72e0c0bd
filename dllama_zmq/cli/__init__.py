"""The command line, `dllama-zmq COMMAND`.

Text goes to stdout, everything else to stderr. Errors are one sentence and an exit code: 1 failed, 2 wrong use,
130 stopped by Ctrl-C.
"""

import gc
import os
import signal
import sys


class Terminated(SystemExit):
    """SIGTERM or SIGHUP: cleanup runs, then the process ends with that signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def main() -> None:
    """Run the command line and exit with its code."""
    gc.disable()  # until the command is loaded
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # under nohup it is ignored
                signal.signal(number, _terminate)
        _open_standard_streams()
        _mend_home()
        # imported here, because Ctrl-C may come while modules are loaded
        from dllama_zmq.threads import ONE_BLAS_THREAD

        # `up` takes 0.25 s of CPU so, and 0.39 with two threads of BLAS (Zen 4); what the user has set stays
        for name, value in ONE_BLAS_THREAD.items():
            os.environ.setdefault(name, value)
        from dllama_zmq.cli.app import main as run

        run()
    except Terminated as ending:
        signal.signal(ending.number, signal.SIG_DFL)
        os.kill(os.getpid(), ending.number)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()  # the process ends, so the garbage collector need not search what is left


def _terminate(number: int, frame: object) -> None:
    raise Terminated(number)


def _mend_home() -> None:
    """Replace an empty or relative HOME, which would put folders into / or the current folder."""
    if not os.path.isabs(os.environ.get("HOME", "/")):
        import pwd

        try:
            os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:  # the user has no entry, so no home
            del os.environ["HOME"]


def _open_standard_streams() -> None:
    """Open streams that the caller closed (`>&-`) on /dev/null; else the next file would take their place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest free one
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - open until the process ends
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
