"""What one step will put on the bus between the root and one worker: messages, payload, wire. Held against the meter.

Payload comes from the plan (`sharding/traffic.py`); wire adds the headers, encoded with numbers as wide as the real
ones, and ZMTP framing. The width of a Step's position is not known here: it may be off by a byte or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dllama_zmq.bus.messages import ArrayHead, ArrayType, Candidates, Message, More, Partial, Step, Sum, Want, encode
from dllama_zmq.bus.meter import Direction, wire_bytes
from dllama_zmq.models import micro_batches
from dllama_zmq.sharding import candidate_bytes, step_traffic
from dllama_zmq.spec import ModelSpec, Sync

StepKind = Literal["step", "sum", "partial", "candidates", "more"]
KINDS: dict[StepKind, Direction] = {
    "step": "sent", "sum": "sent", "partial": "received", "candidates": "received", "more": "sent",
}  # fmt: skip
"""The messages of steps, and which way they go as the root sees it."""

_EPOCH, _POSITION = 1_800_000_000_000, 200


@dataclass(frozen=True, slots=True)
class Predicted:
    """Messages, payload and wire bytes of one kind."""

    messages: int
    payload_bytes: int
    wire_bytes: int


def as_wide_as(number: int) -> int:
    """The largest number that msgpack writes in as many bytes as `number`: few of them stand for all."""
    return next(largest for largest in (0x7F, 0xFF, 0xFFFF, 0xFFFFFFFF, 1 << 62) if number <= largest)


@lru_cache(maxsize=1024)
def predict_step(
    spec: ModelSpec, sync: Sync, n_tokens: int, vocab_rows: int, n_sampled: int, k: int, step: int = 1000
) -> dict[StepKind, Predicted]:
    """One step of `n_tokens` tokens, `n_sampled` of whose rows are answered with `k` candidates (0: every logit) by a
    worker that holds `vocab_rows` of the vocabulary. `step` is its number since the root began."""
    traffic = step_traffic(spec, sync, n_tokens, vocab_rows, (k,) * n_sampled)
    batches = micro_batches(spec, n_tokens)
    stages = 2 * spec.n_layers * len(batches)
    x = [ArrayHead(sync, n_tokens, spec.dim)]
    wants = [Want(n_tokens - 1, 0.5)] * n_sampled
    begin = Step(_EPOCH, step, [(0, _POSITION, n_tokens)], wants, k, x)
    middle = stages // 2 + 1  # most stages' numbers are as wide as that of the one in the middle
    rows = [[ArrayHead(sync, batch.stop - batch.start, spec.dim)] for batch in batches]
    totals = sum(_wire(Sum(_EPOCH, step, middle, heads), heads) for heads in rows)
    parts = sum(_wire(Partial(_EPOCH, step, middle, heads), heads) for heads in rows)
    return {
        "step": Predicted(1, traffic.step_sent, _wire(begin, x)),
        "sum": Predicted(stages, traffic.sums_sent, 2 * spec.n_layers * totals),
        "partial": Predicted(stages, traffic.partials_received, 2 * spec.n_layers * parts),
        "candidates": _candidates(step, stages + 1, n_sampled, k, vocab_rows),
    }


@lru_cache(maxsize=1024)
def predict_more(
    spec: ModelSpec, n_tokens: int, vocab_rows: int, n_sampled: int, k: int, step: int
) -> dict[StepKind, Predicted]:
    """What asking for `k` candidates of the last step's rows adds to it; the arguments are those of `predict_step`."""
    stage = 2 * spec.n_layers * len(micro_batches(spec, n_tokens)) + 2
    return {
        "more": Predicted(1, 0, _wire(More(_EPOCH, step, stage, k), [])),
        "candidates": _candidates(step, stage, n_sampled, k, vocab_rows),
    }


def _candidates(step: int, stage: int, n_rows: int, k: int, vocab_rows: int) -> Predicted:
    heads = _answer_heads(n_rows, k, vocab_rows) if n_rows else []
    wire = _wire(Candidates(_EPOCH, step, stage, 0.5, 0.5, 0.5, heads), heads)
    return Predicted(1, n_rows * candidate_bytes(k, vocab_rows), wire)


def _answer_heads(n_rows: int, k: int, vocab_rows: int) -> list[ArrayHead]:
    if k == 0:
        return [ArrayHead("f32", n_rows, vocab_rows)]
    types: Sequence[tuple[ArrayType, int]] = (("i32", min(k, vocab_rows)), ("f32", min(k, vocab_rows)), ("f64", 1))
    return [ArrayHead(array_type, n_rows, columns) for array_type, columns in types]


def _wire(message: Message, heads: Sequence[ArrayHead]) -> int:
    return wire_bytes([encode(message)[0], *(bytes(head.nbytes) for head in heads)])
