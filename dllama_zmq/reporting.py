"""Progress of long work, and words for amounts. Knows no terminal and no log; `cli/progress.py` shows it."""

from __future__ import annotations

from typing import Literal, Protocol

from rich.filesize import decimal as human_bytes  # 1 kB is 1000 bytes, as for files, disks and networks

__all__ = ["Reporter", "SilentReporter", "Unit", "human_bytes", "plural"]

Unit = Literal["B", "tokens", "%"]


class Reporter(Protocol):
    """A listener for progress. Any thread may call it, at any rate: the listener decides what is shown."""

    def line(self, text: str) -> None:
        """Show `text` at once and keep it."""
        ...

    def activity(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B") -> None:
        """Report that the activity `text` has done `done` of `total`; 0: the total is not known.

        Another `text` begins a new activity; "" ends the last one. It is shown only if it takes long.
        """
        ...


class SilentReporter:
    """Drops everything."""

    def line(self, text: str) -> None:
        """Drop `text`."""

    def activity(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B") -> None:
        """Drop it."""


def plural(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`, `1,000 nodes`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
