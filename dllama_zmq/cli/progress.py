"""The one display of what takes long, on stderr: a living line on a terminal, plain lines that thin out elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.filesize import decimal, pick_unit_and_suffix
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from dllama_zmq.bus.client_messages import NodeStatus, Status
from dllama_zmq.cli.show import wrapped
from dllama_zmq.telling import Tells, Unit, human_bytes

_SHOWN_AFTER_S = 0.4
"""What is over sooner does not flash up on a terminal."""
_PLAIN_AT_S = (1.5, 5.0, 10.0, 30.0)
"""When a plain line says what goes on, counted from its begin; then as often as the last of these."""
_LOOK_S = 0.1
_MOST_NAMED = 3


class Display:
    """Shows what `now` was told last, for as long as the `with` block lasts or until `rest`. A `Tells`.

    On a terminal the line is gone when it ends. Elsewhere something new is said within 2 s, and less often after that.
    """

    def __init__(self, per_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        """per_s: how often a second the line on a terminal is drawn."""
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._clock = clock
        self._bars = _Line(self._console, clock, per_s, self._live)
        self._task = self._bars.add_task("", total=None, visible=False, unit="B", begun=0)
        self._text, self._since, self._due = "", 0.0, 0.0
        self._last_word = clock()
        self._lock = threading.Lock()
        self._inside = False
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    @property
    def is_live(self) -> bool:
        """Whether somebody sits at a terminal and sees it."""
        return self._live

    def __enter__(self) -> Self:
        self._inside = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inside = False
        self.rest()

    def line(self, text: str) -> None:
        """Say this at once, above what is going on."""
        with self._lock:
            self._last_word = self._clock()
            self._due = max(self._due, self._last_word + _PLAIN_AT_S[0])
        # rich itself breaks words; what is no terminal gets the line as it is.
        text = wrapped(text, self._console.width) if self._console.is_terminal else text
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def now(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B") -> None:
        """What goes on from here, `done` of `total` of it where that is known; "" is `rest`."""
        if not text:
            self.rest()
            return
        with self._lock:
            if text != self._text:
                if not self._text:
                    self._bars.shown_from = self._clock() + _SHOWN_AFTER_S
                self._text, self._since = text, self._clock()
                self._due = max(self._since, self._last_word + _PLAIN_AT_S[0])
                # One task for all: Ctrl-C between the end of one and the begin of another would leave none.
                self._bars.tasks[0].total = None  # `reset` leaves a total that it is not given
                self._bars.reset(
                    self._task, total=total or None, completed=done, visible=True, description=text, unit=unit,
                    begun=done,
                )  # fmt: skip
            self._bars.update(self._task, total=total or None, completed=done, unit=unit)
        if self._inside:
            self._begin()

    def rest(self) -> None:
        """Nothing goes on for now: the terminal is free for the answer, and nothing is said."""
        with self._lock:
            self._text, self._last_word = "", self._clock()
            self._bars.update(self._task, visible=False)
        if self._live:
            self._bars.stop()
        elif self._thread is not None:
            self._ended.set()
            if self._thread.ident is not None:  # else Ctrl-C came before it was started
                self._thread.join()
            self._thread = None

    def tick(self) -> None:
        """Without a terminal: say what goes on, where it is time to."""
        with self._lock:
            now = self._clock()
            if not self._text or now < self._due:
                return
            figures = figures_of(self._bars.tasks[0])
            text = f"{self._text} ({figures})" if self._bars.tasks[0].total is None else f"{self._text}: {figures}"
            next_s = next((at for at in _PLAIN_AT_S if self._since + at > now + 2.0), None)
            self._due = now + _PLAIN_AT_S[-1] if next_s is None else self._since + next_s
            self._last_word = now
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _begin(self) -> None:
        if self._live:
            self._bars.start()
        elif self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)
            self._thread.start()

    def _repeat(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self.tick()


class Arrivals:
    """The workers' way to readiness, told from one `Status` after the other."""

    def __init__(self, tells: Tells) -> None:
        self._tells = tells
        self._states: dict[str, str] = {}

    def show(self, status: Status) -> None:
        """Tell how far each worker is now: a line for who has its weights or was lost, and on whom one waits."""
        workers = status.nodes[1:]
        for node in workers:
            before = self._states.get(node.name, "absent")
            self._states[node.name] = node.state
            if node.state in ("loaded", "ready") and before not in ("loaded", "ready"):
                weights = f"{human_bytes(node.total_bytes)} in {node.seconds:.1f} s"
                self._tells.line(f"{node.name} has its weights, {weights}")
            elif node.state == "absent" and before != "absent":
                self._tells.line(f"{node.name} {node.reason}")
        waiting = [node for node in workers if node.state in ("absent", "loading")]
        if waiting:
            more = f"; and {len(waiting) - _MOST_NAMED} more" if len(waiting) > _MOST_NAMED else ""
            self._tells.now(
                "; ".join(f"{node.name} {note_on(node)}" for node in waiting[:_MOST_NAMED]) + more, *_amount(waiting)
            )
        elif any(node.state != "ready" for node in workers):
            self._tells.now("all workers have their weights")


