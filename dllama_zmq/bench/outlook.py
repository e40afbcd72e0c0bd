"""Predict a model on some numbers of nodes: memory needed and free, bytes, speed, and advice in sentences.

The given and measured figures stay as they are, in msgspec structs, so that `plan --json` prints what its tables show.
Knows no clock, no socket and no terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import asdict

from dllama_zmq.bench.cases import Nodes
from dllama_zmq.bench.speed import Encryption, Layout, Link, Rates, Terms, decoding, prompt, token_wire_bytes
from dllama_zmq.kernels import KVType
from dllama_zmq.node_config import Security
from dllama_zmq.reporting import human_bytes, plural
from dllama_zmq.root.fitting import Wish, shortage
from dllama_zmq.sharding import PREFILL_TOKENS, Plan, node_memory, obstacles
from dllama_zmq.spec import ModelSpec, Sync

_MUCH = 0.3  # of a token's time


class Host(Struct, frozen=True):
    """A computer with these nodes, of `threads` each; free_bytes: None if unknown."""

    host: str
    nodes: Sequence[str]
    threads: int
    free_bytes: int | None

    @property
    def measured_as(self) -> Nodes:
        return Nodes(len(self.nodes), self.threads)


class Wanted(Struct, frozen=True):
    """The question. security: of the bus between computers. hosts: those for a number of nodes, the root's first."""

    model: str
    spec: ModelSpec
    n_positions: int
    kv_type: KVType
    sync: Sync
    security: Security
    counts: Sequence[int]
    hosts: Callable[[int], Sequence[Host]]


class NodeNeed(Struct, frozen=True, kw_only=True):
    """Bytes of memory of one node. other_bytes: the program, and arrays of a step or of loading."""

    node: str
    weight_bytes: int
    kv_bytes: int
    other_bytes: int
    total_bytes: int


class HostNeed(Host, frozen=True):
    """A computer, and the memory that its nodes need. fits: None if it is not known what the computer has."""

    total_bytes: int
    fits: bool | None


class Outlook(Struct, frozen=True, kw_only=True):
    """The prediction for `nodes` nodes. fits: on every computer; None if the memory of one is not known.

    root_wire_bytes, worker_wire_bytes: of one generated token, both ways, of all workers together and of one.
    decoding: of a token near the beginning of a text. prompt: of one of PREFILL_TOKENS. Both None without rates.
    """

    nodes: int
    memory: list[NodeNeed]
    hosts: list[HostNeed]
    fits: bool | None
    root_wire_bytes: int
    worker_wire_bytes: int
    decoding: Terms | None
    prompt: Terms | None
    decoding_per_s: float | None
    prompt_per_s: float | None

    @property
    def largest(self) -> NodeNeed:
        """The node that needs most."""
        return max(self.memory, key=lambda node: node.total_bytes)


class Impossible(Struct, frozen=True):
    """A number of nodes that the model cannot be split over."""

    nodes: int
    why: str


class Speeds(Struct, frozen=True, kw_only=True):
    """The measurements that speeds are computed from: this computer's rates, and the link.

    assumed: the link was neither given nor measured. measured: through the bus, so that its round trip has the time of
    both programs, and of encryption. encryption: of a link that was not measured so; None for an open bus.
    """

    rates: Mapping[Nodes, Rates]
    link: Link
    assumed: bool = False
    measured: bool = False
    encryption: Encryption | None = None

    @property
    def whole_link(self) -> Link:
        """The link with encryption."""
        return self.link if self.encryption is None else self.link.encrypted(self.encryption)

    @property
    def message_s(self) -> float:
        """Seconds that an exchange with another computer takes besides the link: those that a second node adds here."""
        if self.measured:
            return 0.0
        one, two = self.rates.get(Nodes(1, 1)), self.rates.get(Nodes(2, 1))
        return 0.0 if one is None or two is None else max(0.0, two.exchange_s - one.exchange_s)


def outlook(wanted: Wanted, n_nodes: int, speeds: Speeds | None) -> Outlook:
    """The prediction for `n_nodes`. Raises PlanError if the model cannot be split over them."""
    plan = Plan.make(wanted.spec, n_nodes, wanted.model)
    hosts = wanted.hosts(n_nodes)
    needs = [_need(plan, node, name, wanted) for node, name in enumerate(n for host in hosts for n in host.nodes)]
    computers: list[range] = []
    for host in hosts:
        first = computers[-1].stop if computers else 0
        computers.append(range(first, first + len(host.nodes)))
    of_hosts = []
    for host, nodes in zip(hosts, computers, strict=True):
        total = sum(needs[node].total_bytes for node in nodes)
        fits = None if host.free_bytes is None else total <= host.free_bytes
        of_hosts.append(HostNeed(**asdict(host), total_bytes=total, fits=fits))
    sealed, local = wanted.security == "curve", len(hosts[0].nodes)
    wire = [sum(token_wire_bytes(plan, wanted.sync, node, sealed and node >= local)) for node in range(1, n_nodes)]
    token = text = None
    if speeds is not None:
        link = speeds.whole_link if len(hosts) > 1 else None
        rates = [speeds.rates[host.measured_as] for host in hosts]
        layout = Layout(computers, rates, link, speeds.message_s, sealed)
        token = decoding(plan, wanted.sync, layout)
        text = prompt(plan, wanted.sync, layout, min(PREFILL_TOKENS, wanted.n_positions))
    known = [host.fits for host in of_hosts]
    return Outlook(
        nodes=n_nodes,
        memory=needs,
        hosts=of_hosts,
        fits=False if False in known else None if None in known else True,
        root_wire_bytes=sum(wire),
        worker_wire_bytes=max(wire, default=0),
        decoding=token,
        prompt=text,
        decoding_per_s=None if token is None else token.tokens_per_s,
        prompt_per_s=None if text is None else text.tokens_per_s,
    )


