"""What people see while they wait: bars on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
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

_PLAIN_EVERY_S = 1.5  # with what an answer of the root takes, nobody is left without a word for 2 s
_MOST_NAMED = 3


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
    """The workers' way to readiness: a bar for each on a terminal; elsewhere a line for each that is ready or was lost,
    and where that takes long, lines on those that are on their way."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        console = Console(stderr=True)
        self._live = console.is_terminal
        self._bars = bytes_bar(console)
        self._tasks: dict[str, TaskID] = {}
        self._states: dict[str, str] = {}
        self._clock = clock
        self._next_word = clock() + _PLAIN_EVERY_S

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
        self._next_word = self._clock() + _PLAIN_EVERY_S

    def show(self, status: Status) -> None:
        """Show how far each worker is now."""
        workers = status.nodes[1:]
        if self._live:
            for node in workers:
                self._show_bar(node)
        else:
            self._show_lines(workers)

    def _show_bar(self, node: NodeStatus) -> None:
        if node.name not in self._tasks:
            self._tasks[node.name] = self._bars.add_task(node.name, total=None)
        self._bars.update(
            self._tasks[node.name],
            description=f"{node.name}: {_words(node, amount=False)}",
            total=node.total_bytes or None,
            completed=node.sent_bytes,
        )

    def _show_lines(self, workers: Sequence[NodeStatus]) -> None:
        for node in workers:
            before = self._states.get(node.name, "absent")
            self._states[node.name] = node.state
            if node.state != before and node.state == "ready":
                self.say(f"{node.name}: ready, {human_bytes(node.total_bytes)} of weights in {node.seconds:.1f} s")
            elif node.state != before and node.state == "absent":
                self.say(f"{node.name}: {_words(node)}")
        waiting = [node for node in workers if node.state != "ready"]
        if waiting and self._clock() >= self._next_word:
            more = f"; and {len(waiting) - _MOST_NAMED} more" if len(waiting) > _MOST_NAMED else ""
            self.say("; ".join(f"{node.name}: {_words(node)}" for node in waiting[:_MOST_NAMED]) + more)


class CopyProgress:
    """How far a file is that is being written: a bar on a terminal, elsewhere a line now and then."""

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


def _words(node: NodeStatus, amount: bool = True) -> str:
    if node.state == "absent":
        return node.reason
    if node.state != "loading":
        return node.state
    if node.sent_bytes == node.total_bytes:
        return "getting ready"
    how_far = f", {human_bytes(node.sent_bytes)} of {human_bytes(node.total_bytes)}" if amount else ""
    return f"receiving weights{how_far}"
