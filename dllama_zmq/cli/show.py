"""What people see while they wait: bars on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dllama_zmq.bus.client_messages import NodeStatus, Status

_PLAIN_EVERY_S = 2.0


def note(text: str) -> None:
    """A line for the reader, apart from the answer."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def human_bytes(n_bytes: int) -> str:
    """Bytes as people read them: 1 kB is 1024 bytes, as everywhere in this project."""
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} B"


def bytes_bar(console: Console, transient: bool = False) -> Progress:
    """A bar of bytes for each task, on a terminal; elsewhere nothing. `transient`: it is gone when it ends."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=transient,
    )


class UpProgress:
    """The workers' way to readiness."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._live = console.is_terminal
        self._bars = bytes_bar(console)
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}
        self._next_word = time.monotonic() + _PLAIN_EVERY_S

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, status: Status) -> None:
        """Show how far each worker is now."""
        for node in status.nodes[1:]:
            if self._live:
                self._show_bar(node)
            else:
                self._say(node)

    def _show_bar(self, node: NodeStatus) -> None:
        if node.name not in self._tasks:
            self._tasks[node.name] = self._bars.add_task(node.name, total=None)
        self._bars.update(
            self._tasks[node.name],
            description=f"{node.name}: {_words(node)}",
            total=node.total_bytes or None,
            completed=node.sent_bytes,
        )

    def _say(self, node: NodeStatus) -> None:
        words = _words(node)
        if words == self._said.get(node.name) and time.monotonic() < self._next_word:
            return
        if words == self._said.get(node.name):
            self._next_word = time.monotonic() + _PLAIN_EVERY_S
        self._said[node.name] = words
        sent = f", {human_bytes(node.sent_bytes)} of {human_bytes(node.total_bytes)}" if node.total_bytes else ""
        note(f"{node.name}: {words}{sent}")


class CopyProgress:
    """How far a file is that is being written: a bar on a terminal, a line every two seconds elsewhere."""

    def __init__(self, name: str) -> None:
        console = Console(stderr=True)
        self._name, self._live = name, console.is_terminal
        self._bar = bytes_bar(console)
        self._task = self._bar.add_task(name, total=None)
        self._next_word = time.monotonic() + _PLAIN_EVERY_S

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """`done` of `total` bytes are there."""
        if self._live:
            self._bar.update(self._task, total=total, completed=done)
        elif time.monotonic() >= self._next_word:
            self._next_word = time.monotonic() + _PLAIN_EVERY_S
            note(f"{self._name}: {human_bytes(done)} of {human_bytes(total)}")


def _words(node: NodeStatus) -> str:
    return {
        "absent": node.reason,
        "loading": "receiving weights" if node.sent_bytes < node.total_bytes else "getting ready",
        "loaded": "loaded",
        "ready": "ready",
    }[node.state]
