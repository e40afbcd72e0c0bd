"""How a child notices that its parent has ended: its stdin, a pipe of the parent, closes."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

STAY = b"stay"
"""What a parent writes to a child that shall outlive it."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def at_end_of_stdin(action: Callable[[], None]) -> None:
    """Call `action` in another thread when stdin ends, unless the last read from it was STAY."""

    def wait() -> None:
        last = b""
        while data := os.read(sys.stdin.fileno(), 4096):
            last = data
        if last != STAY:
            action()

    threading.Thread(target=wait, name="owner", daemon=True).start()


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent's thread ends, even while it is frozen."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
