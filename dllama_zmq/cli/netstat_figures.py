"""The figures of netstat: a cluster's traffic from its Status, and a model's predicted traffic from its plan.

They are msgspec structs, so `--json` prints what the tables show. Knows no socket and no terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct, convert
from msgspec.structs import asdict

from dllama_zmq.bus.client_messages import NodeTimes, Status, TrafficRow
from dllama_zmq.models import types_in_words
from dllama_zmq.node_config import Security
from dllama_zmq.root.prediction import KINDS, Asked, Predicted, predict_step
from dllama_zmq.sampling import Sampling
from dllama_zmq.sharding import Ask, Plan, check_sync
from dllama_zmq.spec import ModelSpec, Sync

TOKEN_PHASES = ("prompt", "mixed", "prediction")
BOTH = ("sent", "received")
TOTAL = "total"
OTHER = "other"
_WAYS: list[tuple[str, str]] = list(KINDS.items())
WIRE_TOLERANCE = 0.01
"""Measured wire bytes may differ from predicted ones by this share; payload must be equal."""

GREEDY_K = Sampling().initial_k()
SAMPLED_K = Sampling(temperature=0.8, top_p=0.9).initial_k()
"""Candidates that each node is asked for: greedy, and with the default sampling of `generate`."""


# --- a running cluster -----------------------------------------------------------------------------------------------


class Messages(Struct, frozen=True, kw_only=True):
    """Sums over the messages of one kind between the root and one worker; `sent` is from the root to the worker."""

    kind: str
    direction: str
    messages: int
    payload_bytes: int
    wire_bytes: int


class Line(Messages, frozen=True, kw_only=True):
    """Messages that came with tokens. Only the kinds of steps are predicted; for others these fields are None."""

    payload_bytes_per_token: float | None
    wire_bytes_per_token: float | None
    predicted_payload_bytes: int | None
    predicted_wire_bytes: int | None
    agrees: bool | None


class WorkerTraffic(Struct, frozen=True):
    """The traffic between the root and one worker, in each phase with tokens and outside all requests (`setup`)."""

    worker: str
    phases: dict[str, list[Line]]
    setup: list[Messages]


class Waiting(Struct, frozen=True, kw_only=True):
    """Seconds of one node in the last steps of one phase. wait_share: the share that it waited; None if nothing ran.

    waited_for_s: the others waited because this node was last. Of these, paused_s: its program did not run when it had
    to compute; messages_s: its message was late although it had computed; the rest: it computed longer.
    """

    node: str
    phase: str
    compute_s: float
    wait_s: float
    wait_share: float | None
    waited_for_s: float
    paused_s: float
    messages_s: float


class LastOne(Struct, frozen=True):
    """The node that the others waited for in the last steps of a phase, and its share of all waiting."""

    phase: str
    node: str
    share: float


class Window(Struct, frozen=True):
    """The number of last steps of one phase, and their seconds."""

    phase: str
    steps: int
    wall_s: float


class Report(Struct, frozen=True):
    """The traffic of a running cluster. Unfinished steps and resent messages are not predicted."""

    cluster: str
    state: str
    note: str
    model: str
    sync: str
    nodes: int
    tokens: dict[str, int]
    steps: dict[str, int]
    unfinished_steps: int
    sent_again: int
    agrees: bool | None
    workers: list[WorkerTraffic]
    all_workers: dict[str, list[Line]]
    oversubscribed: bool
    recent: list[Window]
    waiting: list[Waiting]
    slowest: list[LastOne]


def measured(status: Status) -> Report:
    """The traffic of the cluster that sent `status`, and what its plan predicts."""
    shown = [phase for phase in TOKEN_PHASES if phase != "mixed" or status.steps.get(phase)]
    tokens = {phase: status.tokens.get(phase, 0) for phase in shown}
    steps = {phase: status.steps.get(phase, 0) for phase in shown}
    phases = [phase for phase in shown if steps[phase] or any(row.phase == phase for row in status.traffic)]
    names = dict.fromkeys([*(node.name for node in status.nodes[1:]), *(row.node for row in status.traffic)])
    workers = []
    for name in names:
        rows = [row for row in status.traffic if row.node == name]
        by_phase = {phase: _lines(rows, phase, tokens[phase]) for phase in phases}
        setup = [row for row in rows if row.phase not in TOKEN_PHASES]
        workers.append(WorkerTraffic(name, by_phase, [convert(row, Messages, from_attributes=True) for row in setup]))
    lines = [line for worker in workers for phase in phases for line in worker.phases[phase]]
    done = sum(steps.values())
    # every worker is sent every step, some twice; the worker with the fewest was sent each step once
    begun = min((_count(status.traffic, node.name, "step") for node in status.nodes[1:]), default=done)
    recent = {phase: status.recent[phase] for phase in TOKEN_PHASES if phase in status.recent}
    verdicts = [line.agrees for line in lines if line.agrees is not None]
    return Report(
        cluster=status.name,
        state=status.state,
        note=status.note,
        model=status.model,
        sync=status.sync,
        nodes=len(status.nodes),
        tokens=tokens,
        steps=steps,
        unfinished_steps=begun - done,
        sent_again=sum(_count(status.traffic, name, "resend") for name in names),
        agrees=all(verdicts) if verdicts else None,
        workers=workers,
        all_workers={phase: _lines(status.traffic, phase, tokens[phase]) for phase in phases},
        oversubscribed=status.oversubscribed,
        recent=[Window(phase, times.steps, times.wall_s) for phase, times in recent.items()],
        waiting=[
            _waiting(node.name, phase, times.nodes.get(node.name, NodeTimes()))
            for phase, times in recent.items()
            for node in status.nodes
        ],
        slowest=[LastOne(phase, times.slowest, times.share) for phase, times in recent.items() if times.slowest],
    )


def _lines(rows: Sequence[TrafficRow], phase: str, n_tokens: int) -> list[Line]:
    """A line for each kind of a step's messages; for each direction a total of these and one line for other kinds."""
    rows = [row for row in rows if row.phase == phase]
    others = [row for row in rows if (row.kind, row.direction) not in _WAYS]
    of_steps = [row for row in rows if row not in others]
    groups = [(kind, way, [row for row in of_steps if row.kind == kind]) for kind, way in _WAYS]
    groups += [(TOTAL, way, [row for row in of_steps if row.direction == way]) for way in BOTH]
    groups += [(OTHER, way, [row for row in others if row.direction == way]) for way in BOTH]
    return [_line(kind, way, group, n_tokens) for kind, way, group in groups if group]


