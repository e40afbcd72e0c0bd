"""SIGINT, SIGTERM and SIGHUP: they end what may be broken off, tell what runs, and wait everywhere else."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Within `caught`, a signal raises in `raised` blocks and calls `stop` in `then` blocks.

    Elsewhere it waits for the next such block, or for the end of `caught`. What is set up between such blocks is
    therefore always whole, and what clears it away is never broken off. For the main thread.

    What is raised is KeyboardInterrupt for SIGINT, and SystemExit with a shell's code (128 + number) for the others:
    no Exception, for what is made of the errors of a step must not be made of it.
    """

    def __init__(self) -> None:
        self._came: int | None = None  # and has ended nothing so far
        self._raise = False
        self._told = 0  # which number was told last
        self._tell: Callable[[], None] | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Until the end of the block signals go this way; an ignored one stays ignored."""
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup, or `&`
        kept = {number: signal.signal(number, self._take) for number in heard}
        kept[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._break_off)
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
        self._raise_if_asked()

    @contextmanager
    def raised(self) -> Iterator[None]:
        """In this block the first signal raises. The block should load no modules.

        Some modules that are written in C swallow what a handler raises while they are loaded: then the end of the
        block raises.
        """
        self._raise = True
        try:
            self._raise_if_asked()
            yield
        finally:
            self._raise = False
        self._raise_if_asked()

    @contextmanager
    def then(self, stop: Callable[[], None], after_s: float) -> Iterator[None]:
        """In this block a signal calls `stop`; where the block goes on for `after_s` after that, it raises.

        So does a signal that came before the block. `stop` may be called again.
        """

        told = False

        def tell() -> None:
            nonlocal told
            stop()
            if not told:  # another signal is no reason to wait longer
                signal.setitimer(signal.ITIMER_REAL, after_s)
            told = True

        self._tell = tell
        if self._came is not None:
            self._told, self._came = self._came, None
            tell()
        try:
            yield
        finally:
            self._tell = None
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._tell is not None:
            self._told = number
            self._tell()
            return
        self._came = self._came or number
        if self._raise:
            self._raise = False  # what ends the block must not be broken off by a second signal
            self._raise_if_asked()

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        if self._tell is not None:
            self._came = self._told
            self._raise_if_asked()

    def _raise_if_asked(self) -> None:
        if self._came == signal.SIGINT:
            raise KeyboardInterrupt
        if self._came is not None:
            raise SystemExit(128 + self._came)
