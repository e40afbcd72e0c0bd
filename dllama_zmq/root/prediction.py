"""Predict the messages, payload bytes and wire bytes of one step between the root and one worker.

Payload is the arrays, whose sizes their heads say; wire adds the headers, encoded with numbers as wide as the real
ones, and ZMTP framing. Per token and worker the sums sent have 2L * B(D) bytes of payload, and so have the partial sums
received: B(m) = 4m in f32, 2m in f16, 34m/32 in q80. The step's x, the ids of its pages (4 bytes for 64 positions of a
sequence) and the candidates come on top. The width of a Step's position is not known here: it may be off by a byte or
two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from msgspec import Struct

from dllama_zmq.bus.codec import encode
from dllama_zmq.bus.messages import ArrayHead, Candidates, Message, MoreCandidates, Partial, RowAsk, Step, Sum
from dllama_zmq.bus.meter import Direction, frame_bytes, wire_bytes
from dllama_zmq.models import micro_batches
from dllama_zmq.sharding import Ask, Reply
from dllama_zmq.spec import ModelSpec, Sync

StepKind = Literal["step", "sum", "partial", "candidates", "more_candidates"]
KINDS: dict[StepKind, Direction] = {
    "step": "sent",
    "sum": "sent",
    "partial": "received",
    "candidates": "received",
    "more_candidates": "sent",
}
"""The messages of steps, and their direction as the root sees it."""

_EPOCH, _POSITION = 1_800_000_000_000, 200


class Predicted(Struct, frozen=True):
    """Messages, payload and wire bytes of one kind."""

    messages: int
    payload_bytes: int
    wire_bytes: int


class Asked(NamedTuple):
    """A sampled row as counts: those of the ask to a worker, and of the worker's answer."""

    k: int
    n_listed: int
    mask_bytes: int
    reply: Reply

    @classmethod
    def of(cls, ask: Ask, vocab: slice) -> Asked:
        """The counts for a worker that holds the ids `vocab`."""
        n_listed = 0 if ask.listed is None else len(ask.listed)
        return cls(ask.k, n_listed, 0 if ask.mask is None else len(ask.mask), ask.reply(vocab.start, vocab.stop))


def as_wide_as(number: int) -> int:
    """The largest number that msgpack writes in as many bytes as `number`: so that a few encoded headers stand for
    all."""
    return next(largest for largest in (0x7F, 0xFF, 0xFFFF, 0xFFFFFFFF, 1 << 62) if number <= largest)


@lru_cache(maxsize=1024)
def predict_step(
    spec: ModelSpec,
    sync: Sync,
    n_tokens: int,
    asked: tuple[Asked, ...],
    step: int = 1000,
    n_pages: int = 1,
    n_spans: int = 1,
    sealed: bool = False,
) -> dict[StepKind, Predicted]:
    """Predict a step of `n_tokens` tokens. asked: its sampled rows. step: the number of the step since the root
    started. n_pages: page ids of all its spans. sealed: the worker's connections have CURVE."""
    listed, masks = sum(row.n_listed for row in asked), [row.mask_bytes for row in asked if row.mask_bytes]
    arrays = [ArrayHead(sync, n_tokens, spec.dim), ArrayHead("i32", 1, n_pages)]
    arrays += [ArrayHead("i32", 1, listed)] if listed else []
    arrays += [ArrayHead("u8", len(masks), masks[0])] if masks else []
    asks = [
        RowAsk(n_tokens - len(asked) + i, row.k, 0.5, False, row.n_listed, row.mask_bytes > 0)
        for i, row in enumerate(asked)
    ]
    begin = Step(_EPOCH, step, [(_POSITION, n_tokens)] * n_spans, asks, arrays)
    halves = 2 * spec.n_layers  # of layers, each with a stage for every micro-batch
    rows = [[ArrayHead(sync, batch.stop - batch.start, spec.dim)] for batch in micro_batches(spec, n_tokens)]
    stages = halves * len(rows)
    middle = stages // 2 + 1  # most stages' numbers are as wide as that of the one in the middle
    return {
        "step": _predicted([begin], sealed),
        "sum": _predicted([Sum(_EPOCH, step, middle, heads) for heads in rows], sealed, halves),
        "partial": _predicted([Partial(_EPOCH, step, middle, heads) for heads in rows], sealed, halves),
        "candidates": _candidates(step, stages + 1, asked, sealed),
    }


@lru_cache(maxsize=1024)
def predict_more(
    spec: ModelSpec, n_tokens: int, asked: tuple[Asked, ...], step: int, sealed: bool = False
) -> dict[StepKind, Predicted]:
    """Predict the cost of asking some rows of the last step again. Arguments as for `predict_step`."""
    stage = 2 * spec.n_layers * len(micro_batches(spec, n_tokens)) + 2
    request = MoreCandidates(_EPOCH, step, stage, [(n_tokens - 1, row.k) for row in asked])
    return {
        "more_candidates": _predicted([request], sealed),
        "candidates": _candidates(step, stage, asked, sealed),
    }


def _candidates(step: int, stage: int, asked: Sequence[Asked], sealed: bool) -> Predicted:
    n_ids, n_logits = sum(row.reply.n_ids for row in asked), sum(row.reply.n_logits for row in asked)
    answer = [ArrayHead("i32", 1, n_ids), ArrayHead("f32", 1, n_logits), ArrayHead("f64", len(asked), 2)]
    return _predicted([Candidates(_EPOCH, step, stage, 0.5, 0.5, 0.5, answer if asked else [])], sealed)


def _predicted(messages: Sequence[Message], sealed: bool, times: int = 1) -> Predicted:
    """Messages of one kind, each of which is sent `times` times."""
    payload = wire = 0
    for message in messages:
        frames = [head.nbytes for head in getattr(message, "arrays", [])]
        payload += sum(frames)
        wire += wire_bytes(encode(message), sealed) + sum(frame_bytes(n_bytes, sealed) for n_bytes in frames)
    return Predicted(times * len(messages), times * payload, times * wire)
