"""The biases and penalties of a request, applied to the logits of one row at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from dllama_zmq.quants import F32
from dllama_zmq.sampling import Sampling
from dllama_zmq.sharding.candidates import F64, I32


class Penalties(Struct, frozen=True):
    """The tokens whose logits are changed, and how, in the order of `Sampling`. ids (n,) ascend.

    bias (n,) is added, repetition (n,) divides positive logits and multiplies others, subtracted (n,) is subtracted.
    """

    ids: I32
    bias: F64
    repetition: F64
    subtracted: F64

    @classmethod
    def of(cls, sampling: Sampling, tokens: Sequence[int], n_prompt: int) -> Penalties | None:
        """The penalties of the row after `tokens`, whose first `n_prompt` are the prompt; None if no logit changes."""
        counted = sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
        divided = sampling.repetition_penalty != 1
        if not (counted or divided or sampling.logit_bias):
            return None
        nothing, every = np.empty(0, np.int32), np.asarray(tokens, np.int32)
        answered, counts = np.unique(every[n_prompt:] if counted else nothing, return_counts=True)
        repeated = np.unique(every if divided else nothing)
        biased = np.array(list(sampling.logit_bias), np.int32)
        ids = np.unique(np.concatenate([answered, repeated, biased]))
        if not len(ids):
            return None
        bias, repetition, subtracted = np.zeros(len(ids)), np.ones(len(ids)), np.zeros(len(ids))
        bias[np.searchsorted(ids, biased)] = list(sampling.logit_bias.values())
        repetition[np.searchsorted(ids, repeated)] = sampling.repetition_penalty
        penalty = counts * sampling.frequency_penalty + sampling.presence_penalty
        subtracted[np.searchsorted(ids, answered)] = penalty
        return cls(ids, bias, repetition, subtracted)

    def apply(self, logits: F32) -> F64:
        """The logits (n,) of `ids` after biases and penalties."""
        biased = logits.astype(np.float64) + self.bias
        repeated = np.where(biased > 0, biased / self.repetition, biased * self.repetition)
        penalized: F64 = repeated - self.subtracted
        return penalized
