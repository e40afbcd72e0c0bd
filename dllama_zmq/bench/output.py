"""Rows as Markdown, as soon as each is known, or as JSON at the end."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from dllama_zmq.bench.cases import Nodes
from dllama_zmq.bench.machine import BLAS_SHAPES, N_MATRICES, WEIGHT_BYTES
from dllama_zmq.bench.rows import Row
from dllama_zmq.bus.client_messages import Status
from dllama_zmq.reporting import plural

_WIDTH = 80
_WAIT = "wait %: the part of its time that the root waits for workers; kB/tok: payload"
_HEAD = """
| test           | nodes |       tokens/s | % read | GMAC/s |  kB/tok | wait % |
| -------------- | ----: | -------------: | -----: | -----: | ------: | -----: |
"""
_PARALLEL_HEAD = """
| many at once   | nodes | each, tok/s | first, s | gap ms | beside | p99 ms |
| -------------- | ----: | ----------: | -------: | -----: | -----: | -----: |
"""
_PARALLEL_NOTE = """
tg32 @ 4: 4 sequences together; tokens/s of each. pp512 @ 4: a prompt that comes
while 4 others run; seconds to its first token; the gap between two tokens of the
others without it, and beside it (median and 99th percentile).
"""
_RUNNING_HEAD = """
| test       |       tokens/s |   kB/tok | wait % |                  slowest |
| ---------- | -------------: | -------: | -----: | -----------------------: |
"""
_PREDICTED_HEAD = """
| predicted      | nodes |       tokens/s |       measured |  ratio |
| -------------- | ----: | -------------: | -------------: | -----: |
"""
_PREDICTED_NOTE = """
predicted: from what these nodes did with a small model before (SPEED.md).
"""
_PROFILE_HEAD = """
| part                           |  ms/token |     % |   calls |   us/call |
| ------------------------------ | --------: | ----: | ------: | --------: |
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
            yield _about(batch) + _HEAD
        rows += batch
        yield "".join(map(_line, batch))
    if parallel := [row for row in rows if row["parallel"] > 1]:
        yield _PARALLEL_HEAD + "".join(map(_of_many, parallel)) + _PARALLEL_NOTE
    if predicted := [row for row in rows if row.get("predicted_tokens_per_s")]:
        yield _PREDICTED_HEAD + "".join(map(_predicted, predicted)) + _PREDICTED_NOTE
    for row in rows:
        if "profile" in row:
            title = f"{row['test']}, {Nodes(row['nodes'], row['threads'])}"
            yield f"\n{title}: the root's {row['profile']['ms_per_token']:.3f} ms a token\n"
            yield _PROFILE_HEAD + "".join(_profile(row["profile"]))
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
    yield about + _RUNNING_HEAD
    for row in rows:
        slowest = "" if row["slowest_share"] is None else f"{row['slowest']} ({row['slowest_share']:.0%})"
        figures = f"{_speed(row):>14} | {row['kb_per_token']:8.1f} | {100 * row['wait_share']:6.1f}"
        yield f"| {row['test']:10} | {figures} | {slowest:>24} |\n"


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
        f"mv: {N_MATRICES} matrices of {WEIGHT_BYTES / 1e6:.0f} MB and a type of the model's weights, each times a "
        "vector, products/s, the best round",
        "nodes: number x threads of each; % read: weights read by all of them, as a share of memory read; "
        f"GMAC/s: multiply-adds of matrices; {_WAIT}",
    )


def _line(row: Row) -> str:
    nodes = f"{row['nodes']}x{row['threads']}"
    share, gmac, kb, wait = (row[key] for key in ("pct_of_read_bandwidth", "gmac_per_s", "kb_per_token", "wait_share"))
    figures = f"{_speed(row):>14} | {share:6.1f} | {gmac:6.1f} | {kb:7.1f} | {100 * wait:6.1f}"
    return f"| {row['test']:14} | {nodes:>5} | {figures} |\n"


def _of_many(row: Row) -> str:
    """The figures of each of the sequences that run together. Cells that this kind of case does not have are empty."""
    digits = {"tokens_per_s_each": 2, "first_token_s": 3, "gap_ms": 1, "gap_beside_ms": 1, "gap_beside_p99_ms": 1}
    each, first, *gaps = (f"{row[key]:.{n}f}" if key in row else "" for key, n in digits.items())
    figures = " | ".join([f"{each:>11}", f"{first:>8}", *(f"{gap:>6}" for gap in gaps)])
    nodes = f"{row['nodes']}x{row['threads']}"
    return f"| {row['test']:14} | {nodes:>5} | {figures} |\n"


def _predicted(row: Row) -> str:
    predicted: float = row["predicted_tokens_per_s"]
    nodes, ratio = f"{row['nodes']}x{row['threads']}", predicted / row["tokens_per_s"]
    digits = _digits(predicted)
    return f"| {row['test']:14} | {nodes:>5} | {predicted:14.{digits}f} | {_speed(row):>14} | {ratio:6.2f} |\n"


def _profile(profile: Row) -> Iterator[str]:
    for part in profile["parts"]:
        figures = f"{100 * part['share']:5.1f} | {part['calls']:7g} | {part['us_per_call']:9.1f}"
        yield f"| {part['name']:30} | {part['ms_per_token']:9.4f} | {figures} |\n"
    for name, key in (("bus wait", "wait"), ("python", "python")):
        ms, share = profile[f"{key}_ms_per_token"], profile[f"{key}_share"]
        yield f"| {name:30} | {ms:9.4f} | {100 * share:5.1f} | {'':7} | {'':9} |\n"


def _speed(row: Row) -> str:
    """Tokens/s and their deviation, to about four digits."""
    digits = _digits(row["tokens_per_s"])
    return f"{row['tokens_per_s']:.{digits}f} ± {row['stddev']:.{digits}f}"


def _digits(speed: float) -> int:
    return 0 if speed >= 1000 else 1 if speed >= 100 else 2


def _list(*items: str) -> str:
    lines = [textwrap.fill(f"- {item}", _WIDTH, subsequent_indent="  ", break_long_words=False) for item in items]
    return "\n".join(lines) + "\n"
