"""The result as people and as programs read it: a Markdown table, row by row, or one JSON list at the end."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from dllama_zmq.bench.blas import SHAPES
from dllama_zmq.bench.nodes import Nodes
from dllama_zmq.bench.product import COLUMNS, N_MATRICES, NAME, ROWS
from dllama_zmq.bench.profile import NOTE, Profile
from dllama_zmq.bench.rows import Facts, Row
from dllama_zmq.bench.running import RunningRow
from dllama_zmq.bus.client_messages import Status

_WIDTH = 80
_COLUMNS = (("test", 14), ("nodes", 5), ("tokens/s", 14), ("% read", 6), ("GMAC/s", 6), ("kB/tok", 7), ("wait %", 6))
_RUNNING_COLUMNS = (("test", 10), ("tokens/s", 14), ("kB/tok", 8), ("wait %", 6), ("slowest", 24))
_PROFILE_COLUMNS = (("part", 30), ("ms/token", 9), ("%", 5), ("calls", 7), ("us/call", 9))


class Output(Protocol):
    """Where the rows of a run go: `begin` first, `end` after the last."""

    def begin(self, facts: Facts) -> None: ...

    def row(self, row: Row) -> None: ...

    def end(self) -> None: ...


class Json:
    """One list of rows, written when all are there."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._rows: list[Row] = []

    def begin(self, facts: Facts) -> None:
        del facts  # every row says them

    def row(self, row: Row) -> None:
        self._rows.append(row)

    def end(self) -> None:
        self._write(msgspec.json.format(msgspec.json.encode(self._rows), indent=2).decode() + "\n")


