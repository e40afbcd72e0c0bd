"""How a child notices the end of its parent: its stdin, a pipe from the parent or from sshd, closes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

_BEAT_S = 5.0

STAY = b"stay"
"""A parent writes this to the stdin of a child that is to outlive it."""


def at_end_of_stdin(action: Callable[[], None]) -> None:
    """Call `action` in another thread when stdin ends, unless STAY was the last data read from it."""

    def wait() -> None:
        last = b""
        while data := os.read(sys.stdin.fileno(), 4096):
            last = data
        if last != STAY:
            action()

    threading.Thread(target=wait, name="owner", daemon=True).start()


def beat() -> None:
    """Write a byte to stdout every 5 s, in another thread, so that sshd notices a dead connection.

    sshd keeps stdin open for hours after the other computer is gone if it has nothing to send. With data to send, the
    system gives up after a quarter of an hour, and a computer that was restarted refuses at once.
    """

    def write() -> None:
        while True:
            time.sleep(_BEAT_S)
            try:
                os.write(sys.stdout.fileno(), b"\0")
            except OSError:  # stdin closes too, which ends this process
                return

    threading.Thread(target=write, name="beat", daemon=True).start()
