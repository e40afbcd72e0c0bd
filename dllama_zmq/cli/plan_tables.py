"""The result of `plan`, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from dllama_zmq.bench.outlook import Outlook, Speeds, Wanted, fastest, impossible
from dllama_zmq.bench.speed import Terms
from dllama_zmq.formats import data_bytes
from dllama_zmq.models import tensor_table, types_in_words
from dllama_zmq.reporting import human_bytes, plural
from dllama_zmq.sharding import PREFILL_TOKENS, possible_node_counts

_MIN_WIDTH = 80
_FITS = {True: "fits", False: "too little", None: "?"}


class Computer(Struct, frozen=True):
    """The computer on which the command runs."""

    cpu: str
    cores: int
    free_bytes: int | None


class Answer(NamedTuple):
    """The result of `plan`. speeds: None if nothing was measured."""

    wanted: Wanted
    computer: Computer
    speeds: Speeds | None
    outlooks: Sequence[Outlook]
    advice: Sequence[str]

    def as_map(self) -> dict[str, object]:
        """Its JSON object. link_assumed, link_measured, encryption, message_s: as in Speeds. security: of the links
        between computers; the bytes include what CURVE adds.

        No node keeps the embedding in memory: the root reads it from its mapped file.
        """
        spec, speeds, best = self.wanted.spec, self.speeds, fastest(self.outlooks)
        return {
            "model": self.wanted.model,
            "architecture": spec.arch,
            "weight_type": types_in_words(spec),
            "weight_bytes": data_bytes(spec),
            "embedding_bytes": sum(tensor.nbytes(spec) for tensor in tensor_table(spec) if tensor.root_only),
            "positions": self.wanted.n_positions,
            "kv_cache": self.wanted.kv_type,
            "sync": self.wanted.sync,
            "security": self.wanted.security,
            "computer": self.computer,
            "link": speeds and speeds.link,
            "link_assumed": speeds is not None and speeds.assumed,
            "link_measured": speeds is not None and speeds.measured,
            "encryption": speeds and speeds.encryption,
            "message_s": 0.0 if speeds is None else speeds.message_s,
            "rates": [
                {"nodes": nodes.n_nodes, "threads": nodes.threads, "rates": found}
                for nodes, found in (speeds.rates.items() if speeds else ())
            ],
            "possible_nodes": possible_node_counts(spec),
            "impossible_nodes": impossible(spec),
            "outlooks": self.outlooks,
            "fastest": best and best.nodes,
            "advice": self.advice,
        }


def show(answer: Answer, verbose: bool) -> None:
    """Print the tables. verbose: with the terms of each time."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, _MIN_WIDTH)
    for line in _head(answer):
        console.print(line, soft_wrap=True)
    console.print()
    console.print(_counts(answer))
    curve = ", encrypted" if answer.wanted.security == "curve" else ""
    about = (
        f"memory: of the largest node; kB/token: on each worker's link, both ways{curve}; the root's has all of them"
    )
    if answer.speeds:
        about += f"; decoding and prompt (of {PREFILL_TOKENS}): tokens/s"
    console.print(about, soft_wrap=not console.is_terminal)
    if any(len(one.hosts) > 1 or one.fits is False for one in answer.outlooks) and len(answer.outlooks) == 1:
        console.print()
        console.print(_hosts(answer.outlooks[0]))
    if verbose and answer.speeds:
        console.print()
        for line in _rates(answer.speeds):
            console.print(line, soft_wrap=True)
        tokens = [(one.nodes, one.decoding) for one in answer.outlooks if one.decoding is not None]
        prompts = [(one.nodes, one.prompt) for one in answer.outlooks if one.prompt is not None]
        console.print()
        console.print(_terms("ms of a decoded token", "weights", tokens))
        console.print()
        console.print(_terms(f"ms of a prompt of {PREFILL_TOKENS}", "products", prompts))
    console.print()
    counts, nots = possible_node_counts(answer.wanted.spec), impossible(answer.wanted.spec)
    why = f" {nots[0].why}" if nots else ""
    sentences = [f"It can be split over {', '.join(map(str, counts))} nodes.{why}"]
    for sentence in [*sentences, *(f"- {one}" for one in answer.advice)]:
        console.print(sentence, soft_wrap=not console.is_terminal)


