"""The sampler: distributions worked by hand, the same choice from part of the candidates as from all, and refusals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from msgspec import structs
from msgspec.structs import replace
from rows import choose, row_of

from dllama_zmq.errors import RequestError
from dllama_zmq.root.sampler import Choice, Sampler, next_k
from dllama_zmq.sampling import Sampling

N_DRAWS = 4000


def texts(n: int) -> Iterator[list[int]]:
    """n texts, each a token longer: a sampler has a coin for each length."""
    return ([0] * length for length in range(n))


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
    assert_as_often(EIGHTHS, sampling, expected)


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
def test_padding_of_a_vocabulary_never_comes_and_other_tokens_as_often_as_without_it(logits, sampling, expected):
    assert_as_often(logits, sampling, expected)


def assert_as_often(logits, sampling, expected):
    """Of N_DRAWS choices below id 4 each is as many as its probability says, to four standard deviations."""
    sampler = Sampler(structs.replace(sampling, seed=0), n_ids=4)
    counts = Counter()
    for text in texts(N_DRAWS):
        ask = replace(sampler.ask(text), k=0)
        counts[sampler.choose(row_of(logits, ask)).token] += 1
    assert counts.keys() == expected.keys()
    for token, probability in expected.items():
        deviation = math.sqrt(N_DRAWS * probability * (1 - probability))
        assert abs(counts[token] - N_DRAWS * probability) <= 4 * deviation, token


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.0, top_p=0.5, seed=7), Sampling(1.5, top_k=1)])
def test_greedy_takes_the_first_of_the_largest_and_asks_for_one_candidate(sampling):
    assert sampling.greedy
    assert sampling.initial_k() == 1
    sampler = Sampler(sampling, n_ids=4)
    assert {choose(sampler, np.float32([1, 5, 5, 2]), n_nodes=2) for _ in range(9)} == {(Choice(1), 1)}


def test_greedy_asks_for_more_where_the_largest_is_no_token():
    # Of nodes of two ids each, the second's best is id 3, which is no token; its other one may be the best that is.
    logits = np.float32([1, 0, 2, 9])
    assert choose(Sampler(Sampling(), n_ids=3), logits, n_nodes=2) == (Choice(2), 2)


def test_more_and_more_candidates_are_asked_for_until_the_choice_is_known():
    logits = np.random.default_rng(0).standard_normal(20000, dtype=np.float32)
    sampling = Sampling(2.0, seed=3)
    some, everything = Sampler(sampling, 20000), Sampler(sampling, 20000)
    n_asked = Counter()
    for text in texts(40):
        choice, asked = choose(some, logits, 4, text)
        assert choice == choose(everything, logits, 4, text, k=0)[0]
        n_asked[asked] += 1
    assert set(n_asked) == {1, 2, 3, 4}  # 64, 512, 4096 and all


@pytest.mark.parametrize(
    ("sampling", "k"),
    [(Sampling(1.0), 64), (Sampling(1.0, top_k=40), 40), (Sampling(1.0, top_k=64), 64), (Sampling(1.0, top_k=999), 64)],
)
def test_no_more_candidates_are_asked_for_at_first_than_top_k_needs(sampling, k):
    assert sampling.initial_k() == k


@pytest.mark.parametrize(
    ("k", "vocab_size", "more"), [(64, 128256, 512), (512, 128256, 4096), (4096, 128256, 0), (64, 2048, 0)]
)
def test_eight_times_as_many_are_asked_for_next_and_all_once_that_is_a_quarter_of_the_vocabulary(k, vocab_size, more):
    assert next_k(k, vocab_size) == more


def test_equal_seeds_choose_equally_and_others_do_not():
    logits = np.zeros(100, np.float32)
    samplers = [Sampler(Sampling(1.0, seed=seed), 100) for seed in (5, 5, 6)]
    streams = [[choose(sampler, logits, 1, text)[0].token for text in texts(50)] for sampler in samplers]
    assert streams[0] == streams[1] != streams[2]


def test_a_token_that_takes_three_rounds_of_candidates_uses_one_coin():
    logits = np.random.default_rng(1).standard_normal(100, dtype=np.float32)
    asked_thrice, asked_once = Sampler(Sampling(3.0, seed=2), 100), Sampler(Sampling(3.0, seed=2), 100)
    for text in texts(20):
        few = row_of(logits, replace(asked_thrice.ask(text), k=1))
        for _ in range(2):
            choice = asked_thrice.choose(few)
            if choice is not None:
                break
        else:
            choice = asked_thrice.choose(row_of(logits, replace(asked_thrice.ask_more(), k=0)))
        assert choice == choose(asked_once, logits, 1, text, k=0)[0]


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
        ({"min_p": -0.1}, r"min_p is -0\.1; expected 0 \(off\) to 1"),
        ({"min_p": math.nan}, r"min_p is nan; expected 0"),
        ({"typical_p": 0.0}, r"typical_p is 0\.0; expected more than 0 and at most 1 \(1: off\)"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0; expected 0\.01 to 100 \(1: off\)"),
        ({"presence_penalty": 2.5}, r"presence_penalty is 2\.5; expected -2 to 2 \(0: off\)"),
        ({"frequency_penalty": -3.0}, r"frequency_penalty is -3\.0; expected -2 to 2 \(0: off\)"),
        ({"logit_bias": {3: 101.0}}, r"logit_bias of token 3 is 101\.0; expected -100 to 100"),
        ({"logit_bias": {-3: 1.0}}, r"logit_bias is -3; expected ids of tokens, 0 or more"),
        ({"logit_bias": {4: 1.0}}, r"logit_bias of token 4; this model's tokens are 0 to 3"),
        ({"logprobs": 21}, r"logprobs is 21; expected 0 to 20"),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_the_value_and_the_range(changes, words):
    with pytest.raises(RequestError, match=words):
        Sampler(Sampling(**changes), 4)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(100.0, 1.0, 1 << 24, (1 << 63) - 1, 1.0, 5e-324, 100.0, 2.0, 2.0, {0: 100.0, 3: -100.0}, 20),
        Sampling(0.001, 5e-324, 1, 0, 0.0, 1.0, 0.01, -2.0, -2.0, {1: -100.0}, 0),
        Sampling(0.001, 1.0, 0, None, 1e-323, 0.5),
        Sampling(0.0),
    ],
)
def test_values_at_the_ends_of_their_ranges_are_taken(sampling):
    assert choose(Sampler(sampling, 4, n_prompt=1), EIGHTHS, tokens=[1, 2, 2])[0].token in range(4)


TODAYS = [
    (Sampling(), [1976, 1797, 265, 1944, 284, 300, 758, 1218, 1417, 637]),
    (Sampling(1.0, seed=1), [220, 689, 1384, 795, 344, 1533, 1780, 162, 1060, 1836]),
    (Sampling(0.7, 0.9, seed=2), [1198, 1023, 259, 1944, 1674, 970, 758, 1218, 1617, 1916]),
    (Sampling(1.3, top_k=40, seed=3), [1456, 1175, 1333, 617, 1946, 1495, 1296, 825, 246, 1266]),
    (Sampling(2.0, 0.6, 100, seed=4), [354, 1988, 1607, 173, 990, 1040, 1273, 1628, 952, 200]),
]


@pytest.mark.parametrize(("sampling", "expected"), TODAYS)
def test_a_seed_gives_the_tokens_that_it_has_always_given(sampling, expected):
    logits = np.random.default_rng(7).standard_normal((20, 2000), dtype=np.float32) * np.float32(2)
    sampler = Sampler(sampling, 2000)
    found = [choose(sampler, row, 1, text)[0].token for row, text in zip(logits, texts(10), strict=False)]
    assert found == expected