def note_on(node: NodeStatus) -> str:
    """What a node is doing, or why it is not there; empty of one that is ready."""
    if node.state != "loading":
        return node.reason
    return "receives its weights" if node.sent_bytes < node.total_bytes else node.doing or "gets ready"


def _amount(waiting: list[NodeStatus]) -> tuple[int, int, Unit]:
    """The bytes that are sent to those who are being sent some; where nobody is, how far the last one is."""
    loading = [node for node in waiting if node.state == "loading"]
    receiving = [node for node in loading if node.sent_bytes < node.total_bytes]
    if loading and not receiving:
        return min(node.percent for node in loading), 100, "%"
    return sum(node.sent_bytes for node in receiving), sum(node.total_bytes for node in receiving), "B"


def figures_of(task: Task) -> str:
    """How far a task is, as `4.1 of 68.0 GB, 120.0 MB/s, 9 min left`; where its end is not known, since when."""
    elapsed_s = task.elapsed or 0.0
    if task.total is None:
        return duration(elapsed_s)
    done, total, unit, begun = int(task.completed), int(task.total), task.fields["unit"], task.fields["begun"]
    speed = (done - begun) / elapsed_s if done > begun and elapsed_s > 0 else 0.0  # a mean, so that it falls when stuck
    if unit == "%":
        words = [f"{100 * done // total}%"]
    elif unit == "B":
        size, suffix = pick_unit_and_suffix(total, ["bytes", "kB", "MB", "GB", "TB"], 1000)
        digits = 0 if size == 1 else 1
        words = [f"{done / size:.{digits}f} of {total / size:.{digits}f} {suffix}"]
        words += [f"{decimal(int(speed))}/s"] if speed else []
    else:
        words = [f"{done} of {total} {unit}"]
        words += [f"{speed:.1f} {unit}/s"] if speed else []
    if speed and done < total:
        words.append(f"{duration((total - done) / speed)} left")
    elif not speed:
        words.append(duration(elapsed_s))
    return ", ".join(words)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class _Line(Progress):
    """rich's display with one line that never wraps: what, a bar where the end is known, and figures."""

    def __init__(self, console: Console, clock: Callable[[], float], per_s: float, live: bool) -> None:
        self.shown_from, self._clock = 0.0, clock
        super().__init__(
            SpinnerColumn(),
            TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            _Bar(bar_width=16),
            _Figures(table_column=Column(no_wrap=True)),
            console=console,
            get_time=clock,
            disable=not live,
            transient=True,
            expand=True,
            refresh_per_second=per_s,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        if self._clock() >= self.shown_from:
            yield from super().get_renderables()


class _Bar(BarColumn):
    def render(self, task: Task) -> RenderableType:  # type: ignore[override]
        return Text() if task.total is None else super().render(task)


class _Figures(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(figures_of(task), style="progress.remaining")
