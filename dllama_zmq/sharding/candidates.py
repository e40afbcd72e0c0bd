"""The best tokens of each node, and how they become the best tokens of all: enough to sample from without the logits.

A merged list is exact down to the first candidate that is the last of a list cut short: below that, the node which sent
it may hold better tokens that it did not send. `n_sure` counts what is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dllama_zmq.errors import FormatError
from dllama_zmq.quants import F32

I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NodeCandidates:
    """One node's answer for R rows: ids and logits (R, k), best first; log-sum-exps (R,); `complete`: that is all."""

    ids: I32
    logits: F32
    log_sum_exp: F64
    complete: bool


@dataclass(frozen=True, slots=True)
class RowCandidates:
    """One row's best tokens over all nodes, best first, ties by lower id; the first `n_sure` are surely the best.

    `complete`: these are all the tokens there are.
    log_sum_exp is that of the whole row at the temperature asked for, so that exp(logit / temperature - log_sum_exp) is
    a probability.
    """

    ids: I32
    logits: F32
    log_sum_exp: float
    n_sure: int
    complete: bool

    def below(self, n_ids: int) -> RowCandidates:
        """Those whose ids are below `n_ids`, for a model whose higher ids pad its vocabulary and are no tokens.

        Their order and what is sure of it are exact; nothing may be sure, where all that is sure were others.
        log_sum_exp stays that of the whole row, for what was not sent of the others is not known.
        """
        kept = self.ids < n_ids
        if kept.all():
            return self
        n_sure = int(np.count_nonzero(kept[: self.n_sure]))
        return RowCandidates(self.ids[kept], self.logits[kept], self.log_sum_exp, n_sure, self.complete)


def best_candidates(logits: F32, k: int, temperatures: Sequence[float], first_id: int) -> NodeCandidates:
    """The best `k` of logits (R, V'), whose columns are the ids from `first_id` on. Raises FormatError on NaN."""
    if not np.isfinite(logits).all():
        raise FormatError(
            "the logits are no finite numbers: the model's weights are damaged, or too large for this sync"
        )
    n_rows, width = logits.shape
    k = min(k, width)
    order = np.stack([_best(row, k) for row in logits]) if n_rows else np.empty((0, k), np.int64)
    return NodeCandidates(
        ids=(order + first_id).astype(np.int32),
        logits=np.take_along_axis(logits, order, axis=1),
        log_sum_exp=_log_sum_exps(logits, temperatures),
        complete=k == width,
    )


def _log_sum_exps(logits: F32, temperatures: Sequence[float]) -> F64:
    """log(sum(exp(row / temperature))) of each row, in float64; 0 where the temperature is 0."""
    sums = np.zeros(len(logits))
    for i, (row, temperature) in enumerate(zip(logits, temperatures, strict=True)):
        if temperature > 0:
            scaled = row.astype(np.float64) / temperature
            top = scaled.max()
            sums[i] = top + np.log(np.exp(scaled - top).sum())
    return sums


def merge_candidates(nodes: Sequence[NodeCandidates]) -> list[RowCandidates]:
    """All nodes' candidates of the same rows as one list for each row."""
    ids, logits = np.concatenate([n.ids for n in nodes], axis=1), np.concatenate([n.logits for n in nodes], axis=1)
    totals = np.logaddexp.reduce([n.log_sum_exp for n in nodes], axis=0)
    order = np.lexsort((ids, -logits), axis=1)
    ids, logits = np.take_along_axis(ids, order, axis=1), np.take_along_axis(logits, order, axis=1)
    # Of a list cut short, what follows its last candidate is unknown, equal logits with higher ids included.
    ends = [np.argmax(ids == n.ids[:, -1:], axis=1) + 1 for n in nodes if not n.complete]
    n_sure = np.min(ends, axis=0) if ends else np.full(len(ids), ids.shape[1])
    return [
        RowCandidates(ids[i], logits[i], float(totals[i]), int(n_sure[i]), complete=not ends) for i in range(len(ids))
    ]


def _best(row: F32, k: int) -> npt.NDArray[np.int64]:
    """Indices of the `k` largest, largest first, ties by lower index."""
    if k == 1:
        return np.array([np.argmax(row)])
    if k < len(row):
        threshold = np.partition(row, len(row) - k)[len(row) - k]
        above = np.flatnonzero(row > threshold)
        level = np.flatnonzero(row == threshold)[: k - len(above)]
        chosen = np.concatenate([above, level])
    else:
        chosen = np.arange(len(row))
    return chosen[np.lexsort((chosen, -row[chosen]))]
