"""What tests find around them, made the same on every computer: signals, variables, home folder, ports."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from types import FrameType

_FIRST_PORT, _END_PORT = 10_000, 32_000
"""Below the ports that the system gives to outgoing connections."""
_UNWANTED_PREFIXES = (
    "DLLAMA_ZMQ_",
    "HF_",
    "TRANSFORMERS_",
    "XDG_",
    "NUMBA_",
    "LC_",
    "CLICOLOR",
    "RICH_",
    "HYPOTHESIS_",
    "PYTHON",
)
_UNWANTED = (
    "NO_COLOR",
    "FORCE_COLOR",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
    "COLUMNS",
    "LINES",
    "HUGGING_FACE_HUB_TOKEN",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "CASES",
)
_WANTED = ("DLLAMA_ZMQ_WRITE_PARITY", "PYTHONHASHSEED", "PYTHONHOME", "PYTHONPATH", "PYTHONPYCACHEPREFIX")
"""The first asks a test to write its golden file, the second orders sets; the others say where Python's files are."""


def set_signals() -> None:
    """Undo for child processes what a parent has ignored or blocked: SIGINT in a script's background, SIGHUP by nohup.

    This process still ignores these signals; a handler that does nothing is the default action again after exec.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _do_nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def set_environment(home: Path, kernels: Path) -> None:
    """Make `home` the user's home folder, keep compiled kernels in `kernels`, remove what changes how programs talk.

    Variables are removed by name or prefix: those of this project, of huggingface_hub, of Python, of terminals and of
    proxies. So Python keeps its bytecode, as it does for users: without it, a command takes 0.1 s longer to start, and
    a process of tests 3 s.
    """
    sys.dont_write_bytecode = False
    for name in list(os.environ):
        if name not in _WANTED and (name.upper() in _UNWANTED or name.startswith(_UNWANTED_PREFIXES)):
            del os.environ[name]
    cache = home / ".cache"
    cache.mkdir()
    kernels.mkdir(parents=True, exist_ok=True)
    (cache / "dllama-zmq").symlink_to(kernels.absolute())
    os.environ |= {
        "HOME": str(home),
        "DLLAMA_ZMQ_HOME": str(home / "clusters"),
        "HF_ENDPOINT": "http://127.0.0.1:1",  # nobody; a test that wants a hub starts one
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm",
    }
    os.umask(0o022)


def free_ports(n_ports: int) -> list[int]:
    """TCP ports that nobody listens at. No other test on this computer gets the same ones, unless 22,000 later."""
    found: list[int] = []
    with (_shared_folder() / "next-port").open("a+") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        counter.seek(0)
        port = int(counter.read() or _FIRST_PORT)
        while len(found) < n_ports:
            if _is_free(port):
                found.append(port)
            port = port + 1 if port + 1 < _END_PORT else _FIRST_PORT
        counter.truncate(0)
        counter.write(str(port))
    return found


def _shared_folder() -> Path:
    """A folder that all tests of this user on this computer share, of whatever checkout."""
    folder = Path(tempfile.gettempdir()) / f"dllama-zmq-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Take a signal that this process ignores."""
