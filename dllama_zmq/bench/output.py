"""Rows as Markdown, as soon as each is known, or as JSON at the end."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from dllama_zmq.bench.cases import Nodes
from dllama_zmq.bench.machine import BLAS_SHAPES, MIN_MATRICES, WEIGHT_BYTES
from dllama_zmq.bench.rows import Row
from dllama_zmq.bus.client_messages import Status
from dllama_zmq.reporting import plural

_WIDTH = 80
_WAIT = "wait %: the part of its time that the root waits for workers; kB/tok: payload"

# Of each table: the width of each column. The first column is words, the others are numbers.
_CASES = {"test": 14, "nodes": 5, "tokens/s": 14, "% read": 6, "GMAC/s": 6, "kB/tok": 7, "wait %": 6}
_TOGETHER = {"many at once": 14, "nodes": 5, "each, tok/s": 11, "first, s": 8, "gap ms": 6, "beside": 6, "p99 ms": 6}
_PREDICTED = {"predicted": 14, "nodes": 5, "tokens/s": 14, "measured": 14, "ratio": 6}
_PROFILE = {"part": 30, "ms/token": 9, "%": 5, "calls": 7, "us/call": 9}
_RUNNING = {"test": 10, "tokens/s": 14, "kB/tok": 8, "wait %": 6, "slowest": 24}

_TOGETHER_NOTE = """
tg32 @ 4: 4 sequences together; tokens/s of each. pp512 @ 4: a prompt that comes
while 4 others run; seconds to its first token; the gap between two tokens of the
others without it, and beside it (median and 99th percentile).
"""
_PREDICTED_NOTE = """
predicted: from what these nodes did with a small model before (SPEED.md).
"""
_PROFILE_NOTE = """
A product's time includes quantizing its input; python: all time outside kernels and waiting; calls: of one repetition.
"""


def as_json(value: object) -> str:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def markdown(batches: Iterable[Sequence[Row]]) -> Iterator[str]:
    """Model and machine, a table, then profiles. The first batch has the product's rows."""
    rows: list[Row] = []
    for batch in batches:
        if not rows:
            yield _about(batch) + _head(_CASES)
        rows += batch
        yield "".join(map(_case, batch))
    if together := [row for row in rows if row["parallel"] > 1]:
        yield _head(_TOGETHER) + "".join(map(_together, together)) + _TOGETHER_NOTE
    if predicted := [row for row in rows if row.get("predicted_tokens_per_s")]:
        yield _head(_PREDICTED) + "".join(map(_predicted, predicted)) + _PREDICTED_NOTE
    for row in rows:
        if "profile" in row:
            title = f"{row['test']}, {Nodes(row['nodes'], row['threads'])}"
            yield f"\n{title}: the root's {row['profile']['ms_per_token']:.3f} ms a token\n"
            yield _head(_PROFILE) + "".join(_profile(row["profile"]))
    if "profile" in rows[-1]:
        yield _PROFILE_NOTE
    commit = f", commit {rows[0]['commit']}" if rows[0]["commit"] else ""
    yield f"\n`{rows[0]['command']}`{commit}\n"


def running_markdown(status: Status, rows: Iterable[Row]) -> Iterator[str]:
    """A running cluster's model and nodes, then its table."""
    hosts = [f"{node.name} on {node.host or '?'} ({plural(node.threads, 'thread')})" for node in status.nodes]
    about = _list(
        f"{status.name}: {status.model}, sync {status.sync}, kernels {status.kernels} on the root",
        f"nodes: {', '.join(hosts)}",
        f"{_WAIT}; slowest: the node that the others wait for, and its share of all waiting",
    )
    yield about + _head(_RUNNING)
    for row in rows:
        slowest = "" if row["slowest_share"] is None else f"{row['slowest']} ({row['slowest_share']:.0%})"
        waits = f"{100 * row['wait_share']:.1f}"
        yield _line(_RUNNING, row["test"], _speed(row), f"{row['kb_per_token']:.1f}", waits, slowest)