class Markdown:
    """A table beneath what it was measured with; every row as soon as it is known. Profiles follow the last row."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._facts: Facts | None = None
        self._profiled: list[Row] = []

    def begin(self, facts: Facts) -> None:
        self._facts = facts
        weights = f"random {facts.spec.weight_type.name}" if facts.shape else facts.spec.weight_type.name
        (n_tokens, width), (_, n_rows) = SHAPES
        read = _by_threads({n: b.read_bytes_per_s / 1e9 for n, b in facts.baselines.items()}, "GB/s")
        blas = _by_threads({n: b.blas_macs_per_s / 1e9 for n, b in facts.baselines.items()}, "GMAC/s")
        read_by = "NumPy's maximum" if any(b.read_by == "numpy" for b in facts.baselines.values()) else "SIMD loads"
        threads = _threads(facts.hardware_threads)
        if facts.cores != facts.hardware_threads:
            threads += f" ({facts.cores} for this process)"
        kernels = f"kernels {facts.kernels}" + (f" (dot {facts.dot})" if facts.dot else "")
        lines = [
            f"- model: {facts.model}, {weights}, {facts.n_weights / 1e6:,.0f} million weights, "
            f"{facts.model_bytes / 1e6:,.0f} MB",
            f"- CPU: {facts.cpu}, {threads}; dllama-zmq {facts.version}, {kernels}, sync {facts.sync}",
            f"- memory read, by {read_by}: {read}",
            f"- {facts.blas}, f32 ({n_tokens}, {width}) x ({width}, {n_rows}): {blas}",
            f"- {NAME}: {N_MATRICES} matrices ({ROWS}, {COLUMNS}), each times a vector, products/s, the best round",
            "- nodes: how many x threads of each; % read: weights that all of them read, as a share of memory read; "
            "GMAC/s: multiply-adds of matrices; kB/tok: payload; wait %: the root's time in which it waits for others",
        ]
        lines = [textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_long_words=False) for line in lines]
        lines += ["", *_head(_COLUMNS)]
        self._write("\n".join(lines) + "\n")

    def row(self, row: Row) -> None:
        cells = [
            row.test,
            f"{row.nodes}x{row.threads}",
            _speed(row),
            f"{row.pct_of_read_bandwidth:.1f}",
            f"{row.gmac_per_s:.1f}",
            f"{row.kb_per_token:.1f}",
            f"{100 * row.wait_share:.1f}",
        ]
        self._write(_line(cells, _COLUMNS) + "\n")
        if row.profile is not None:
            self._profiled.append(row)

    def end(self) -> None:
        assert self._facts is not None
        for row in self._profiled:
            assert row.profile is not None
            title = f"{row.test}, {Nodes(row.nodes, row.threads)}: the root's {row.profile.ms_per_token:.3f} ms a token"
            self._write("\n".join(["", title, "", *_profile_table(row.profile)]) + "\n")
        if self._profiled:
            self._write(f"\n{NOTE}\n")
        commit = f", commit {self._facts.commit}" if self._facts.commit else ""
        self._write(f"\n`{self._facts.command}`{commit}\n")


class RunningMarkdown:
    """The table of a running cluster, beneath what it runs; every row as soon as it is known."""

    def __init__(self, write: Callable[[str], object], status: Status) -> None:
        self._write = write
        hosts = [f"{node.name} on {node.host or '?'} ({_threads(node.threads)})" for node in status.nodes]
        lines = [
            f"- {status.name}: {status.model}, sync {status.sync}, kernels {status.kernels} on the root",
            f"- nodes: {', '.join(hosts)}",
            "- wait %: the root's time in which it waits for others; slowest: the node that the others wait for, with "
            "its share of all waiting; kB/tok: payload",
        ]
        lines = [textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_long_words=False) for line in lines]
        write("\n".join([*lines, "", *_head(_RUNNING_COLUMNS)]) + "\n")

    def row(self, row: RunningRow) -> None:
        last = "" if row.slowest_share is None else f"{row.slowest} ({row.slowest_share:.0%})"
        cells = [row.test, _speed(row), f"{row.kb_per_token:.1f}", f"{100 * row.wait_share:.1f}", last]
        self._write(_line(cells, _RUNNING_COLUMNS) + "\n")

    def end(self) -> None:
        """Nothing follows the last row."""


class RunningJson:
    """One object, written when all rows are there: what is measured, and the rows."""

    def __init__(self, write: Callable[[str], object], status: Status) -> None:
        self._write = write
        self._about = {"cluster": status.name, "model": status.model, "sync": status.sync, "version": status.version}
        self._rows: list[RunningRow] = []

    def row(self, row: RunningRow) -> None:
        self._rows.append(row)

    def end(self) -> None:
        found = {**self._about, "rows": self._rows}
        self._write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")


def _threads(n_threads: int) -> str:
    return "1 thread" if n_threads == 1 else f"{n_threads} threads"


def _speed(row: Row | RunningRow) -> str:
    """Tokens/s and their deviation, to about four digits."""
    digits = 0 if row.tokens_per_s >= 1000 else 1 if row.tokens_per_s >= 100 else 2
    return f"{row.tokens_per_s:.{digits}f} ± {row.stddev:.{digits}f}"


def _profile_table(profile: Profile) -> list[str]:
    rows = [
        [part.name, f"{part.ms_per_token:.4f}", f"{100 * part.share:.1f}", f"{part.calls:g}", f"{part.us_per_call:.1f}"]
        for part in profile.parts
    ]
    rows += [
        [name, f"{ms:.4f}", f"{100 * share:.1f}", "", ""]
        for name, ms, share in (
            ("bus wait", profile.wait_ms_per_token, profile.wait_share),
            ("python", profile.python_ms_per_token, profile.python_share),
        )
    ]
    return [*_head(_PROFILE_COLUMNS), *(_line(cells, _PROFILE_COLUMNS) for cells in rows)]


def _head(columns: Sequence[tuple[str, int]]) -> list[str]:
    """The first two lines of a table."""
    marks = [("-" * width if i == 0 else "-" * (width - 1) + ":") for i, (_, width) in enumerate(columns)]
    return [_line([name for name, _ in columns], columns), _line(marks, columns)]


def _line(cells: Sequence[str], columns: Sequence[tuple[str, int]]) -> str:
    padded = [
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, (_, width)) in enumerate(zip(cells, columns, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def _by_threads(values: dict[int, float], unit: str) -> str:
    words = [f"{value:.1f} {unit} with {n} {'thread' if n == 1 else 'threads'}" for n, value in sorted(values.items())]
    return ", ".join(words)
