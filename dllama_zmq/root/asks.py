"""Encode the asks of a step for the workers, decode their answers, and merge the answers of all nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dllama_zmq.bus.arrays import EncodedArray, decode_array, encode_plain
from dllama_zmq.bus.messages import ArrayHead, Frame, RowAsk
from dllama_zmq.errors import ProtocolError
from dllama_zmq.sharding import Ask, NodeCandidates, Plan, RowCandidates, merge_candidates


def encode_asks(asks: Mapping[int, Ask]) -> tuple[list[RowAsk], list[EncodedArray]]:
    """The asks of a step as they go on the wire: a RowAsk for each row, and the arrays of listed ids and masks."""
    rows = [
        RowAsk(row, a.k, a.temperature, a.logprobs, 0 if a.listed is None else len(a.listed), a.mask is not None)
        for row, a in asks.items()
    ]
    listed = [ask.listed for ask in asks.values() if ask.listed is not None]
    masks = [ask.mask for ask in asks.values() if ask.mask is not None]
    arrays: list[EncodedArray] = []
    if any(map(len, listed)):
        arrays.append(encode_plain(np.concatenate(listed)[None], "i32"))
    if masks:
        arrays.append(encode_plain(np.stack(masks), "u8"))
    return rows, arrays


def decode_answers(
    asks: Sequence[Ask], heads: Sequence[ArrayHead], frames: Sequence[Frame], vocab: slice
) -> list[NodeCandidates]:
    """The answers to `asks` of a node that holds the ids `vocab`. Raises ProtocolError if they are no such answers."""
    if not asks:
        return []
    replies = [ask.reply(vocab.start, vocab.stop) for ask in asks]
    if len(heads) != 3:
        raise ProtocolError(f"{len(heads)} arrays; expected 3")
    all_ids = decode_array(heads[0], frames[0], "i32", (1, sum(reply.n_ids for reply in replies)))[0]
    logits = decode_array(heads[1], frames[1], "f32", (1, sum(reply.n_logits for reply in replies)))[0]
    sums = decode_array(heads[2], frames[2], "f64", (len(asks), 2)).tolist()
    if all_ids.size and (all_ids.min() < vocab.start or all_ids.max() >= vocab.stop):
        raise ProtocolError(f"not of its part of the vocabulary, {vocab.start} to {vocab.stop - 1}")
    rows, id_at, at = [], 0, 0
    for (n_ids, n_logits, complete), (total, raw_total), ask in zip(replies, sums, asks, strict=True):
        ids, of_row = all_ids[id_at : id_at + n_ids], logits[at : at + n_logits]
        id_at, at = id_at + n_ids, at + n_logits
        n_best = n_ids if ask.k else n_logits
        rows.append(NodeCandidates(ids, of_row[:n_best], of_row[n_best:], total, raw_total, complete))
    return rows


def merged(answers: Sequence[Sequence[NodeCandidates]], asks: Mapping[int, Ask], plan: Plan) -> list[RowCandidates]:
    """Merge the answers of all nodes, the root's own first, into one for each row of `asks`."""
    first_ids = [node.vocab.start for node in plan.slices]
    rows = zip(zip(*answers, strict=True), asks.values(), strict=True)
    return [merge_candidates(nodes, ask, first_ids) for nodes, ask in rows]
