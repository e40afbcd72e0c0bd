"""The sampler: distributions worked by hand, the same choice from part of the candidates as from all, and refusals."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dllama_zmq.errors import RequestError
from dllama_zmq.quants import F32
from dllama_zmq.root.sampler import Sampler, more_than
from dllama_zmq.sampling import Sampling
from dllama_zmq.sharding import Ask, RowCandidates, best_candidates, merge_candidates

N_DRAWS = 4000


def candidates(logits: F32, k: int, temperature: float, n_nodes: int = 1) -> RowCandidates:
    """What the root knows of `logits` (V,) when each of `n_nodes` has sent its best `k` (0: all)."""
    bounds = [len(logits) * node // n_nodes for node in range(n_nodes + 1)]
    ask = Ask(k, temperature)
    nodes = [best_candidates(logits[None, first:last], [ask], first)[0] for first, last in pairwise(bounds)]
    return merge_candidates(nodes, ask, bounds[:-1])


def choose(
    sampler: Sampler, logits: F32, sampling: Sampling, k: int, n_nodes: int = 1, n_ids: int = 1 << 24
) -> tuple[int, int]:
    """The token below `n_ids`, and how often candidates were asked for, beginning with `k` from each node."""
    asked = 1
    token = sampler.choose(candidates(logits, k, sampling.temperature, n_nodes).below(n_ids))
    while token is None:
        k = more_than(k, len(logits))
        asked += 1
        token = sampler.choose(candidates(logits, k, sampling.temperature, n_nodes).below(n_ids))
    return token, asked


# Ids 3, 0, 2 and 1 have 1/2, 1/4, 1/8 and 1/8.
EIGHTHS = np.log(np.array([2, 1, 1, 4], np.float32))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), {3: 1 / 2, 0: 1 / 4, 1: 1 / 8, 2: 1 / 8}),
        # Probabilities to the power of 1/T: 16, 4, 1, 1 of 22; and the root of 4, 2, 1, 1.
        (Sampling(0.5), {3: 16 / 22, 0: 4 / 22, 1: 1 / 22, 2: 1 / 22}),
        (Sampling(2.0), {3: 2 / 5.41421, 0: 1.41421 / 5.41421, 1: 1 / 5.41421, 2: 1 / 5.41421}),
        (Sampling(1.0, top_k=2), {3: 2 / 3, 0: 1 / 3}),
        (Sampling(1.0, top_k=3), {3: 4 / 7, 0: 2 / 7, 1: 1 / 7}),  # of equals the lower id
        (Sampling(1.0, top_k=99), {3: 1 / 2, 0: 1 / 4, 1: 1 / 8, 2: 1 / 8}),
        (Sampling(1.0, top_p=0.49), {3: 1.0}),
        (Sampling(1.0, top_p=0.51), {3: 2 / 3, 0: 1 / 3}),
        (Sampling(1.0, top_p=0.74), {3: 2 / 3, 0: 1 / 3}),
        (Sampling(1.0, top_p=0.76), {3: 4 / 7, 0: 2 / 7, 1: 1 / 7}),
        (Sampling(1.0, top_p=1e-9), {3: 1.0}),
        # Of 4/7, 2/7 and 1/7 two hold 80%; of the whole row three would.
        (Sampling(1.0, top_p=0.8, top_k=3), {3: 2 / 3, 0: 1 / 3}),
        # At half the temperature 16/22 and 4/22 hold 80%; at 1 three would.
        (Sampling(0.5, top_p=0.8), {3: 4 / 5, 0: 1 / 5}),
    ],
)
def test_tokens_come_as_often_as_worked_by_hand(sampling, expected):
    assert_as_often(candidates(EIGHTHS, 0, sampling.temperature), sampling, expected)


# Id 4, which is no token, has as much as all the others together, or nearly everything.
HALF_PADDING = np.append(EIGHTHS, np.log(np.float32(8)))
ALL_PADDING = np.append(EIGHTHS, np.float32(2000))


@pytest.mark.parametrize(
    ("logits", "sampling", "expected"),
    [
        (HALF_PADDING, Sampling(1.0), {3: 1 / 2, 0: 1 / 4, 1: 1 / 8, 2: 1 / 8}),
        (HALF_PADDING, Sampling(0.5), {3: 16 / 22, 0: 4 / 22, 1: 1 / 22, 2: 1 / 22}),
        (HALF_PADDING, Sampling(1.0, top_k=2), {3: 2 / 3, 0: 1 / 3}),
        (HALF_PADDING, Sampling(1.0, top_p=0.8, top_k=3), {3: 2 / 3, 0: 1 / 3}),
        # Of the whole row, padding included, ids 3 and 0 hold 3/8.
        (HALF_PADDING, Sampling(1.0, top_p=0.37), {3: 2 / 3, 0: 1 / 3}),
        (HALF_PADDING, Sampling(1.0, top_p=0.9), {3: 1 / 2, 0: 1 / 4, 1: 1 / 8, 2: 1 / 8}),
        (ALL_PADDING, Sampling(1.0), {3: 1 / 2, 0: 1 / 4, 1: 1 / 8, 2: 1 / 8}),
        (ALL_PADDING, Sampling(1.0, top_k=2), {3: 2 / 3, 0: 1 / 3}),
        (ALL_PADDING, Sampling(1.0, top_p=0.5), {3: 1 / 2, 0: 1 / 4, 1: 1 / 8, 2: 1 / 8}),
    ],
)
def test_what_pads_a_vocabulary_never_comes_and_the_others_as_often_as_without_it(logits, sampling, expected):
    assert_as_often(candidates(logits, 0, sampling.temperature).below(4), sampling, expected)


def assert_as_often(row, sampling, expected):
    """Of N_DRAWS choices each token is as many as its probability says, to four standard deviations."""
    sampler = Sampler(sampling)
    counts = Counter(sampler.choose(row) for _ in range(N_DRAWS))
    assert counts.keys() == expected.keys()
    for token, probability in expected.items():
        deviation = math.sqrt(N_DRAWS * probability * (1 - probability))
        assert abs(counts[token] - N_DRAWS * probability) <= 4 * deviation, token


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.0, top_p=0.5, seed=7), Sampling(1.5, top_k=1)])
def test_greedy_takes_the_first_of_the_largest_and_asks_for_one_candidate(sampling):
    assert sampling.greedy
    assert sampling.first_k() == 1
    sampler = Sampler(sampling)
    assert {sampler.choose(candidates(np.float32([1, 5, 5, 2]), 1, sampling.temperature, 2)) for _ in range(9)} == {1}


def test_greedy_asks_for_more_where_the_largest_is_no_token():
    # Of nodes of two ids each, the second's best is id 3, which is no token; its other one may be the best that is.
    logits = np.float32([1, 0, 2, 9])
    assert choose(Sampler(Sampling()), logits, Sampling(), 1, n_nodes=2, n_ids=3) == (2, 2)


_levels = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
_samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_p=st.just(1.0) | st.floats(0.01, 1.0, exclude_min=True),
    top_k=st.just(0) | st.integers(1, 50),
    seed=st.integers(0, 1000),
)


@given(
    rows=st.lists(npst.arrays(np.float32, 40, elements=_levels | st.floats(-5, 5, width=32)), min_size=1, max_size=4),
    sampling=_samplings,
    first_k=st.integers(1, 8),
    n_nodes=st.sampled_from([1, 2, 4, 8]),
    n_ids=st.sampled_from([40, 39, 36, 20, 1]),
)
def test_choosing_from_some_candidates_is_choosing_from_all(rows, sampling, first_k, n_nodes, n_ids):
    some, everything = Sampler(sampling), Sampler(sampling)
    for logits in rows:
        token, _ = choose(some, logits, sampling, 1 if sampling.greedy else first_k, n_nodes, n_ids)
        assert token == everything.choose(candidates(logits, 0, sampling.temperature, n_nodes).below(n_ids))


def test_more_and_more_candidates_are_asked_for_until_the_choice_is_known():
    logits = np.random.default_rng(0).standard_normal(20000, dtype=np.float32)
    sampling = Sampling(2.0, seed=3)
    some, everything = Sampler(sampling), Sampler(sampling)
    n_asked = Counter()
    for _ in range(40):
        token, asked = choose(some, logits, sampling, sampling.first_k(), n_nodes=4)
        assert token == everything.choose(candidates(logits, 0, sampling.temperature, n_nodes=4))
        n_asked[asked] += 1
    assert set(n_asked) == {1, 2, 3, 4}  # 64, 512, 4096 and all


@pytest.mark.parametrize(
    ("sampling", "k"),
    [(Sampling(1.0), 64), (Sampling(1.0, top_k=40), 40), (Sampling(1.0, top_k=64), 64), (Sampling(1.0, top_k=999), 64)],
)
def test_no_more_candidates_are_asked_for_at_first_than_top_k_needs(sampling, k):
    assert sampling.first_k() == k


@pytest.mark.parametrize(
    ("k", "vocab_size", "more"), [(64, 128256, 512), (512, 128256, 4096), (4096, 128256, 0), (64, 2048, 0)]
)
def test_eight_times_as_many_are_asked_for_next_and_all_once_that_is_a_quarter_of_the_vocabulary(k, vocab_size, more):
    assert more_than(k, vocab_size) == more


def test_equal_seeds_choose_equally_and_others_do_not():
    row = candidates(np.zeros(100, np.float32), 0, 1.0)
    streams = [
        [sampler.choose(row) for _ in range(50)] for sampler in (Sampler(Sampling(1.0, seed=s)) for s in (5, 5, 6))
    ]
    assert streams[0] == streams[1] != streams[2]


def test_a_token_that_takes_three_rounds_of_candidates_uses_one_coin():
    logits = np.random.default_rng(1).standard_normal(100, dtype=np.float32)
    few, all_of_them = candidates(logits, 1, 3.0), candidates(logits, 0, 3.0)
    asked_thrice, asked_once = Sampler(Sampling(3.0, seed=2)), Sampler(Sampling(3.0, seed=2))
    for _ in range(20):
        for _ in range(2):
            token = asked_thrice.choose(few)
            if token is not None:
                break
        else:
            token = asked_thrice.choose(all_of_them)
        assert token == asked_once.choose(all_of_them)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": -0.1}, r"temperature is -0\.1; expected 0 \(greedy\), or 0\.001 to 100"),
        ({"temperature": 1e-308}, r"temperature is 1e-308; expected 0"),
        ({"temperature": 100.5}, r"temperature is 100\.5; expected 0"),
        ({"temperature": math.nan}, r"temperature is nan; expected 0"),
        ({"temperature": math.inf}, r"temperature is inf; expected 0"),
        ({"top_p": 0.0}, r"top_p is 0\.0; expected more than 0 and at most 1"),
        ({"top_p": 1.01}, r"top_p is 1\.01; expected more than 0"),
        ({"top_p": math.nan}, r"top_p is nan; expected more than 0"),
        ({"top_k": -1}, r"top_k is -1; expected 0 \(off\) or a number of tokens"),
        ({"top_k": 1 << 25}, r"top_k is 33554432; expected"),
        ({"seed": -1}, r"seed is -1; expected 0 to"),
        ({"seed": 1 << 63}, r"seed is 9223372036854775808; expected 0 to"),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_the_value_and_the_range(changes, words):
    with pytest.raises(RequestError, match=words):
        Sampler(Sampling(**changes))


@pytest.mark.parametrize(
    "sampling", [Sampling(100.0, 1.0, 1 << 24, (1 << 63) - 1), Sampling(0.001, 5e-324, 1, 0), Sampling(0.0)]
)
def test_values_at_the_ends_of_their_ranges_are_taken(sampling):
    row = candidates(EIGHTHS, 0, sampling.temperature)
    assert Sampler(sampling).choose(row) in range(4)
