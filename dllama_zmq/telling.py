"""How a part that works for long tells how far it is. Knows neither terminals nor logs; `cli/progress.py` shows it."""

from __future__ import annotations

from typing import Literal, Protocol

from rich.filesize import decimal as human_bytes  # 1 kB is 1000 bytes, as files, disks and networks have it

__all__ = ["Tells", "Unheard", "Unit", "human_bytes"]

Unit = Literal["B", "tokens", "%"]


class Tells(Protocol):
    """Whom to tell what goes on. May be called from any thread, and often: the listener decides what is shown."""

    def line(self, text: str) -> None:
        """Say this at once; it stays."""
        ...

    def now(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B") -> None:
        """What goes on from here, shown where it lasts; `done` of `total` of it where `total` is not 0.

        The same `text` again reports how far it has come; another one begins something new, and "" is nothing.
        """
        ...


class Unheard:
    """Nobody listens."""

    def line(self, text: str) -> None:
        """Drop it."""

    def now(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B") -> None:
        """Drop it."""
