"""A child knows when its owner is gone: the pipe that is the child's stdin closes, however the owner ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

STAY = b"stay"
"""What an owner writes to a child that shall outlive it."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def at_end_of_stdin(action: Callable[[], None]) -> None:
    """Call `action`, in a thread of its own, when stdin has ended, unless STAY is the last that was read from it."""

    def wait() -> None:
        last = b""
        while data := os.read(sys.stdin.fileno(), 4096):
            last = data
        if last != STAY:
            action()

    threading.Thread(target=wait, name="owner", daemon=True).start()


def die_with_parent() -> None:
    """From now on the kernel kills this process when its parent's thread ends: also one that is frozen then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
