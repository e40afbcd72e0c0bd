"""Bytes and seconds of the steps of each phase so far, beside what the plan predicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

from dllama_zmq.bus.client_messages import NodeTimes, PhaseTimes, TrafficRow
from dllama_zmq.bus.meter import Meter, Phase
from dllama_zmq.kernels import Batch
from dllama_zmq.root.prediction import Asked, Predicted, StepKind, as_wide_as, predict_more, predict_step
from dllama_zmq.root.recent import Recent
from dllama_zmq.sharding import Ask, Plan
from dllama_zmq.spec import Sync


class Ledger:
    """By phase, since the root began: steps, tokens, sampled rows, bytes predicted by node and kind, and the seconds of
    the last `recent_s` seconds of steps."""

    def __init__(self, plan: Plan, sync: Sync, names: list[str], recent_s: float, sealed: Collection[str] = ()) -> None:
        """sealed: the names of the workers whose connections have CURVE at present."""
        self._plan, self._sealed = plan, sealed
        self._sync = sync
        self._names = names
        self.steps: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.sampled: Counter[str] = Counter()
        self._recent_s = recent_s
        self._recent: dict[str, Recent] = {}
        self._predicted: Counter[tuple[str, str, str, str]] = Counter()

    def add_step(self, phase: Phase, batch: Batch, asks: Mapping[int, Ask]) -> None:
        """Count a finished step."""
        n_tokens, n_pages, n_spans = batch.n_rows, len(batch.page_ids), len(batch.spans)
        self.steps[phase] += 1
        self.tokens[phase] += n_tokens
        self.sampled[phase] += len(asks)
        spec, sync, step = self._plan.spec, self._sync, self._step()
        self._predict(
            phase,
            asks,
            lambda asked, sealed: predict_step(spec, sync, n_tokens, asked, step, n_pages, n_spans, sealed),
        )

    def add_more(self, phase: Phase, n_tokens: int, asks: Mapping[int, Ask]) -> None:
        """Count a request for more candidates: `asks` of the last step, of `n_tokens` tokens, were sent again."""
        spec, step = self._plan.spec, self._step()
        self._predict(phase, asks, lambda asked, sealed: predict_more(spec, n_tokens, asked, step, sealed))

    def add_times(self, phase: Phase, n_tokens: int, wall_s: float, nodes: Mapping[str, NodeTimes]) -> None:
        """Add the seconds of one step, and of each node in it."""
        recent = self._recent.get(phase)
        if recent is None:
            recent = self._recent[phase] = Recent(self._recent_s)
        recent.add(n_tokens, wall_s, nodes)

    def recent(self) -> dict[str, PhaseTimes]:
        """The last steps of each phase."""
        return {phase: recent.times() for phase, recent in self._recent.items()}

    def traffic(self, meter: Meter) -> list[TrafficRow]:
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
                predicted_payload_bytes=self._predicted[tally.node, tally.phase, tally.kind, "payload"],
                predicted_wire_bytes=self._predicted[tally.node, tally.phase, tally.kind, "wire"],
            )
            for tally in meter.tallies()
        ]

    def _predict(
        self,
        phase: Phase,
        asks: Mapping[int, Ask],
        predict: Callable[[tuple[Asked, ...], bool], dict[StepKind, Predicted]],
    ) -> None:
        for name, part in zip(self._names, self._plan.slices[1:], strict=True):
            asked = tuple(Asked.of(ask, part.vocab) for ask in asks.values())
            for kind, predicted in predict(asked, name in self._sealed).items():
                self._predicted[name, phase, kind, "payload"] += predicted.payload_bytes
                self._predicted[name, phase, kind, "wire"] += predicted.wire_bytes

    def _step(self) -> int:
        """A step number that msgpack writes in as many bytes as the last one."""
        return as_wide_as(self.steps.total())
