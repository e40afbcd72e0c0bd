"""Rows of logits that nodes hold parts of: what they answer, and what a sampler chooses from that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from msgspec.structs import replace

from dllama_zmq.quants import F32, U8
from dllama_zmq.root.sampler import Choice, Sampler, next_k
from dllama_zmq.sharding import Ask, RowCandidates, best_candidates, merge_candidates


def row_of(logits: F32, ask: Ask, n_nodes: int = 1) -> RowCandidates:
    """What the root knows of `logits` (V,) when each of `n_nodes` has answered `ask`.

    The same question of the same logits is answered once: a test of where coins fall asks it hundreds of times.
    """
    assert logits.dtype == np.float32
    listed, mask = (None if ids is None else ids.tobytes() for ids in (ask.listed, ask.mask))
    return _row_of(logits.tobytes(), ask.k, ask.temperature, ask.logprobs, listed, mask, n_nodes)


@lru_cache(maxsize=16)
def _row_of(
    row: bytes, k: int, temperature: float, logprobs: bool, listed: bytes | None, mask: bytes | None, n_nodes: int
) -> RowCandidates:
    logits = np.frombuffer(row, np.float32)
    ids = None if listed is None else np.frombuffer(listed, np.int32)
    ask = Ask(k, temperature, logprobs, ids, None if mask is None else np.frombuffer(mask, np.uint8))
    bounds = [len(logits) * node // n_nodes for node in range(n_nodes + 1)]
    nodes = [best_candidates(logits[None, first:last], [ask], first)[0] for first, last in pairwise(bounds)]
    merged = merge_candidates(nodes, ask, bounds[:-1])
    for array in (merged.ids, merged.logits):  # of several choices: none may write to them
        array.flags.writeable = False
    return merged


def choose(
    sampler: Sampler,
    logits: F32,
    n_nodes: int = 1,
    tokens: Sequence[int] = (),
    k: int | None = None,
    mask: U8 | None = None,
) -> tuple[Choice, int]:
    """What follows `tokens`, and how often nodes were asked, for `k` candidates at first instead of the sampler's."""
    ask, n_asked = sampler.ask(tokens, mask), 1
    ask = ask if k is None else replace(ask, k=k)
    choice = sampler.choose(row_of(logits, ask, n_nodes))
    while choice is None:
        assert ask.k, "every logit did not suffice"
        ask, n_asked = replace(ask, k=next_k(ask.k, len(logits))), n_asked + 1
        choice = sampler.choose(row_of(logits, ask, n_nodes))
    return choice, n_asked
