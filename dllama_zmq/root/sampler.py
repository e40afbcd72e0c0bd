"""Choose a token from the best candidates of a row, or say that they do not suffice. Knows numbers, not sockets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dllama_zmq.sampling import Sampling
from dllama_zmq.sharding import Ask, RowCandidates

_MOST_EXPONENT = 700.0  # exp of somewhat more is infinite


def more_than(k: int, vocab_size: int) -> int:
    """The number of candidates to ask for after `k` did not suffice; 0 asks for every logit."""
    return 8 * k if 32 * k < vocab_size else 0


class Sampler:
    """One request's choices: equal requests with equal seeds choose equally, on any number of nodes."""

    def __init__(self, sampling: Sampling, n_ids: int | None = None) -> None:
        """n_ids: only ids below it are chosen."""
        sampling.check()
        self.sampling, self._n_ids = sampling, n_ids
        self._random = np.random.default_rng(sampling.seed)
        self._coin: float | None = None

    def ask(self, tokens: Sequence[int]) -> Ask:
        """What to ask first of the row that follows `tokens`."""
        return Ask(self.sampling.first_k(), self.sampling.temperature)

    def choose(self, row: RowCandidates) -> int | None:
        """The next token, or None where more candidates are needed to know it; then call again with more.

        Where ids were left out of a row (`RowCandidates.below`), the others are chosen as if those had a probability of
        0: exactly with `top_k` or `top_p` 1. Otherwise the kept tokens hold `top_p` of the whole row, left-out ids
        included, so a few more are kept.
        """
        if self._n_ids is not None:
            row = row.below(self._n_ids)
        if not row.n_sure:
            return None
        if self.sampling.greedy:
            return int(row.ids[0])
        if self._coin is None:  # one coin a token, however often candidates are asked for
            self._coin = self._random.random()
        index = self._index(row, self._coin)
        if index is None:
            return None
        self._coin = None
        return int(row.ids[index])

    def _index(self, row: RowCandidates, coin: float) -> int | None:
        sampling = self.sampling
        scaled = row.logits[: row.n_sure].astype(np.float64) / sampling.temperature
        cumulative = np.cumsum(np.exp(scaled - scaled[0]))  # the best's is 1, whatever was left out
        whole = math.exp(min(row.log_sum_exp - float(scaled[0]), _MOST_EXPONENT))
        everything = row.complete
        if sampling.top_k:
            if len(cumulative) < sampling.top_k and not everything:
                return None
            cumulative = cumulative[: sampling.top_k]
            whole = float(cumulative[-1])
            everything = True
        if sampling.top_p < 1:
            n_kept = int(np.searchsorted(cumulative, sampling.top_p * whole)) + 1
            if n_kept > len(cumulative) and not everything:
                return None
            cumulative = cumulative[:n_kept]
            whole = float(cumulative[-1])
            everything = True
        index = int(np.searchsorted(cumulative, coin * whole, side="right"))
        if index < len(cumulative):
            return index
        if not everything:
            return None
        # The coin fell on what was left out, and where it fell there is as good as a new coin for the others. It may
        # not be scaled to them at once: from a part of the candidates nobody knows how much was left out.
        held = float(cumulative[-1])
        again = (coin * whole - held) / (whole - held) if whole > held else coin
        return min(int(np.searchsorted(cumulative, again * held, side="right")), len(cumulative) - 1)
