"""Bytes and seconds of the steps of each phase so far, beside what the plan predicts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from dllama_zmq.bus.client_messages import NodeTimes, PhaseTimes, TrafficRow
from dllama_zmq.bus.meter import Meter
from dllama_zmq.kernels import Batch
from dllama_zmq.root.prediction import Asked, Predicted, StepKind, as_wide_as, predict_more, predict_step
from dllama_zmq.root.recent import Recent
from dllama_zmq.sharding import Ask, Plan
from dllama_zmq.spec import Sync


class Ledger:
    """By phase, since the root began: steps, tokens, sampled rows, bytes predicted by node and kind, and the seconds of
    the last `recent_s` seconds of steps."""

    def __init__(self, plan: Plan, sync: Sync, names: Sequence[str], recent_s: float, meter: Meter) -> None:
        """names: the workers. meter: says the phase of each step."""
        self._plan, self._sync, self._names, self._meter = plan, sync, names, meter
        self.steps: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.sampled: Counter[str] = Counter()
        self._recent: defaultdict[str, Recent] = defaultdict(lambda: Recent(recent_s))
        self._payload: Counter[tuple[str, str, str]] = Counter()  # predicted, by worker, phase and kind
        self._wire: Counter[tuple[str, str, str]] = Counter()

    def add_step(self, batch: Batch, asks: Mapping[int, Ask], wall_s: float, nodes: dict[str, NodeTimes]) -> None:
        """Count a finished step, its seconds, and those of each node in it."""
        phase, n_tokens, n_pages, n_spans = self._meter.phase, batch.n_rows, len(batch.page_ids), len(batch.spans)
        self.steps[phase] += 1
        self.tokens[phase] += n_tokens
        self.sampled[phase] += len(asks)
        self._recent[phase].add(n_tokens, wall_s, nodes)
        spec, sync, step = self._plan.spec, self._sync, self._step()
        for name, asked, sealed in self._asked(asks):
            self._add(name, predict_step(spec, sync, n_tokens, asked, step, n_pages, n_spans, sealed))

    def add_more(self, n_tokens: int, asks: Mapping[int, Ask]) -> None:
        """Count a request for more candidates: `asks` of the last step, of `n_tokens` tokens, were sent again."""
        for name, asked, sealed in self._asked(asks):
            self._add(name, predict_more(self._plan.spec, n_tokens, asked, self._step(), sealed))

    def recent(self) -> dict[str, PhaseTimes]:
        """The last steps of each phase."""
        return {phase: recent.times() for phase, recent in self._recent.items()}

    def traffic(self) -> list[TrafficRow]:
        """Every row of the meter with its prediction, by worker."""
        return [
            TrafficRow(
                node=tally.node,
                phase=tally.phase,
                direction=tally.direction,
                kind=tally.kind,
                messages=tally.messages,
                payload_bytes=tally.payload_bytes,
                wire_bytes=tally.wire_bytes,
                predicted_payload_bytes=self._payload[tally.node, tally.phase, tally.kind],
                predicted_wire_bytes=self._wire[tally.node, tally.phase, tally.kind],
            )
            for tally in self._meter.tallies()
        ]

    def _asked(self, asks: Mapping[int, Ask]) -> Iterator[tuple[str, tuple[Asked, ...], bool]]:
        """Each worker's name, what it is asked, and whether its connection has CURVE at present."""
        for name, part in zip(self._names, self._plan.slices[1:], strict=True):
            yield name, tuple(Asked.of(ask, part.vocab) for ask in asks.values()), name in self._meter.sealed

    def _add(self, name: str, kinds: Mapping[StepKind, Predicted]) -> None:
        for kind, predicted in kinds.items():
            self._payload[name, self._meter.phase, kind] += predicted.payload_bytes
            self._wire[name, self._meter.phase, kind] += predicted.wire_bytes

    def _step(self) -> int:
        """A step number that msgpack writes in as many bytes as the last one."""
        return as_wide_as(self.steps.total())
