"""A loaded worker's part of the model: runs a step, and answers what the root asks of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from dllama_zmq.bus.arrays import EncodedArray, decode_array, encode_floats, encode_plain
from dllama_zmq.bus.messages import Frame, MoreCandidates, Step
from dllama_zmq.bus.star_worker import StarWorker
from dllama_zmq.errors import ProtocolError
from dllama_zmq.kernels import KeptTiles
from dllama_zmq.models import Model
from dllama_zmq.quants import F32
from dllama_zmq.sharding import Ask, NodeCandidates, Plan, best_candidates


class Shard(Struct):
    """One node's model, and its present or last step. tiles: where its repacked weights are kept."""

    model: Model
    plan: Plan
    node: int
    comm: StarWorker
    n_pages: int
    tiles: KeptTiles
    asks: dict[int, Ask] = field(default_factory=dict)  # of the last step, by row, and the logits of these rows
    logits: dict[int, F32] = field(default_factory=dict)

    def step(self, message: Step, frames: Sequence[Frame]) -> None:
        """Run a step, and send its candidates. Raises ProtocolError if it cannot be valid; StepVoid, RootLost."""
        self.tiles.busy()
        x, batch = self.comm.begin(message, frames)
        if batch.max_page >= self.n_pages:
            raise ProtocolError(f"a step with pages {batch.page_ids}; this node has {self.n_pages} pages")
        self.asks = _decode_asks(message, frames, self.plan.spec.vocab_size)
        x = self.model.forward(x, batch, self.comm)
        rows = list(self.asks)
        self.logits = dict(zip(rows, self.model.logits(x[rows]), strict=True)) if rows else {}
        self._answer(self.asks)
        self.tiles.idle()

    def answer_again(self, message: MoreCandidates) -> None:
        """Send candidates of some rows of the last step again, each with the k of `message`."""
        if unknown := [row for row, _ in message.again if row not in self.asks]:
            raise ProtocolError(f"more candidates are asked for in rows {unknown}, for which the step asks nothing")
        self._answer({row: replace(self.asks[row], k=k) for row, k in message.again})

    def _answer(self, asks: Mapping[int, Ask]) -> None:
        if not asks:
            self.comm.answer([])
            return
        logits = np.stack([self.logits[row] for row in asks])
        best = best_candidates(logits, list(asks.values()), self.plan.slices[self.node].vocab.start)
        self.comm.answer(_encode_answers(best))


def _decode_asks(message: Step, frames: Sequence[Frame], vocab_size: int) -> dict[int, Ask]:
    """The asks of a step by row, for a vocabulary of that many ids. Raises ProtocolError if they cannot be valid."""
    n_listed, n_masks = sum(ask.n_listed for ask in message.asks), sum(ask.masked for ask in message.asks)
    arrays = list(zip(message.arrays[2:], frames[2:], strict=True))
    if len(arrays) != bool(n_listed) + bool(n_masks):
        raise ProtocolError(f"a step with {len(arrays)} more arrays for {n_listed} listed ids and {n_masks} masks")
    ids = decode_array(*arrays[0], "i32", (1, n_listed))[0] if n_listed else np.empty(0, np.int32)
    masks = decode_array(*arrays[-1], "u8", (n_masks, (vocab_size + 7) // 8)) if n_masks else ()
    asks, at, left = {}, 0, iter(masks)
    for ask in message.asks:
        listed = ids[at : at + ask.n_listed] if ask.n_listed else None
        if listed is not None and (listed[0] < 0 or listed[-1] >= vocab_size or (listed[1:] <= listed[:-1]).any()):
            raise ProtocolError(
                f"a step that lists ids for row {ask.row} that do not ascend from 0 to {vocab_size - 1}"
            )
        at += ask.n_listed
        asks[ask.row] = Ask(ask.k, ask.temperature, ask.logprobs, listed, next(left) if ask.masked else None)
    return asks


def _encode_answers(rows: Sequence[NodeCandidates]) -> list[EncodedArray]:
    """The arrays of a Candidates message: ids, logits and log-sum-exps, one row after another."""
    ids, logits = [row.ids for row in rows], list(chain.from_iterable((row.logits, row.listed) for row in rows))
    sums = np.array([(row.log_sum_exp, row.raw_log_sum_exp) for row in rows])
    return [
        encode_plain(np.concatenate(ids)[None], "i32"),
        encode_floats(np.concatenate(logits)[None], "f32"),
        encode_plain(sums, "f64"),
    ]
