"""Predict the speed of a model that is not loaded from measured rates of this computer and of a link. Arithmetic alone:
knows no clock and no socket. SPEED.md explains the terms, and what they leave out.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from dllama_zmq.bench.cases import StepRows, node_work, prompt_steps
from dllama_zmq.kernels import pages_for
from dllama_zmq.models import micro_batches
from dllama_zmq.root.prediction import KINDS, Asked, Predicted, StepKind, predict_step
from dllama_zmq.sharding import Ask, Plan
from dllama_zmq.spec import ModelSpec, Sync


class Encryption(Struct, frozen=True):
    """Seconds that a message takes more than on an open link, to encrypt at one end and decrypt at the other: each
    message, and each of its bytes."""

    message_s: float
    byte_s: float


class Link(Struct, frozen=True):
    """The network between the root and its workers: the round trip of a small message, and the bytes/s that the root
    can send, and receive."""

    round_trip_s: float
    bytes_per_s: float

    def encrypted(self, encryption: Encryption) -> Link:
        """The same network with the messages of a round trip, and their bytes, encrypted."""
        byte_s = 1 / self.bytes_per_s + encryption.byte_s
        return Link(self.round_trip_s + 2 * encryption.message_s, 1 / byte_s)


class Rates(Struct, frozen=True):
    """The rates of the nodes of one computer together.

    read_bytes_per_s: weights that products of one row read. macs_per_s: multiply-adds of the matrices of a prompt's
    steps, with everything else in these steps. exchange_s: what a step of decoding takes beyond reading its weights,
    for each of its 2L + 1 exchanges: norms, attention, the interpreter, and between nodes messages and waiting.
    """

    read_bytes_per_s: float
    macs_per_s: float
    exchange_s: float


class Terms(Struct, frozen=True):
    """Seconds of one token, or of a whole prompt.

    compute_s: reading weights, or multiplying a prompt's rows. exchange_s: `Rates.exchange_s` of all exchanges.
    round_trip_s, bytes_s: the link's round trips and bytes; of a prompt only what computing does not hide.
    """

    tokens: int
    compute_s: float
    exchange_s: float
    round_trip_s: float
    bytes_s: float

    @property
    def seconds(self) -> float:
        return self.compute_s + self.exchange_s + self.round_trip_s + self.bytes_s

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def link_share(self) -> float:
        """The part of the time that the link takes."""
        return (self.round_trip_s + self.bytes_s) / self.seconds


class Layout(Struct, frozen=True):
    """The nodes that share a computer, and the rates of each computer.

    computers: the nodes of each; the first has the root. rates: of each computer, in the same order. link: between the
    computers; None if there is only one. message_s: seconds of an exchange over the bus at both ends, apart from the
    link; the rates of a computer with several nodes include them. sealed: between computers the bus has CURVE.
    """

    computers: Sequence[Sequence[int]]
    rates: Sequence[Rates]
    link: Link | None = None
    message_s: float = 0.0
    sealed: bool = False

    @property
    def remote(self) -> list[int]:
        """The workers that are not on the root's computer."""
        return [node for nodes in self.computers[1:] for node in nodes]

    def exchange_s(self) -> float:
        """Seconds of one exchange apart from the link: those of the slowest computer."""
        alone_s = self.message_s if len(self.computers) > 1 else 0.0
        return max(
            rates.exchange_s + (alone_s if len(nodes) == 1 else 0.0)
            for nodes, rates in zip(self.computers, self.rates, strict=True)
        )


def n_exchanges(spec: ModelSpec) -> int:
    """Of a step that gives a token: two of each layer, and the candidates."""
    return 2 * spec.n_layers + 1


def rates_of(spec: ModelSpec, decoding: tuple[float, float], prompt: tuple[float, float], read: float) -> Rates:
    """The rates of nodes that were measured with a model of `spec`.

    decoding: bytes of weights of a token on all nodes, and tokens/s. prompt: multiply-adds of a token, and tokens/s.
    read: bytes/s that products read. A token that takes less than reading at that rate shows a higher rate.
    """
    weight_bytes, per_s = decoding
    beyond_s = 1 / per_s - weight_bytes / read
    if beyond_s < 0:
        return Rates(weight_bytes * per_s, prompt[0] * prompt[1], 0.0)
    return Rates(read, prompt[0] * prompt[1], beyond_s / n_exchanges(spec))