def impossible(spec: ModelSpec) -> list[Impossible]:
    """The powers of two that `spec` cannot be split over, up to the most that any model runs on."""
    return [Impossible(n_nodes, why) for n_nodes, why in obstacles(spec).items() if why]


def to_measure(wanted: Wanted, measured: bool = False) -> list[Nodes]:
    """The nodes whose rates an outlook of every count needs.

    The programs' part of an exchange between computers is measured between two nodes here, unless it is in the link's
    round trip (measured).
    """
    found = dict.fromkeys(host.measured_as for n_nodes in wanted.counts for host in wanted.hosts(n_nodes))
    if not measured and any(len(wanted.hosts(n_nodes)) > 1 for n_nodes in wanted.counts):
        found |= dict.fromkeys([Nodes(1, 1), Nodes(2, 1)])
    return sorted(found, key=lambda nodes: (nodes.n_nodes, nodes.threads))


def fastest(outlooks: Sequence[Outlook]) -> Outlook | None:
    """The one that decodes fastest of those that may fit; None if none is left or rates are missing."""
    left = [one for one in outlooks if one.fits is not False and one.decoding is not None]
    return max(left, key=lambda one: one.decoding_per_s or 0.0, default=None)


def _need(plan: Plan, node: int, name: str, wanted: Wanted) -> NodeNeed:
    memory = node_memory(plan, node, wanted.n_positions, wanted.kv_type)
    return NodeNeed(
        node=name,
        weight_bytes=memory.weights,
        kv_bytes=memory.kv_cache,
        other_bytes=memory.total - memory.weights - memory.kv_cache,
        total_bytes=memory.total,
    )


def advice(wanted: Wanted, outlooks: Sequence[Outlook], speeds: Speeds | None, cores: int) -> list[str]:
    """Sentences, the most useful first. cores: of this computer."""
    found = list(_of_speed(wanted, outlooks, speeds))
    found += dict.fromkeys(too_little(wanted, one) for one in outlooks if one.fits is False)
    return found + list(_of_the_unknown(outlooks, speeds)) + list(_of_cores(wanted, outlooks, cores))


def too_little(wanted: Wanted, one: Outlook) -> str:
    """Which computers lack memory for a number of nodes, and what would fit."""
    here, *others = one.hosts
    if here.fits is False:
        plan = Plan.make(wanted.spec, one.nodes)
        wish = Wish(plan, range(len(here.nodes)), wanted.n_positions, wanted.kv_type, wanted.model)
        return shortage(wish, here.free_bytes)
    short = next(host for host in others if host.fits is False)
    return (
        f"{one.nodes} nodes: {short.host} needs {human_bytes(short.total_bytes)} for {' and '.join(short.nodes)} and "
        f"has {human_bytes(short.free_bytes or 0)}: free some there, use more nodes, or keep fewer positions (-c)"
    )


def _of_speed(wanted: Wanted, outlooks: Sequence[Outlook], speeds: Speeds | None) -> Iterator[str]:
    best = fastest(outlooks)
    if best is None or best.decoding is None or best.prompt is None or speeds is None:
        return
    if len(outlooks) > 1:
        words = f"fastest to decode: {plural(best.nodes, 'node')}"
        prompts = max((one for one in outlooks if one.fits is not False), key=lambda one: one.prompt_per_s or 0.0)
        yield f"{words}; for prompts: {plural(prompts.nodes, 'node')}" if prompts is not best else words
    linked = [(one.nodes, terms) for one in outlooks if (terms := one.decoding) and terms.link_share > _MUCH]
    if not linked:
        return
    n_nodes, worst = linked[0]
    share = f"on {n_nodes} nodes the link takes {worst.link_share:.0%} of a token's time"
    if worst.round_trip_s > worst.bytes_s:
        trip_ms = 1000 * speeds.link.round_trip_s
        yield f"{share}, mostly by its round trips of {trip_ms:.2f} ms: cables and one switch are faster than Wi-Fi"
    elif wanted.sync != "q80":
        yield f"{share}, mostly by its bytes: --sync q80 sends about a quarter of them"
    else:
        yield f"{share}, mostly by its bytes: a faster link helps"


def _of_the_unknown(outlooks: Sequence[Outlook], speeds: Speeds | None) -> Iterator[str]:
    unknown = [one for one in outlooks if one.fits is None]
    if unknown:
        needs = ", ".join(f"{human_bytes(_most_elsewhere(one))} each on {plural(one.nodes, 'node')}" for one in unknown)
        yield f"other computers need as much memory free: {needs}; give theirs with --memory SIZE"
    elsewhere = any(len(one.hosts) > 1 for one in outlooks)
    if elsewhere and speeds is not None and speeds.assumed:
        yield "the link is assumed; give yours with --link RATE,TIME, such as --link 100Mbit,0.5ms"


def _of_cores(wanted: Wanted, outlooks: Sequence[Outlook], cores: int) -> Iterator[str]:
    crowded = [one.nodes for one in outlooks if len(one.hosts[0].nodes) * one.hosts[0].threads > cores]
    if crowded:
        counts = " or ".join(map(str, crowded))
        yield f"{counts} nodes share {plural(cores, 'core')} of this computer: add nodes with computers"


def _most_elsewhere(one: Outlook) -> int:
    return max(host.total_bytes for host in one.hosts if host.fits is None)
