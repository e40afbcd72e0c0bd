"""Best tokens of each node, merged into the best tokens of all: sampling without sending the logits.

A node sends its best k tokens. Below its last candidate it may have tokens that it did not send, so a merged list is
exact only down to the first candidate that was the last of a truncated list. `n_sure` counts the exact ones.
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
    """One node's reply for R rows: ids and logits (R, k), best first, and log-sum-exps (R,).

    complete: these are all the tokens of the node.
    """

    ids: I32
    logits: F32
    log_sum_exp: F64
    complete: bool


@dataclass(frozen=True, slots=True)
class RowCandidates:
    """One row's best tokens over all nodes, best first, ties by lower id. Only the first `n_sure` are exact.

    complete: these are all tokens of the vocabulary.
    log_sum_exp: of the whole row at the request's temperature: exp(logit / temperature - log_sum_exp) is a probability.
    """

    ids: I32
    logits: F32
    log_sum_exp: float
    n_sure: int
    complete: bool

    def below(self, n_ids: int) -> RowCandidates:
        """The candidates with ids below `n_ids`, for a model whose higher ids only pad its vocabulary.

        The new `n_sure` counts those among the first `n_sure`; it may be 0. log_sum_exp stays that of the whole row,
        because the logits of padding that was not sent are not known.
        """
        kept = self.ids < n_ids
        if kept.all():
            return self
        n_sure = int(np.count_nonzero(kept[: self.n_sure]))
        return RowCandidates(self.ids[kept], self.logits[kept], self.log_sum_exp, n_sure, self.complete)


def best_candidates(logits: F32, k: int, temperatures: Sequence[float], first_id: int) -> NodeCandidates:
    """The best `k` of logits (R, V'); column 0 is the token `first_id`.

    Raises FormatError for logits that are infinite or NaN.
    """
    if not np.isfinite(logits).all():
        raise FormatError(
            "the logits are not finite numbers: the model's weights are damaged, or too large for this sync"
        )
    n_rows, width = logits.shape
    k = min(k, width)
    if k == 1:  # every token of greedy decoding comes here, with caches that weights have emptied: few calls
        order = logits.argmax(axis=1)[:, None]
    else:
        order = np.stack([_best(row, k) for row in logits]) if n_rows else np.empty((0, k), np.int64)
    return NodeCandidates(
        ids=(order + first_id).astype(np.int32),
        logits=logits[np.arange(n_rows)[:, None], order],
        log_sum_exp=_log_sum_exps(logits, temperatures),
        complete=k == width,
    )


def _log_sum_exps(logits: F32, temperatures: Sequence[float]) -> F64:
    """log(sum(exp(row / temperature))) of each row, in float64; 0 for a temperature of 0."""
    sums = np.zeros(len(logits))
    for i, (row, temperature) in enumerate(zip(logits, temperatures, strict=True)):
        if temperature > 0:
            scaled = row.astype(np.float64) / temperature
            top = scaled.max()
            sums[i] = top + np.log(np.exp(scaled - top).sum())
    return sums


def merge_candidates(nodes: Sequence[NodeCandidates]) -> list[RowCandidates]:
    """Merge all nodes' candidates of the same rows into one list per row."""
    if len(nodes) == 1:
        only = nodes[0]
        each = zip(only.ids, only.logits, only.log_sum_exp.tolist(), strict=True)
        return [RowCandidates(ids, logits, total, len(ids), only.complete) for ids, logits, total in each]
    ids, logits = np.concatenate([n.ids for n in nodes], axis=1), np.concatenate([n.logits for n in nodes], axis=1)
    totals = np.logaddexp.reduce([n.log_sum_exp for n in nodes], axis=0)
    order = np.lexsort((ids, -logits), axis=1)
    ids, logits = np.take_along_axis(ids, order, axis=1), np.take_along_axis(logits, order, axis=1)
    # Nothing is known after the last candidate of a truncated list, not even of equal logits with higher ids.
    ends = [np.argmax(ids == n.ids[:, -1:], axis=1) + 1 for n in nodes if not n.complete]
    n_sure = np.min(ends, axis=0) if ends else np.full(len(ids), ids.shape[1])
    return [
        RowCandidates(ids[i], logits[i], float(totals[i]), int(n_sure[i]), complete=not ends) for i in range(len(ids))
    ]


def _best(row: F32, k: int) -> npt.NDArray[np.int64]:
    """Indices of the `k` largest, largest first, ties by lower index."""
    if k < len(row):
        threshold = np.partition(row, len(row) - k)[len(row) - k]
        above = np.flatnonzero(row > threshold)
        level = np.flatnonzero(row == threshold)[: k - len(above)]
        chosen = np.concatenate([above, level])
    else:
        chosen = np.arange(len(row))
    return chosen[np.lexsort((chosen, -row[chosen]))]
