"""How a child notices that its parent has ended: its stdin, a pipe of the parent, closes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

STAY = b"stay"
"""What a parent writes to a child that shall outlive it."""


def at_end_of_stdin(action: Callable[[], None]) -> None:
    """Call `action` in another thread when stdin ends, unless the last read from it was STAY."""

    def wait() -> None:
        last = b""
        while data := os.read(sys.stdin.fileno(), 4096):
            last = data
        if last != STAY:
            action()

    threading.Thread(target=wait, name="owner", daemon=True).start()