def _line(kind: str, direction: str, rows: Sequence[TrafficRow], n_tokens: int) -> Line:
    payload, wire = sum(row.payload_bytes for row in rows), sum(row.wire_bytes for row in rows)
    planned_payload = sum(row.predicted_payload_bytes for row in rows)
    planned_wire = sum(row.predicted_wire_bytes for row in rows)
    agrees = payload == planned_payload and abs(wire - planned_wire) <= WIRE_TOLERANCE * planned_wire
    is_planned = kind != OTHER
    return Line(
        kind=kind,
        direction=direction,
        messages=sum(row.messages for row in rows),
        payload_bytes=payload,
        wire_bytes=wire,
        payload_bytes_per_token=payload / n_tokens if n_tokens else None,
        wire_bytes_per_token=wire / n_tokens if n_tokens else None,
        predicted_payload_bytes=planned_payload if is_planned else None,
        predicted_wire_bytes=planned_wire if is_planned else None,
        agrees=agrees if is_planned else None,
    )


def _count(rows: Iterable[TrafficRow], name: str, kind: str) -> int:
    """Messages of one kind to or from one worker."""
    return sum(row.messages for row in rows if row.node == name and row.kind == kind)


def _waiting(node: str, phase: str, times: NodeTimes) -> Waiting:
    whole = times.compute_s + times.wait_s
    return Waiting(node=node, phase=phase, wait_share=times.wait_s / whole if whole else None, **asdict(times))


# --- a prediction ----------------------------------------------------------------------------------------------------


class Flow(Struct, frozen=True):
    """Bytes of one generated token, both ways. overhead: wire bytes beyond the payload, as a share of the payload."""

    sent_bytes: int
    received_bytes: int
    sent_wire_bytes: int
    received_wire_bytes: int
    overhead: float


class Share(Struct, frozen=True):
    """The flows between the root and some workers. A total adds the layers, x, and the candidates of its name."""

    n_workers: int
    flows: dict[str, Flow]


class Prediction(Struct, frozen=True):
    """The predicted traffic of a model over a number of nodes, each on a computer of its own."""

    model: str
    weight_type: str
    nodes: int
    sync: str
    security: str
    greedy_k: int
    sampled_k: int
    one_worker: Share | None
    all_workers: Share | None


def predicted(model: str, spec: ModelSpec, n_nodes: int, sync: Sync, security: Security) -> Prediction:
    """The predicted traffic of a token of `spec` over `n_nodes` nodes. Raises PlanError."""
    plan = Plan.make(spec, n_nodes)
    check_sync(spec, sync)
    workers = [_step_of(plan, sync, node, security == "curve") for node in range(1, n_nodes)]
    return Prediction(
        model=model,
        weight_type=types_in_words(spec),
        nodes=n_nodes,
        sync=sync,
        security=security,
        greedy_k=GREEDY_K,
        sampled_k=SAMPLED_K,
        one_worker=_share(workers[:1]) if workers else None,
        all_workers=_share(workers) if workers else None,
    )


def _step_of(plan: Plan, sync: Sync, node: int, sealed: bool) -> dict[str, Predicted]:
    """One token's messages to and from one worker, with greedy and with sampled candidates."""
    vocab = plan.slices[node].vocab
    steps = {
        name: predict_step(plan.spec, sync, 1, (Asked.of(Ask(k), vocab),), sealed=sealed)
        for name, k in (("greedy", GREEDY_K), ("sampled", SAMPLED_K))
    }
    kinds: dict[str, Predicted] = {kind: steps["greedy"][kind] for kind in ("step", "sum", "partial")}
    return kinds | {f"candidates_{name}": step["candidates"] for name, step in steps.items()}


def _share(workers: Sequence[dict[str, Predicted]]) -> Share:
    flows = {"layers": _flow(workers, ["sum"], ["partial"]), "step": _flow(workers, ["step"], [])}
    for way in ("greedy", "sampled"):
        flows[f"candidates_{way}"] = _flow(workers, [], [f"candidates_{way}"])
        flows[f"total_{way}"] = _flow(workers, ["step", "sum"], ["partial", f"candidates_{way}"])
    return Share(len(workers), flows)


def _flow(workers: Sequence[dict[str, Predicted]], sent: Sequence[str], received: Sequence[str]) -> Flow:
    payload = [sum(worker[kind].payload_bytes for worker in workers for kind in way) for way in (sent, received)]
    wire = [sum(worker[kind].wire_bytes for worker in workers for kind in way) for way in (sent, received)]
    return Flow(payload[0], payload[1], wire[0], wire[1], sum(wire) / sum(payload) - 1)
