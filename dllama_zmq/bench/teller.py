"""Says what is going on, and that it still is: nothing is silent for more than two seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

_EVERY_S = 1.5


class Tells(Protocol):
    """Whom to tell what goes on."""

    def line(self, text: str) -> None:
        """Say this at once."""
        ...

    def now(self, text: str) -> None:
        """What goes on from here; said only where it lasts."""
        ...


class Teller:
    """Passes lines to `say`; in its `with` block a thread says again what `now` was told, where that lasts."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._text = "starting"
        self._since = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="teller", daemon=True)

    def line(self, text: str) -> None:
        """Say this at once."""
        self._say(text)

    def now(self, text: str) -> None:
        """What goes on from here; said only where it lasts."""
        self._text, self._since = text, time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _repeat(self) -> None:
        while not self._ended.wait(_EVERY_S):
            seconds = time.monotonic() - self._since
            self._say(f"{self._text} ({seconds:.0f} s)" if seconds > _EVERY_S else self._text)
