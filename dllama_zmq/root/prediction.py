"""What one step will put on the bus between the root and one worker: messages, payload, wire. Held against the meter.

Payload comes from the plan (`sharding/traffic.py`); wire adds the headers, encoded with values of the usual size, and
ZMTP framing. A header's numbers grow by a few bytes over a cluster's life: that is the 1% of the promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dllama_zmq.bus.messages import ArrayHead, ArrayType, Candidates, Message, Partial, Step, Sum, Want, encode
from dllama_zmq.bus.meter import Direction, wire_bytes
from dllama_zmq.sharding import step_traffic
from dllama_zmq.spec import ModelSpec, Sync

StepKind = Literal["step", "sum", "partial", "candidates"]
KINDS: tuple[tuple[StepKind, Direction], ...] = (
    ("step", "sent"), ("sum", "sent"), ("partial", "received"), ("candidates", "received"),
)  # fmt: skip

_EPOCH, _STEP, _STAGE = 1_800_000_000_000, 1000, 50


@dataclass(frozen=True, slots=True)
class Predicted:
    """Messages, payload and wire bytes of one kind."""

    messages: int
    payload_bytes: int
    wire_bytes: int


@lru_cache(maxsize=1024)
def predict_step(
    spec: ModelSpec, sync: Sync, n_tokens: int, vocab_rows: int, n_sampled: int, k: int
) -> dict[StepKind, Predicted]:
    """One step of `n_tokens` tokens, `n_sampled` of whose rows are answered with `k` candidates (0: every logit) by a
    worker that holds `vocab_rows` of the vocabulary."""
    traffic = step_traffic(spec, sync, n_tokens, vocab_rows, (k,) * n_sampled)
    stages = 2 * spec.n_layers
    x = [ArrayHead(sync, n_tokens, spec.dim)]
    wants = [Want(n_tokens - 1, 0.5)] * n_sampled
    answers = _answer_heads(n_sampled, k, vocab_rows) if n_sampled else []
    step = Step(_EPOCH, _STEP, [(0, _STEP, n_tokens)], wants, k, x)
    end = Candidates(_EPOCH, _STEP, _STAGE, 0.5, 0.5, answers)
    return {
        "step": Predicted(1, traffic.step_sent, _wire(step, x)),
        "sum": Predicted(stages, traffic.sums_sent, stages * _wire(Sum(_EPOCH, _STEP, _STAGE, x), x)),
        "partial": Predicted(stages, traffic.partials_received, stages * _wire(Partial(_EPOCH, _STEP, _STAGE, x), x)),
        "candidates": Predicted(1, traffic.candidates_received, _wire(end, answers)),
    }


def _answer_heads(n_rows: int, k: int, vocab_rows: int) -> list[ArrayHead]:
    if k == 0:
        return [ArrayHead("f32", n_rows, vocab_rows)]
    types: Sequence[tuple[ArrayType, int]] = (("i32", min(k, vocab_rows)), ("f32", min(k, vocab_rows)), ("f64", 1))
    return [ArrayHead(array_type, n_rows, columns) for array_type, columns in types]


def _wire(message: Message, heads: Sequence[ArrayHead]) -> int:
    return wire_bytes([encode(message)[0], *(bytes(head.nbytes) for head in heads)])
