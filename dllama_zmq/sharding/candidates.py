"""Sampling without the logits: the ask of a row, each node's answer, and the answers of all nodes merged.

A node sends its best k tokens. Below its last candidate it may have tokens that it did not send, so a merged list is
exact only down to the first candidate that was the last of a truncated list. `n_sure` counts the exact ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from dllama_zmq.errors import FormatError
from dllama_zmq.quants import F32, U8

I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]
_NONE: F32 = np.empty(0, np.float32)


class Reply(NamedTuple):
    """How many ids and logits one node answers an ask with. complete: these are all that it could answer with."""

    n_ids: int
    n_logits: int
    complete: bool


class Ask(Struct, frozen=True, eq=False):
    """The request of one row to every node. The ids of the row are those of the vocabulary.

    k: number of best candidates; 0: all logits instead, and what follows applies only once they are merged.
    temperature: that of the log-sum-exp; 0: none. logprobs: the log-sum-exp of all raw logits at temperature 1 too.
    listed (n,): ascending ids whose logits are sent. They are left out of the candidates and of the log-sum-exp at
    `temperature`, so that others can take their place there.
    mask ((V + 7) // 8,): bit i % 8 of byte i // 8 says that id i is allowed; the others are left out likewise.
    """

    k: int
    temperature: float = 0.0
    logprobs: bool = False
    listed: I32 | None = None
    mask: U8 | None = None

    @property
    def plain(self) -> bool:
        """No id is left out."""
        return self.listed is None and self.mask is None

    def allowed(self, ids: I32) -> npt.NDArray[np.bool_]:
        """Which of `ids` (n,) the mask allows."""
        if self.mask is None:
            return np.ones(len(ids), np.bool_)
        allowed: npt.NDArray[np.bool_] = (self.mask[ids >> 3] >> (ids & 7) & 1).astype(np.bool_)
        return allowed

    def reply(self, start: int, stop: int) -> Reply:
        """The size of the answer of a node that holds the ids `start` to `stop` - 1."""
        if self.k == 0:
            return Reply(0, stop - start, True)
        listed = self.listed_in(start, stop)
        n_left = stop - start if self.plain else int(np.count_nonzero(self._kept(start, stop, listed)))
        n = min(self.k, n_left)
        return Reply(n, n + len(listed), n == n_left)

    def listed_in(self, start: int, stop: int) -> I32:
        """The listed ids of `start` to `stop` - 1, from `start` on."""
        if self.listed is None:
            return np.empty(0, np.int32)
        first, last = np.searchsorted(self.listed, (start, stop))
        return self.listed[first:last] - np.int32(start)

    def _kept(self, start: int, stop: int, listed: I32) -> npt.NDArray[np.bool_]:
        """Which of the ids `start` to `stop` - 1 can be candidates."""
        if self.mask is None:
            kept = np.ones(stop - start, np.bool_)
        else:
            first = start // 8
            bits = np.unpackbits(self.mask[first : (stop + 7) // 8], bitorder="little")
            kept = bits[start - 8 * first : stop - 8 * first].astype(np.bool_)
        kept[listed] = False
        return kept

    def candidates(self, row: F32, first_id: int, listed: I32) -> tuple[F32, I32 | None, int]:
        """A node's logits (V',), with -infinity for ids that are no candidates, and the number of candidates. If fewer
        than half are candidates, only their logits, with their places in the row, ascending: most masks allow few.
        """
        kept = self._kept(first_id, first_id + len(row), listed)
        n_kept = int(np.count_nonzero(kept))
        if 2 * n_kept < len(row):
            places = np.flatnonzero(kept).astype(np.int32)
            return row[places], places, n_kept
        candidates = row.copy()
        candidates[~kept] = -np.inf
        return candidates, None, n_kept


class NodeCandidates(Struct, frozen=True, eq=False):
    """One node's answer for one row: ids (n,) and logits (n,), best first, and the logits of its listed ids.

    Where all logits were asked for, there are no ids, and `logits` are those of all the node's ids in order.
    complete: no other ids of the node can be candidates.
    """

    ids: I32
    logits: F32
    listed: F32
    log_sum_exp: float
    raw_log_sum_exp: float
    complete: bool


class RowCandidates(Struct, frozen=True, eq=False):
    """One row's best tokens over all nodes, best first, ties by lower id. Only the first `n_sure` are exact.

    listed: the logits of the ask's listed ids, which are not among the others. complete: there are no other candidates.
    log_sum_exp: of the candidates, sent or not, at the ask's temperature: exp(logit / temperature - log_sum_exp) is a
    probability. raw_log_sum_exp: of all logits at temperature 1. Each is 0 where it was not asked for.
    """

    ids: I32
    logits: F32 | F64
    listed: F32
    log_sum_exp: float
    raw_log_sum_exp: float
    n_sure: int
    complete: bool

    def below(self, n_ids: int) -> RowCandidates:
        """The candidates with ids below `n_ids`, for a model whose higher ids only pad its vocabulary.

        The new `n_sure` counts those among the first `n_sure`; it may be 0. The log-sum-exps stay those of the whole
        row, because the logits of padding that was not sent are not known.
        """
        kept = self.ids < n_ids
        if kept.all():
            return self
        n_sure = int(np.count_nonzero(kept[: self.n_sure]))
        return replace(self, ids=self.ids[kept], logits=self.logits[kept], n_sure=n_sure)

    def with_listed(self, ids: I32, logits: F64, temperature: float) -> RowCandidates:
        """The candidates with the listed `ids` (n,) among them, whose logits are now `logits` (n,).

        Only exact ones remain: the new `n_sure` counts all. log_sum_exp is that of these and of all others.
        """
        known, of_known = self.ids[: self.n_sure], self.logits[: self.n_sure].astype(np.float64)
        all_ids, all_logits = np.concatenate([known, ids]), np.concatenate([of_known, logits])
        order = np.lexsort((all_ids, -all_logits))
        if not self.complete:  # logits that were not sent are no larger than the last one that was
            end = np.flatnonzero(order == self.n_sure - 1)[0] + 1 if self.n_sure else 0
            order = order[:end]
        total = self.log_sum_exp
        if temperature > 0:
            total = float(np.logaddexp(total, _log_sum_exp(logits, temperature)))
        ids, logits = all_ids[order], all_logits[order]
        return replace(self, ids=ids, logits=logits, listed=_NONE, log_sum_exp=total, n_sure=len(order))


def best_candidates(logits: F32, asks: Sequence[Ask], first_id: int) -> list[NodeCandidates]:
    """A node's answers to `asks` from its logits (R, V'), a row for each; column 0 is the token `first_id`.

    Raises FormatError for logits that are infinite or NaN.
    """
    if not np.isfinite(logits).all():
        raise FormatError(
            "the logits are not finite numbers: the model's weights are damaged, or too large for this sync"
        )
    return [_answer(row, ask, first_id) for row, ask in zip(logits, asks, strict=True)]


def _answer(row: F32, ask: Ask, first_id: int) -> NodeCandidates:
    k = ask.k
    if k == 0:
        return NodeCandidates(np.empty(0, np.int32), row, _NONE, 0.0, 0.0, complete=True)
    raw_sum = _log_sum_exp(row, 1.0) if ask.logprobs else 0.0
    candidates, places, n_left, listed = row, None, len(row), _NONE
    if not ask.plain:
        places_listed = ask.listed_in(first_id, first_id + len(row))
        candidates, places, n_left = ask.candidates(row, first_id, places_listed)
        listed = row[places_listed]
    # Every token of greedy decoding comes here, with caches that weights have emptied: few calls.
    order = np.array([candidates.argmax()]) if k == 1 and n_left else _best(candidates, min(k, n_left))
    total = _log_sum_exp(candidates, ask.temperature) if ask.temperature > 0 else 0.0
    ids = ((order if places is None else places[order]) + first_id).astype(np.int32)
    return NodeCandidates(ids, candidates[order], listed, total, raw_sum, k >= n_left)


def merge_candidates(nodes: Sequence[NodeCandidates], ask: Ask, first_ids: Sequence[int]) -> RowCandidates:
    """Merge all nodes' answers to one ask into one list. `first_ids`: the first id of each node.

    Raises FormatError for logits that are infinite or NaN, where all were asked for.
    """
    if ask.k == 0:
        every = replace(ask, k=max(len(n.logits) for n in nodes))
        nodes = [best_candidates(n.logits[None], [every], i)[0] for n, i in zip(nodes, first_ids, strict=True)]
    if len(nodes) == 1:
        n = nodes[0]
        return RowCandidates(n.ids, n.logits, n.listed, n.log_sum_exp, n.raw_log_sum_exp, len(n.ids), n.complete)
    ids, logits = np.concatenate([n.ids for n in nodes]), np.concatenate([n.logits for n in nodes])
    order = np.lexsort((ids, -logits))
    ids, logits = ids[order], logits[order]
    # Nothing is known after the last candidate of a truncated list, not even of equal logits with higher ids.
    ends = [int((ids == n.ids[-1]).argmax()) + 1 for n in nodes if not n.complete]
    return RowCandidates(
        ids,
        logits,
        np.concatenate([n.listed for n in nodes]) if ask.listed is not None else _NONE,
        float(np.logaddexp.reduce([n.log_sum_exp for n in nodes])) if ask.temperature > 0 else 0.0,
        float(np.logaddexp.reduce([n.raw_log_sum_exp for n in nodes])) if ask.logprobs else 0.0,
        min(ends, default=len(ids)),
        complete=not ends,
    )


def _log_sum_exp(row: F32 | F64, temperature: float) -> float:
    """log(sum(exp(row / temperature))) in float64; -infinity if `row` is empty or all of it is left out."""
    scaled = row.astype(np.float64) / temperature
    top = scaled.max(initial=-np.inf)
    return float(top + np.log(np.exp(scaled - top).sum())) if top > -np.inf else -math.inf


def _best(row: F32, k: int) -> npt.NDArray[np.int64]:
    """Indices of the `k` largest, largest first, ties by lower index."""
    if k < len(row):
        threshold = np.partition(row, len(row) - k)[len(row) - k] if k else np.inf
        above = np.flatnonzero(row > threshold)
        level = np.flatnonzero(row == threshold)[: k - len(above)]
        chosen = np.concatenate([above, level])
    else:
        chosen = np.arange(len(row))
    return chosen[np.lexsort((chosen, -row[chosen]))]