def decoding(plan: Plan, sync: Sync, layout: Layout) -> Terms:
    """One generated token near the beginning of a text."""
    compute_s = max(
        sum(node_work(plan, node, [(1, 1)])[0] for node in nodes) / rates.read_bytes_per_s
        for nodes, rates in zip(layout.computers, layout.rates, strict=True)
    )
    count = n_exchanges(plan.spec)
    round_trip_s = bytes_s = 0.0
    if layout.link is not None and layout.remote:
        round_trip_s = count * layout.link.round_trip_s
        wire_bytes = sum(sum(token_wire_bytes(plan, sync, node, layout.sealed)) for node in layout.remote)
        bytes_s = wire_bytes / layout.link.bytes_per_s
    return Terms(1, compute_s, count * layout.exchange_s(), round_trip_s, bytes_s)


def prompt(plan: Plan, sync: Sync, layout: Layout, n_tokens: int) -> Terms:
    """The steps of a prompt of `n_tokens`.

    Of a step's two micro-batches one is computed while the sums of the other travel, so that a stage of both takes the
    longer of twice the computing, and the computing and travelling of one.
    """
    totals = [0.0, 0.0, 0.0]
    for batch, gives_token in prompt_steps(0, n_tokens):
        for i, seconds in enumerate(_prompt_step(plan, sync, layout, (batch.n_rows, int(gives_token)))):
            totals[i] += seconds
    return Terms(n_tokens, totals[0], 0.0, totals[1], totals[2])


def _prompt_step(plan: Plan, sync: Sync, layout: Layout, step: StepRows) -> tuple[float, float, float]:
    """Seconds of computing, and of the round trips and the bytes that it does not hide."""
    n_rows, _ = step
    compute_s = max(
        sum(node_work(plan, node, [step])[1] for node in nodes) / rates.macs_per_s
        for nodes, rates in zip(layout.computers, layout.rates, strict=True)
    )
    if layout.link is None or not layout.remote:
        return compute_s, 0.0, 0.0
    n_batches, stages = len(micro_batches(plan.spec, n_rows)), 2 * plan.spec.n_layers
    wire = [_step_wire(plan, sync, node, step, layout.sealed) for node in layout.remote]
    sums_bytes = sum(kinds["sum"].wire_bytes + kinds["partial"].wire_bytes for kinds in wire)
    others_bytes = sum(kinds["step"].wire_bytes + kinds["candidates"].wire_bytes for kinds in wire)
    trip_s = layout.link.round_trip_s + layout.message_s
    bytes_s = sums_bytes / layout.link.bytes_per_s / (stages * n_batches)  # of the sums of one stage and micro-batch
    hidden_s = (n_batches - 1) * compute_s / (stages * n_batches)
    shown_s = stages * max(0.0, trip_s + bytes_s - hidden_s)
    share = trip_s / (trip_s + bytes_s)
    return compute_s, shown_s * share, shown_s * (1 - share) + others_bytes / layout.link.bytes_per_s


def token_wire_bytes(plan: Plan, sync: Sync, node: int, sealed: bool) -> tuple[int, int]:
    """Bytes that a generated token puts on the wire of worker `node`: from the root, and to it. sealed: with CURVE."""
    kinds = _step_wire(plan, sync, node, (1, 1), sealed)
    sent = sum(found.wire_bytes for kind, found in kinds.items() if KINDS[kind] == "sent")
    return sent, sum(found.wire_bytes for found in kinds.values()) - sent


def _step_wire(plan: Plan, sync: Sync, node: int, step: StepRows, sealed: bool) -> dict[StepKind, Predicted]:
    n_rows, n_given = step
    asked = (Asked.of(Ask(1), plan.slices[node].vocab),) * n_given
    return predict_step(plan.spec, sync, n_rows, asked, n_pages=pages_for(n_rows), sealed=sealed)
