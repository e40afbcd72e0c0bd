"""The result of `plan`, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from dllama_zmq.bench.outlook import Impossible, Outlook, Speeds, Wanted, embedding_bytes, impossible
from dllama_zmq.bench.speed import Encryption, Link, Rates, Terms
from dllama_zmq.models import tensor_table
from dllama_zmq.reporting import human_bytes, plural
from dllama_zmq.sharding import PREFILL_TOKENS, possible_node_counts

_MIN_WIDTH = 80
_FITS = {True: "fits", False: "too little", None: "?"}


class Computer(Struct, frozen=True):
    """The computer on which the command runs."""

    cpu: str
    cores: int
    free_bytes: int | None


class MeasuredRates(Struct, frozen=True):
    """The rates of some nodes on this computer."""

    nodes: int
    threads: int
    rates: Rates


class Answer(Struct, frozen=True, kw_only=True):
    """The result of `plan`. link: None without speeds; link_assumed, link_measured, encryption, message_s: as in
    Speeds. security: of the links between computers; the bytes include what CURVE adds.

    No node keeps the embedding in memory: the root reads it from its mapped file.
    """

    model: str
    architecture: str
    weight_type: str
    weight_bytes: int
    embedding_bytes: int
    positions: int
    kv_cache: str
    sync: str
    security: str
    computer: Computer
    link: Link | None
    link_assumed: bool
    link_measured: bool
    encryption: Encryption | None
    message_s: float
    rates: list[MeasuredRates]
    possible_nodes: list[int]
    impossible_nodes: list[Impossible]
    outlooks: list[Outlook]
    fastest: int | None
    advice: list[str]

    @classmethod
    def of(
        cls,
        wanted: Wanted,
        computer: Computer,
        speeds: Speeds | None,
        outlooks: Sequence[Outlook],
        best: int | None,
        sentences: Sequence[str],
    ) -> Answer:
        """The result with these figures. best: the number of nodes that decodes fastest."""
        spec, rates = wanted.spec, {} if speeds is None else speeds.rates
        return cls(
            model=wanted.model,
            architecture=spec.arch,
            weight_type=spec.weight_type.name.lower(),
            weight_bytes=sum(tensor.nbytes(spec) for tensor in tensor_table(spec)),
            embedding_bytes=embedding_bytes(spec),
            positions=wanted.n_positions,
            kv_cache=wanted.kv_type,
            sync=wanted.sync,
            security=wanted.security,
            computer=computer,
            link=None if speeds is None else speeds.link,
            link_assumed=speeds is not None and speeds.assumed,
            link_measured=speeds is not None and speeds.measured,
            encryption=None if speeds is None else speeds.encryption,
            message_s=0.0 if speeds is None else speeds.message_s,
            rates=[MeasuredRates(nodes.n_nodes, nodes.threads, found) for nodes, found in rates.items()],
            possible_nodes=possible_node_counts(spec),
            impossible_nodes=impossible(spec),
            outlooks=list(outlooks),
            fastest=best,
            advice=list(sentences),
        )


def show(answer: Answer, verbose: bool) -> None:
    """Print the tables. verbose: with the terms of each time."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, _MIN_WIDTH)
    for line in _head(answer):
        console.print(line, soft_wrap=True)
    console.print()
    console.print(_counts(answer))
    curve = ", encrypted" if answer.security == "curve" else ""
    about = (
        f"memory: of the largest node; kB/token: on each worker's link, both ways{curve}; the root's has all of them"
    )
    if answer.rates:
        about += f"; decoding and prompt (of {PREFILL_TOKENS}): tokens/s"
    console.print(about, soft_wrap=not console.is_terminal)
    if any(len(one.hosts) > 1 or one.fits is False for one in answer.outlooks) and len(answer.outlooks) == 1:
        console.print()
        console.print(_hosts(answer.outlooks[0]))
    if verbose and answer.rates:
        console.print()
        for line in _rates(answer):
            console.print(line, soft_wrap=True)
        for title, terms in _all_terms(answer):
            console.print()
            console.print(_terms(title, terms))
    console.print()
    for sentence in _split(answer):
        console.print(sentence, soft_wrap=not console.is_terminal)
    for sentence in answer.advice:
        console.print(f"- {sentence}", soft_wrap=not console.is_terminal)


def _head(answer: Answer) -> list[str]:
    computer, free = answer.computer, answer.computer.free_bytes
    lines = [
        f"{answer.model}: {answer.architecture}, {answer.weight_type} weights, {human_bytes(answer.weight_bytes)}; "
        f"{answer.positions:,} positions, KV cache {answer.kv_cache}, sync {answer.sync}",
        f"this computer: {computer.cpu}, {plural(computer.cores, 'core')}, "
        f"{'unknown memory' if free is None else human_bytes(free)} free",
    ]
    if answer.link is not None and any(len(one.hosts) > 1 for one in answer.outlooks):
        mbit, trip_ms = answer.link.bytes_per_s * 8 / 1e6, 1000 * answer.link.round_trip_s
        known = " (assumed)" if answer.link_assumed else " (measured)" if answer.link_measured else ""
        curve = ", encrypted" if answer.security == "curve" else ""
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


def _rates(answer: Answer) -> list[str]:
    lines = [
        f"{plural(one.nodes, 'node')} of {plural(one.threads, 'thread')} on this computer: products read "
        f"{one.rates.read_bytes_per_s / 1e9:.1f} GB/s, prompts {one.rates.macs_per_s / 1e9:.0f} GMAC/s, "
        f"{1e6 * one.rates.exchange_s:.0f} us an exchange"
        for one in answer.rates
    ]
    if answer.encryption is not None:
        message_us, byte_ns = 1e6 * answer.encryption.message_s, 1e9 * answer.encryption.byte_s
        lines.append(f"encryption: {message_us:.1f} us a message and {byte_ns:.2f} ns a byte, part of the link's times")
    if answer.message_s:
        lines.append(f"an exchange with another computer: {1e6 * answer.message_s:.0f} us besides the link")
    return lines


def _all_terms(answer: Answer) -> list[tuple[str, list[tuple[int, Terms]]]]:
    tokens = [(one.nodes, one.decoding) for one in answer.outlooks if one.decoding is not None]
    prompts = [(one.nodes, one.prompt) for one in answer.outlooks if one.prompt is not None]
    return [("ms of a decoded token", tokens), (f"ms of a prompt of {PREFILL_TOKENS}", prompts)]


def _terms(title: str, rows: Sequence[tuple[int, Terms]]) -> Table:
    table = _table("nodes", "weights" if "token" in title else "products", "exchanges", "round trips", "bytes", "all")
    table.title, table.title_justify = title, "left"
    for n_nodes, terms in rows:
        parts = (terms.compute_s, terms.exchange_s, terms.round_trip_s, terms.bytes_s, terms.seconds)
        table.add_row(str(n_nodes), *(f"{1000 * seconds:.2f}" for seconds in parts))
    return table


def _split(answer: Answer) -> list[str]:
    counts = ", ".join(map(str, answer.possible_nodes))
    first = next(iter(answer.impossible_nodes), None)
    return [f"It can be split over {counts} nodes.{'' if first is None else f' {first.why}'}"]


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
