"""Choose a token from the best candidates of a row, or ask for more of them. Knows numbers, not sockets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from dllama_zmq.errors import ClusterDefect, RequestError
from dllama_zmq.quants import U8
from dllama_zmq.root.penalties import Penalties
from dllama_zmq.sampling import Sampling
from dllama_zmq.sharding import Ask, RowCandidates
from dllama_zmq.sharding.candidates import F64

_MAX_EXPONENT = 700.0  # exp of 710 is infinite


def next_k(k: int, vocab_size: int) -> int:
    """How many candidates to ask for after `k` were too few; 0: every logit."""
    return 8 * k if 32 * k < vocab_size else 0


class Choice(Struct, frozen=True):
    """A chosen token; if asked for, its log-probability and the most likely ids with theirs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()

    def logprobs(self) -> list[tuple[int, float]]:
        """The log-probability of the token, then those of the most likely ids; empty if not asked for."""
        return [] if self.logprob is None else [(self.token, self.logprob), *self.top]


class Sampler:
    """One request's choices: equal requests with equal seeds choose equally, on any number of nodes.

    For each token: `ask`, then `choose` from the answer; while that is None, `choose` from the answer to `ask_more`.
    The random number depends on the seed and the length of the text, so a step that is run again chooses as before.
    """

    def __init__(self, sampling: Sampling, n_ids: int, n_prompt: int = 0) -> None:
        """n_ids: only ids below it are chosen. n_prompt: tokens of the text that are its prompt. Raises
        RequestError."""
        sampling.check()
        for token in sampling.logit_bias:
            if token >= n_ids:
                raise RequestError(f"logit_bias of token {token}; this model's tokens are 0 to {n_ids - 1}")
        self.sampling = sampling
        self._n_ids = n_ids
        self._n_prompt = n_prompt
        self._random = np.random.default_rng(sampling.seed)
        self._coin = 0.0
        self._length = -1  # the text length that _coin belongs to
        self._penalties: Penalties | None = None
        self._ask = Ask(0)

    def ask(self, tokens: Sequence[int], mask: U8 | None = None) -> Ask:
        """The ask for the row of the last of `tokens`, the text so far. mask: as in `Ask`."""
        sampling = self.sampling
        if len(tokens) != self._length and not sampling.greedy:
            self._coin, self._length = self._random.random(), len(tokens)
        self._penalties = penalties = Penalties.of(sampling, tokens, self._n_prompt)
        self._ask = Ask(
            k=sampling.initial_k(),
            temperature=0.0 if sampling.greedy else sampling.temperature,
            logprobs=sampling.logprobs is not None,
            listed=None if penalties is None else penalties.ids,
            mask=mask,
        )
        return self._ask

    def ask_more(self) -> Ask:
        """The ask for the same row if its candidates were too few."""
        if self._ask.k == 0:
            raise ClusterDefect("every logit of the vocabulary did not suffice to choose a token")
        self._ask = replace(self._ask, k=next_k(self._ask.k, self._n_ids))
        return self._ask

    def choose(self, row: RowCandidates) -> Choice | None:
        """The next token; None if it takes more candidates to know it.

        Ids that are no tokens are left out of the row, as if they had a probability of 0: exactly with `top_k` or with
        `top_p` 1. With a smaller `top_p`, the kept tokens hold that share of the whole row, left-out ids included, so a
        few more are kept. Raises RequestError if the mask allows no token.
        """
        top = self._top(row)
        penalties = self._penalties
        ranked = row if penalties is None else self._with_listed(row, penalties.apply(row.listed))
        ranked = ranked.below(self._n_ids)
        if ranked.complete and not ranked.n_sure:
            if self._ask.mask is not None:
                raise RequestError("the mask of allowed ids allows no token of this model")
            raise ClusterDefect("no token could be chosen from the logits of the whole vocabulary")
        if top is None or not ranked.n_sure:
            return None
        if self.sampling.greedy:
            return self._chosen(int(ranked.ids[0]), row, top)
        index = self._index(ranked, self._coin)
        if index is None:
            return None
        return self._chosen(int(ranked.ids[index]), row, top)

    def _with_listed(self, row: RowCandidates, logits: F64) -> RowCandidates:
        """With the listed ids that the mask allows back among the others."""
        assert self._ask.listed is not None
        allowed = self._ask.allowed(self._ask.listed)
        return row.with_listed(self._ask.listed[allowed], logits[allowed], self._ask.temperature)

    def _top(self, row: RowCandidates) -> tuple[tuple[int, float], ...] | None:
        """The most likely ids with log-probabilities, for the client; None if it takes more candidates to know them."""
        n = self.sampling.logprobs
        if not n:
            return ()
        raw = row if self._ask.listed is None else self._with_listed(row, row.listed.astype(np.float64))
        raw = raw.below(self._n_ids)
        if raw.n_sure < n and not raw.complete:
            return None
        logprobs = raw.logits[:n].astype(np.float64) - row.raw_log_sum_exp
        return tuple(zip(raw.ids[:n].tolist(), logprobs.tolist(), strict=True))

    def _chosen(self, token: int, row: RowCandidates, top: tuple[tuple[int, float], ...]) -> Choice:
        if self.sampling.logprobs is None:
            return Choice(token)
        listed = self._ask.listed
        at = -1 if listed is None else int(np.searchsorted(listed, token))
        if listed is not None and at < len(listed) and listed[at] == token:
            logit = row.listed[at]
        else:
            logit = row.logits[row.ids == token][0]
        return Choice(token, float(logit) - row.raw_log_sum_exp, top)

    def _index(self, row: RowCandidates, coin: float) -> int | None:
        sampling = self.sampling
        scaled = row.logits[: row.n_sure].astype(np.float64) / sampling.temperature
        cumulative = np.cumsum(np.exp(scaled - scaled[0]))  # that of the best token is 1, even if ids were left out
        whole = math.exp(min(row.log_sum_exp - float(scaled[0]), _MAX_EXPONENT))
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
        if sampling.min_p > 0:
            n_kept = int(np.count_nonzero(scaled[: len(cumulative)] >= scaled[0] + math.log(sampling.min_p)))
            if n_kept == len(cumulative) and not everything:
                return None
            cumulative = cumulative[:n_kept]
            whole = float(cumulative[-1])
            everything = True
        if sampling.typical_p < 1:
            if not everything:
                return None
            cumulative = _typical(scaled[: len(cumulative)], sampling.typical_p)
            whole = float(cumulative[-1])
        index = int(np.searchsorted(cumulative, coin * whole, side="right"))
        if index < len(cumulative):
            return index
        if not everything:
            return None
        # The coin fell on the share of ids left out; its place within that share is as good as a new coin for the
        # others. It cannot be scaled to them at once, because a part of the candidates does not show how large that
        # share is.
        held = float(cumulative[-1])
        again = (coin * whole - held) / (whole - held) if whole > held else coin
        return min(int(np.searchsorted(cumulative, again * held, side="right")), len(cumulative) - 1)


def _typical(scaled: F64, mass: float) -> F64:
    """The cumulated weights of the remaining tokens, best first, with those of tokens that are not typical at 0."""
    weights = np.exp(scaled - scaled[0])
    probabilities = weights / weights.sum()
    surprisal = math.log(weights.sum()) - (scaled - scaled[0])
    distance = np.abs(surprisal - np.sum(probabilities * surprisal))
    order = np.argsort(distance, kind="stable")
    last = min(int(np.count_nonzero(np.cumsum(probabilities[order]) < mass)), len(order) - 1)
    return np.cumsum(np.where(distance <= distance[order[last]], weights, 0.0))
