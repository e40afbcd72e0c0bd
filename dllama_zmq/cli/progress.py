"""Progress on stderr: a live line on a terminal; elsewhere plain lines, at growing intervals.

rich is imported only for a terminal, because scripts and nodes would wait for its import for nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.filesize import decimal, pick_unit_and_suffix

from dllama_zmq.bus.client_messages import NodeStatus, Status
from dllama_zmq.cli.notes import inert, wrapped
from dllama_zmq.reporting import Unit, human_bytes

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_SHOWN_AFTER_S = 0.4
"""Shorter activities are not shown on a terminal."""
_PLAIN_AT_S = (1.5, 5.0, 10.0, 30.0)
"""Times of plain lines after the start of an activity; then at intervals of the last one."""
_POLL_S = 0.1
_MAX_NAMED = 3
_TERMINAL_ANYWAY = ("FORCE_COLOR", "TTY_COMPATIBLE")  # rich's variables: draw as on a terminal
_BAR_COLUMNS = 8  # so that the words and figures of a prompt fit 80 columns beside it


class Display:
    """Shows the last activity until `rest` or the end of the `with` block. A `Reporter`.

    On a terminal the line is erased at the end. Elsewhere a new activity is printed within 2 s, then less often.
    """

    def __init__(self, per_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        """per_s: redraws of the terminal's line per second."""
        self._clock = clock
        self._line = _Line(clock)
        self._console, self._live = _on_terminal(self._line, per_s)
        self._due, self._last_word = 0.0, clock()
        self._lock = threading.Lock()
        self._inside = False
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    @property
    def is_live(self) -> bool:
        """Whether the display is on a terminal."""
        return self._live is not None

    def __enter__(self) -> Self:
        self._inside = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inside = False
        self.rest()

    def line(self, text: str) -> None:
        """Print `text` at once, above the activity."""
        with self._lock:
            self._last_word = self._clock()
            self._due = max(self._due, self._last_word + _PLAIN_AT_S[0])
        # rich itself breaks words; without a terminal the line is printed as it is
        self._print(text if self._console is None else wrapped(text, self._console.width))

    def activity(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B", key: str = "") -> None:
        """Show this activity, with `done` of `total` if that is known; "" is `rest`."""
        if not text:
            self.rest()
            return
        with self._lock:
            if (key or text) != self._line.key:
                self._line.begin(key or text, done)
                self._due = max(self._line.since, self._last_word + _PLAIN_AT_S[0])
            self._line.text, self._line.done, self._line.total, self._line.unit = text, done, total, unit
        if self._inside:
            self._begin()

    def rest(self) -> None:
        """Show no activity: the terminal is free for the answer, and nothing is printed."""
        with self._lock:
            self._line.text = self._line.key = ""
            self._last_word = self._clock()
        if self._live is not None:
            self._live.stop()
        elif self._thread is not None:
            self._ended.set()
            if self._thread.ident is not None:  # else Ctrl-C came before the start
                self._thread.join()
            self._thread = None

    def tick(self) -> None:
        """Without a terminal: print the activity if it is time to."""
        with self._lock:
            now, line = self._clock(), self._line
            if not line.text or now < self._due:
                return
            text = f"{line.text}: {line.figures()}" if line.total else f"{line.text} ({line.figures()})"
            next_s = next((at for at in _PLAIN_AT_S if line.since + at > now + 2.0), None)
            self._due = now + _PLAIN_AT_S[-1] if next_s is None else line.since + next_s
            self._last_word = now
        self._print(text)

    def _print(self, text: str) -> None:
        if self._console is None:
            print(text, file=sys.stderr, flush=True)  # noqa: T201
        else:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _begin(self) -> None:
        if self._live is not None:
            self._live.start()
        elif self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)
            self._thread.start()

    def _repeat(self) -> None:
        with suppress(BrokenPipeError):  # the reader of stderr has gone
            while not self._ended.wait(_POLL_S):
                self.tick()


