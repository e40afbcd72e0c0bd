"""The result as people and as programs read it: a Markdown table, row by row, or one JSON list at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from dllama_zmq.bench.blas import SHAPES
from dllama_zmq.bench.rows import Facts, Row

_COLUMNS = (
    ("test", 14), ("nodes", 5), ("threads", 7), ("tokens/s", 18), ("GB/s", 6), ("% of read", 9), ("GMAC/s", 7),
    ("kB/token", 8), ("waiting", 7),
)  # fmt: skip


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
    """A table beneath what it was measured with; every row as soon as it is known."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._facts: Facts | None = None

    def begin(self, facts: Facts) -> None:
        self._facts = facts
        weights = f"random {facts.spec.weight_type.name}" if facts.shape else facts.spec.weight_type.name
        (n_tokens, width), (_, n_rows) = SHAPES
        read = _by_threads({n: b.read_bytes_per_s / 1e9 for n, b in facts.baselines.items()}, "GB/s")
        blas = _by_threads({n: b.blas_macs_per_s / 1e9 for n, b in facts.baselines.items()}, "GMAC/s")
        cores = "1 core" if facts.cores == 1 else f"{facts.cores} cores"
        lines = [
            f"- model: {facts.model}, {weights}, {facts.n_weights / 1e6:,.0f} million weights, "
            f"{facts.model_bytes / 1e6:,.0f} MB",
            f"- CPU: {facts.cpu}, {cores}; dllama-zmq {facts.version}, {facts.kernels} kernels, sync {facts.sync}",
            f"- memory read: {read}",
            f"- {facts.blas}, f32 ({n_tokens}, {width}) x ({width}, {n_rows}): {blas}",
            "- GB/s: weights read by all nodes; GMAC/s: multiply-adds of matrices; 1 GB is 10^9 bytes, 1 kB 1024",
            "",
            _line([name.rjust(width) if i else name.ljust(width) for i, (name, width) in enumerate(_COLUMNS)]),
            _line([("-" * width if i == 0 else "-" * (width - 1) + ":") for i, (_, width) in enumerate(_COLUMNS)]),
        ]
        self._write("\n".join(lines) + "\n")

    def row(self, row: Row) -> None:
        cells = [
            row.test,
            str(row.nodes),
            str(row.threads),
            f"{row.tokens_per_s:.2f} ± {row.stddev:.2f}",
            f"{row.gb_per_s:.2f}",
            f"{row.pct_of_read_bandwidth:.1f}",
            f"{row.gmac_per_s:.2f}",
            f"{row.kb_per_token:.1f}",
            f"{100 * row.wait_share:.1f}%",
        ]
        widths = [width for _, width in _COLUMNS]
        padded = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        self._write(_line(padded) + "\n")

    def end(self) -> None:
        assert self._facts is not None
        commit = f", commit {self._facts.commit}" if self._facts.commit else ""
        self._write(f"\n`{self._facts.command}`{commit}\n")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _by_threads(values: dict[int, float], unit: str) -> str:
    words = [f"{value:.1f} {unit} with {n} {'thread' if n == 1 else 'threads'}" for n, value in sorted(values.items())]
    return ", ".join(words)
