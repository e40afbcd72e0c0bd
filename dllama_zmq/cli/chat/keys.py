"""The modes of the terminal of a chat. Knows no prompt."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def quiet_keys() -> Iterator[None]:
    """During this block, typed text is not echoed into the answer, but kept for the next prompt. Ctrl-C still works.

    The terminal is restored at the end and after an error: a signal may come while a prompt is drawn.
    """
    descriptor = sys.stdin.fileno()
    before, quiet = termios.tcgetattr(descriptor), termios.tcgetattr(descriptor)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)  # with ICANON, Ctrl-D would be lost
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
