"""How a child notices that its parent has ended: its stdin, a pipe of the parent or of sshd, closes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

_BEAT_S = 5.0

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


def beat() -> None:
    """Write a byte to stdout every 5 s, in another thread: what sshd sends into a dead connection ends it.

    Where nothing is sent, sshd does not notice for hours that the other computer is gone, and keeps stdin open. The
    system gives up after a quarter of an hour; a computer that was started again refuses at once.
    """

    def write() -> None:
        while True:
            time.sleep(_BEAT_S)
            try:
                os.write(sys.stdout.fileno(), b"\0")
            except OSError:  # stdin closes too
                return

    threading.Thread(target=write, name="beat", daemon=True).start()
