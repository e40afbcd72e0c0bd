"""SIGINT, SIGTERM and SIGHUP, made exceptions where work may be broken off, and held back everywhere else."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Within `caught`, a signal raises in `raised` blocks; elsewhere it waits for the next one, or for the end.

    What is set up between such blocks is therefore always whole, and what clears it away is never broken off.
    A block should load no modules: some that are written in C swallow what a handler raises while they are loaded.
    """

    def __init__(self) -> None:
        self._came: int | None = None
        self._raise = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Until the end of the block signals go this way; an ignored one stays ignored. For the main thread."""
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup, or `&`
        kept = {number: signal.signal(number, self._take) for number in heard}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
        self._end_if_asked()

    @contextmanager
    def raised(self) -> Iterator[None]:
        """In this block the first signal raises KeyboardInterrupt, or SystemExit with the code that a shell gives."""
        self._raise = True
        try:
            self._end_if_asked()
            yield
        finally:
            self._raise = False
        self._end_if_asked()  # should what the handler raised have been swallowed

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came = self._came or number
        if self._raise:
            self._raise = False  # what ends the block must not be broken off by a second signal
            self._end_if_asked()

    def _end_if_asked(self) -> None:
        if self._came == signal.SIGINT:
            raise KeyboardInterrupt
        if self._came is not None:
            raise SystemExit(128 + self._came)
