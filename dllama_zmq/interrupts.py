"""SIGINT, SIGTERM and SIGHUP: they interrupt some blocks, call a function in others, and wait everywhere else."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Within `caught`, a signal raises in `raised` blocks and calls `stop` in `then` blocks.

    Elsewhere the signal waits for the next such block, or for the end of `caught`. So what is set up between such
    blocks is always complete, and its cleanup is never interrupted. For the main thread.

    SIGINT raises KeyboardInterrupt, the others SystemExit with a shell's code (128 + number). Neither is an Exception,
    so code that turns errors of a step into results does not catch them.
    """

    def __init__(self) -> None:
        self._came: int | None = None  # and has ended nothing so far
        self._raise = False
        self._passed_on = 0  # the number that was passed on last
        self._tell: Callable[[], None] | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handle signals in this block; a signal that is ignored stays ignored."""
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
        """Let the first signal raise in this block, which should load no modules.

        Some C modules swallow what a handler raises while they are loaded, or make an ImportError of it; then the end
        of the block raises.
        """
        self._raise = True
        try:
            self._raise_if_asked()
            yield
        except Exception:
            self._raise_if_asked()
            raise
        finally:
            self._raise = False
        self._raise_if_asked()

    @contextmanager
    def then(self, stop: Callable[[], None], after_s: float) -> Iterator[None]:
        """Let a signal call `stop` in this block; if the block continues for `after_s` after that, the signal raises.

        A signal that came before the block counts too. `stop` may be called again.
        """

        was_called = False

        def tell() -> None:
            nonlocal was_called
            stop()
            if not was_called:  # another signal is no reason to wait longer
                signal.setitimer(signal.ITIMER_REAL, after_s)
            was_called = True

        self._tell = tell
        if self._came is not None:
            self._passed_on, self._came = self._came, None
            tell()
        try:
            yield
        finally:
            self._tell = None
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._tell is not None:
            self._passed_on = number
            self._tell()
            return
        self._came = self._came or number
        if self._raise:
            self._raise = False  # a second signal must not interrupt what ends the block
            self._raise_if_asked()

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        if self._tell is not None:
            self._came = self._passed_on
            self._raise_if_asked()

    def _raise_if_asked(self) -> None:
        if self._came == signal.SIGINT:
            raise KeyboardInterrupt
        if self._came is not None:
            raise SystemExit(128 + self._came)
