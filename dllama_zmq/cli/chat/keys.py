"""The modes of the terminal that a chat is typed at. Knows no prompt."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def kept_modes() -> Iterator[None]:
    """At its end the terminal is as it was, however the block ends: a signal may come while a prompt is drawn."""
    before = termios.tcgetattr(sys.stdin.fileno())
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal may have gone
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, before)


@contextmanager
def quiet_keys() -> Iterator[None]:
    """In this block what is typed does not stand in the answer; it is kept for the next prompt. Ctrl-C is heard."""
    with kept_modes():
        quiet = termios.tcgetattr(sys.stdin.fileno())
        quiet[3] &= ~(termios.ECHO | termios.ICANON)  # with ICANON Ctrl-D would be lost
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, quiet)
        yield