def _on_terminal(line: _Line, per_s: float) -> tuple[Console | None, Live | None]:
    """stderr as a terminal, with `line` on it if it can be redrawn; None if stderr is no terminal."""
    if not sys.stderr.isatty() and not any(os.environ.get(name) for name in _TERMINAL_ANYWAY):
        return None, None
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        return None, None
    if console.is_dumb_terminal:
        return console, None
    live = Live(
        line,
        console=console,
        transient=True,
        refresh_per_second=per_s,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    return console, live


class _Line:
    """The activity as one line that never wraps: a spinner, words, a bar if the total is known, and figures."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spinner: RenderableType | None = None
        self.text, self.key, self.since, self._shown_from, self._first = "", "", 0.0, 0.0, 0
        self.done, self.total, self.unit = 0, 0, "B"

    def begin(self, key: str, done: int) -> None:
        """Begin an activity of which `done` is done already; its text follows."""
        now = self._clock()
        if not self.text:
            self._shown_from = now + _SHOWN_AFTER_S
        self.key, self.since, self._first = key, now, done

    def figures(self) -> str:
        """Figures such as `4.1 of 68.0 GB, 120.0 MB/s, 9 min left`; the elapsed time if the total is not known."""
        elapsed_s, total, unit = self._clock() - self.since, self.total, self.unit
        if not total:
            return duration(elapsed_s)
        fresh = self.done - self._first
        # the mean, which falls if the activity is stuck
        speed = fresh / elapsed_s if fresh > 0 and elapsed_s > 0 else 0.0
        if unit == "%":
            words = [f"{100 * self.done // total}%"]
        elif unit == "B":
            size, suffix = pick_unit_and_suffix(total, ["bytes", "kB", "MB", "GB", "TB"], 1000)
            digits = 0 if size == 1 else 1
            words = [f"{self.done / size:.{digits}f} of {total / size:.{digits}f} {suffix}"]
            words += [f"{decimal(int(speed))}/s"] if speed else []
        else:
            words = [f"{self.done} of {total} {unit}"]
            words += [f"{speed:.1f} {unit}/s"] if speed else []
        if speed and self.done < total:
            words.append(f"{duration((total - self.done) / speed)} left")
        elif not speed:
            words.append(duration(elapsed_s))
        return ", ".join(words)

    def __rich__(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Column, Table
        from rich.text import Text

        if not self.text or self._clock() < self._shown_from:
            return Text()
        grid = Table.grid(Column(), Column(no_wrap=True, overflow="ellipsis", ratio=1), padding=(0, 1), expand=True)
        bar = [ProgressBar(self.total, self.done, width=_BAR_COLUMNS)] if self.total else []
        figures = Text(self.figures(), "progress.remaining", no_wrap=True)
        self._spinner = self._spinner or Spinner("dots", style="progress.spinner")
        grid.add_row(self._spinner, Text(inert(self.text)), *bar, figures)
        return grid


class Arrivals:
    """Reports the progress of workers that are getting ready, from successive `Status` messages."""

    def __init__(self, reporter: Display, clock: Callable[[], float] = time.monotonic) -> None:
        self._reporter, self._clock = reporter, clock
        self._states: dict[str, str] = {}
        self._begun: dict[str, tuple[float, int]] = {}  # when the first bytes of a worker's weights were sent

    def show(self, status: Status) -> None:
        """Print a line for each worker that got its weights or was lost; the activity names the others."""
        workers = status.nodes[1:]
        for node in workers:
            before = self._states.get(node.name, "absent")
            self._states[node.name] = node.state
            if node.state in ("loaded", "ready") and before not in ("loaded", "ready"):
                had = f" ({human_bytes(node.kept_bytes)} were there)" if node.kept_bytes else ""
                weights = f"{human_bytes(node.total_bytes)} in {node.seconds:.1f} s{had}"
                self._reporter.line(f"{node.name} has its weights, {weights}")
            elif node.state == "absent" and before != "absent":
                self._reporter.line(f"{node.name} {node.reason}")
        waiting = [node for node in workers if node.state in ("absent", "loading")]
        if waiting:
            named, n_more = waiting[:_MAX_NAMED], len(waiting) - _MAX_NAMED
            more = f"; and {n_more} more" if n_more > 0 else ""
            with_speeds = sum(map(_receives, waiting)) > 1  # for one worker, the activity's own figures show it
            notes = [f"{node.name} {note_on(node)}" for node in named]
            speeds = [self._speed(node) if with_speeds else "" for node in named]
            text = "; ".join(map("".join, zip(notes, speeds, strict=True))) + more
            self._reporter.activity(text, *_amount(waiting), key="; ".join(notes) + more)
        elif any(node.state != "ready" for node in workers):
            self._reporter.activity("all workers have their weights")

    def _speed(self, node: NodeStatus) -> str:
        """How fast a worker gets its weights and how long the rest of them takes, as ` (12 MB/s, 9 s left)`."""
        if not _receives(node):
            self._begun.pop(node.name, None)
            return ""
        now = self._clock()
        since, first = self._begun.setdefault(node.name, (now, node.sent_bytes))
        if now <= since or node.sent_bytes <= first:
            return ""
        speed = (node.sent_bytes - first) / (now - since)
        left = node.total_bytes - node.kept_bytes - node.sent_bytes
        return f" ({human_bytes(int(speed))}/s, {duration(left / speed)} left)"


def note_on(node: NodeStatus) -> str:
    """What a node is doing, or why it is absent; empty if it is ready."""
    if node.state != "loading":
        return node.reason
    return "receives its weights" if _receives(node) else node.doing or "gets ready"


def _receives(node: NodeStatus) -> bool:
    return node.state == "loading" and node.sent_bytes + node.kept_bytes < node.total_bytes


def _amount(waiting: list[NodeStatus]) -> tuple[int, int, Unit]:
    """The bytes sent to workers that receive weights; if none does, the percentage of the slowest worker."""
    loading = [node for node in waiting if node.state == "loading"]
    receiving = [node for node in loading if _receives(node)]
    if loading and not receiving:
        return min(node.percent for node in loading), 100, "%"
    return (
        sum(node.sent_bytes for node in receiving),
        sum(node.total_bytes - node.kept_bytes for node in receiving),
        "B",
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