def _about(products: Sequence[Row]) -> str:
    """The fields that all rows share; memory and BLAS for each number of threads, from the rows of the product."""
    row = products[0]
    weights = f"random {row['weights'].upper()}" if row["shape"] else row["weights"].upper()
    threads = plural(row["hardware_threads"], "thread")
    if row["cores"] != row["hardware_threads"]:
        threads += f" ({row['cores']} for this process)"
    kernels = f"kernels {row['kernels']}" + (f" (dot {row['dot']})" if row["dot"] else "")
    read_by = "NumPy's maximum" if any(row["read_by"] == "numpy" for row in products) else "SIMD loads"
    measured = {row["threads"]: row for row in products}.values()  # each type of weights has rows
    read = [f"{row['read_gb_per_s']:.1f} GB/s with {plural(row['threads'], 'thread')}" for row in measured]
    blas = [f"{row['blas_gmac_per_s']:.1f} GMAC/s with {plural(row['threads'], 'thread')}" for row in measured]
    (n_tokens, width), (_, n_rows) = BLAS_SHAPES
    return _list(
        f"model: {row['model']}, {weights}, {row['n_weights'] / 1e6:,.0f} million weights, "
        f"{row['model_bytes'] / 1e6:,.0f} MB",
        f"CPU: {row['cpu']}, {threads}; dllama-zmq {row['version']}, {kernels}, sync {row['sync']}",
        f"memory read, by {read_by}: {', '.join(read)}",
        f"{row['blas']}, f32 ({n_tokens}, {width}) x ({width}, {n_rows}): {', '.join(blas)}",
        f"mv: at least {MIN_MATRICES} matrices of {WEIGHT_BYTES / 1e6:.0f} MB and a type of the model's weights, each "
        "times a vector, products/s, the best round",
        "nodes: number x threads of each; % read: weights read by all of them, as a share of memory read; "
        f"GMAC/s: multiply-adds of matrices; {_WAIT}",
    )


def _case(row: Row) -> str:
    shares = (row["pct_of_read_bandwidth"], row["gmac_per_s"], row["kb_per_token"], 100 * row["wait_share"])
    return _line(_CASES, row["test"], _nodes(row), _speed(row), *(f"{share:.1f}" for share in shares))


def _together(row: Row) -> str:
    """The figures of each of the sequences that run together. Cells that this kind of case does not have are empty."""
    digits = {"tokens_per_s_each": 2, "first_token_s": 3, "gap_ms": 1, "gap_beside_ms": 1, "gap_beside_p99_ms": 1}
    figures = (f"{row[key]:.{n}f}" if key in row else "" for key, n in digits.items())
    return _line(_TOGETHER, row["test"], _nodes(row), *figures)


def _predicted(row: Row) -> str:
    predicted: float = row["predicted_tokens_per_s"]
    speed, ratio = f"{predicted:.{_digits(predicted)}f}", f"{predicted / row['tokens_per_s']:.2f}"
    return _line(_PREDICTED, row["test"], _nodes(row), speed, _speed(row), ratio)


def _profile(profile: Row) -> Iterator[str]:
    for part in profile["parts"]:
        figures = f"{100 * part['share']:.1f}", f"{part['calls']:g}", f"{part['us_per_call']:.1f}"
        yield _line(_PROFILE, part["name"], f"{part['ms_per_token']:.4f}", *figures)
    for name, key in (("bus wait", "wait"), ("python", "python")):
        ms, share = profile[f"{key}_ms_per_token"], profile[f"{key}_share"]
        yield _line(_PROFILE, name, f"{ms:.4f}", f"{100 * share:.1f}", "", "")


def _nodes(row: Row) -> str:
    return f"{row['nodes']}x{row['threads']}"


def _speed(row: Row) -> str:
    """Tokens/s and their deviation, to about four digits."""
    digits = _digits(row["tokens_per_s"])
    return f"{row['tokens_per_s']:.{digits}f} ± {row['stddev']:.{digits}f}"


def _digits(speed: float) -> int:
    return 0 if speed >= 1000 else 1 if speed >= 100 else 2


def _head(columns: dict[str, int]) -> str:
    first, *others = columns.values()
    return "\n" + _line(columns, *columns) + _line(columns, "-" * first, *("-" * (width - 1) + ":" for width in others))


def _line(columns: dict[str, int], first: str, *others: str) -> str:
    width, *widths = columns.values()
    cells = [f"{first:{width}}", *(f"{cell:>{width}}" for cell, width in zip(others, widths, strict=True))]
    return f"| {' | '.join(cells)} |\n"


def _list(*items: str) -> str:
    lines = [textwrap.fill(f"- {item}", _WIDTH, subsequent_indent="  ", break_long_words=False) for item in items]
    return "\n".join(lines) + "\n"
