"""A child knows when its owner is gone: the pipe that is the child's stdin closes, however the owner ends."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


def at_end_of_stdin(action: Callable[[], None]) -> None:
    """Call `action`, in a thread of its own, when stdin has ended; what is read from it is thrown away."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        action()

    threading.Thread(target=wait, daemon=True).start()