def _head(answer: Answer) -> list[str]:
    wanted, spec, computer, speeds = answer.wanted, answer.wanted.spec, answer.computer, answer.speeds
    lines = [
        f"{wanted.model}: {spec.arch}, {types_in_words(spec)} weights, {human_bytes(data_bytes(spec))}; "
        f"{wanted.n_positions:,} positions, KV cache {wanted.kv_type}, sync {wanted.sync}",
        f"this computer: {computer.cpu}, {plural(computer.cores, 'core')}, "
        f"{'unknown memory' if computer.free_bytes is None else human_bytes(computer.free_bytes)} free",
    ]
    if speeds is not None and any(len(one.hosts) > 1 for one in answer.outlooks):
        mbit, trip_ms = speeds.link.bytes_per_s * 8 / 1e6, 1000 * speeds.link.round_trip_s
        known = " (assumed)" if speeds.assumed else " (measured)" if speeds.measured else ""
        curve = ", encrypted" if wanted.security == "curve" else ""
        lines.append(
            f"link: {mbit:,.4g} Mbit/s, round trip {trip_ms:.3g} ms{known}{curve}; other computers: as fast as this one"
        )
    return lines


def _counts(answer: Answer) -> Table:
    table = _table("nodes", "weights", "KV cache", "in all", "memory", "kB/token", "decoding", "prompt")
    table.columns[4].justify = "left"
    for one in answer.outlooks:
        need = one.largest
        sizes = (human_bytes(n_bytes) for n_bytes in (need.weight_bytes, need.kv_bytes, need.total_bytes))
        speeds = (_speed(one.decoding_per_s), _speed(one.prompt_per_s))
        kb = f"{one.worker_wire_bytes / 1000:.1f}"
        table.add_row(str(one.nodes), *sizes, _FITS[one.fits], kb, *speeds)
    return table


def _hosts(one: Outlook) -> Table:
    table = _table("computer", "nodes", "needs", "has", "memory", left=2)
    table.columns[4].justify = "left"
    for host in one.hosts:
        has = "unknown" if host.free_bytes is None else human_bytes(host.free_bytes)
        table.add_row(host.host, ", ".join(host.nodes), human_bytes(host.total_bytes), has, _FITS[host.fits])
    return table


def _rates(speeds: Speeds) -> list[str]:
    lines = [
        f"{nodes} on this computer: products read {rates.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"prompts {rates.macs_per_s / 1e9:.0f} GMAC/s, {1e6 * rates.exchange_s:.0f} us an exchange"
        for nodes, rates in speeds.rates.items()
    ]
    if speeds.encryption is not None:
        message_us, byte_ns = 1e6 * speeds.encryption.message_s, 1e9 * speeds.encryption.byte_s
        lines.append(f"encryption: {message_us:.1f} us a message and {byte_ns:.2f} ns a byte, part of the link's times")
    if speeds.message_s:
        lines.append(f"an exchange with another computer: {1e6 * speeds.message_s:.0f} us besides the link")
    return lines


def _terms(title: str, computing: str, rows: Sequence[tuple[int, Terms]]) -> Table:
    table = _table("nodes", computing, "exchanges", "round trips", "bytes", "all")
    table.title, table.title_justify = title, "left"
    for n_nodes, terms in rows:
        parts = (terms.compute_s, terms.exchange_s, terms.round_trip_s, terms.bytes_s, terms.seconds)
        table.add_row(str(n_nodes), *(f"{1000 * seconds:.2f}" for seconds in parts))
    return table


def _speed(per_s: float | None) -> str:
    if per_s is None:
        return ""
    return f"{per_s:.{0 if per_s >= 100 else 1 if per_s >= 10 else 2}f}"


def _table(*columns: str, left: int = 0) -> Table:
    """A table without lines. The first `left` columns are words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=True)
    return table
