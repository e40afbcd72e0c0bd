"""Every way of sampling: as transformers does it, as it is worked by hand, and the same on any number of nodes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from msgspec import structs
from msgspec.structs import replace
from rows import choose, row_of

from dllama_zmq.errors import RequestError
from dllama_zmq.quants import F32, U8
from dllama_zmq.root.sampler import Choice, Sampler
from dllama_zmq.sampling import Sampling

F64 = npt.NDArray[np.float64]
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "sampling.npz")
CASES = json.loads(str(GOLDEN["cases"]))
CLOSE = 1e-9  # a coin that is nearer to the border of two tokens may fall on either


def token_of(coin: float, logits: F64, probabilities: F64) -> int | None:
    """The token on which a coin falls, the likeliest first and of equals the lower id; None too near to a border."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    cumulative = np.cumsum(probabilities[order])
    if np.abs(cumulative - coin).min() < CLOSE:
        return None
    return int(order[np.searchsorted(cumulative, coin)])


def coin_of(seed: int) -> float:
    """What a sampler with this seed draws first."""
    return float(np.random.default_rng(seed).random())


def sampling_of(case: dict[str, float]) -> Sampling:
    bias = {int(token): value for token, value in case.get("logit_bias", {}).items()}  # type: ignore[attr-defined]
    return Sampling(**{**case, "logit_bias": bias})  # type: ignore[arg-type]


@pytest.mark.parametrize("n_nodes", [1, 4])
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: ",".join(CASES[number]))
def test_each_coin_falls_on_the_token_that_it_falls_on_with_the_probabilities_of_transformers(number, n_nodes):
    case, logits, tokens = CASES[number], GOLDEN["logits"][number], GOLDEN["tokens"][number].tolist()
    probabilities = GOLDEN["probabilities"][number]
    changed, _ = by_hand(logits, sampling_of(case), tokens, 10)
    n_sure = 0
    for seed in range(300):
        sampler = Sampler(structs.replace(sampling_of(case), seed=seed), len(logits), n_prompt=10)
        expected = token_of(coin_of(seed), changed, probabilities)
        assert expected in (None, choose(sampler, logits, n_nodes, tokens, k=3)[0].token)
        n_sure += expected is not None
    assert n_sure >= 299


def by_hand(
    logits: F32, sampling: Sampling, tokens: list[int], n_prompt: int, allowed: list[int] | None = None
) -> tuple[F64, F64]:
    """The logits that are sampled from and their probabilities: every logit in float64, step by step."""
    changed = logits.astype(np.float64)
    for token, bias in sampling.logit_bias.items():
        changed[token] += bias
    for token in set(tokens):
        changed[token] *= sampling.repetition_penalty ** (-1 if changed[token] > 0 else 1)
    for token in set(tokens[n_prompt:]):
        changed[token] -= tokens[n_prompt:].count(token) * sampling.frequency_penalty + sampling.presence_penalty
    if allowed is not None:
        changed[[i for i in range(len(logits)) if i not in allowed]] = -np.inf
    if sampling.greedy:
        probabilities = np.zeros(len(logits))
        probabilities[changed.argmax()] = 1
        return changed, probabilities
    left = [int(i) for i in np.lexsort((np.arange(len(logits)), -changed)) if changed[i] > -np.inf]
    weights = {i: math.exp((changed[i] - changed[left[0]]) / sampling.temperature) for i in left}
    left = left[: sampling.top_k or len(left)]
    if sampling.top_p < 1:
        whole, held, kept = math.fsum(weights[i] for i in left), 0.0, []
        for i in left:
            if held < sampling.top_p * whole:
                kept.append(i)
            held += weights[i]
        left = kept
    left = [i for i in left if weights[i] >= sampling.min_p]
    if sampling.typical_p < 1:
        whole = math.fsum(weights[i] for i in left)
        surprisal = {i: -math.log(weights[i] / whole) for i in left if weights[i] > 0}
        entropy = math.fsum(weights[i] / whole * bits for i, bits in surprisal.items())
        nearest = sorted(surprisal, key=lambda i: abs(surprisal[i] - entropy))
        held, left = 0.0, []
        for i in nearest:
            if held < sampling.typical_p * whole:
                left.append(i)
            held += weights[i]
        left = [i for i in surprisal if i in left]
    probabilities = np.zeros(len(logits))
    probabilities[left] = [weights[i] for i in left]
    return changed, probabilities / probabilities.sum()


N_IDS = 48
_samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    top_p=st.sampled_from([1.0, 1.0, 0.97, 0.8, 0.3]),
    top_k=st.sampled_from([0, 0, 1, 3, 20, 100]),
    seed=st.integers(0, 1000),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3]),
    typical_p=st.sampled_from([1.0, 1.0, 0.9, 0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    presence_penalty=st.sampled_from([0.0, 1.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -0.7]),
    logit_bias=st.dictionaries(st.integers(0, N_IDS - 1), st.sampled_from([-100.0, -1.5, 3.0, 100.0]), max_size=3),
    logprobs=st.sampled_from([None, 0, 5, 20]),
)
_tokens = st.lists(st.integers(0, N_IDS - 1), min_size=3, max_size=12)
_allowed = st.none() | st.lists(st.integers(0, N_IDS - 1), min_size=1, max_size=30, unique=True)


def mask_of(allowed: list[int] | None, n_ids: int = N_IDS) -> U8 | None:
    if allowed is None:
        return None
    bits = np.zeros(n_ids, np.uint8)
    bits[allowed] = 1
    return np.packbits(bits, bitorder="little")


@given(st.integers(0, 1 << 32), _samplings, _tokens, _allowed, st.sampled_from([1, 2, 4, 8]), st.integers(1, 6))
def test_a_choice_is_that_of_the_whole_logits_in_float64_on_any_number_of_nodes(
    drawn, sampling, tokens, allowed, n_nodes, k
):
    logits = 3 * np.random.default_rng(drawn).standard_normal(N_IDS, dtype=np.float32)
    changed, probabilities = by_hand(logits, sampling, tokens, 3, allowed)
    choice, _ = choose(Sampler(sampling, N_IDS, n_prompt=3), logits, n_nodes, tokens, k, mask_of(allowed))
    expected = token_of(coin_of(sampling.seed), changed, probabilities) if not sampling.greedy else changed.argmax()
    assert expected in (None, choice.token)
    assert_logprobs(choice, sampling, logits, allowed)


def assert_logprobs(choice: Choice, sampling: Sampling, logits: F32, allowed: list[int] | None) -> None:
    """Of the raw logits at temperature 1; with a mask those of the most likely ids that it allows."""
    if sampling.logprobs is None:
        assert (choice.logprob, choice.top) == (None, ())
        return
    raw = logits.astype(np.float64)
    expected = raw - (raw.max() + math.log(np.exp(raw - raw.max()).sum()))
    best = [i for i in np.argsort(-raw) if allowed is None or i in allowed][: sampling.logprobs]
    assert choice.logprob == pytest.approx(expected[choice.token], abs=1e-12)
    assert [token for token, _ in choice.top] == best
    assert [logprob for _, logprob in choice.top] == pytest.approx(expected[best].tolist(), abs=1e-12)


_levels = st.sampled_from([-1.0, 0.0, 0.5, 2.0])


_tied = npst.arrays(np.float32, N_IDS, elements=_levels | st.floats(-5, 5, width=32))


@given(
    rows=st.lists(_tied, min_size=1, max_size=4),
    sampling=_samplings,
    tokens=_tokens,
    allowed=_allowed,
    k=st.integers(1, 8),
    n_nodes=st.sampled_from([1, 2, 4, 8]),
    n_ids=st.sampled_from([N_IDS, N_IDS - 1, 44, 20, 12]),
)
def test_choosing_from_some_candidates_is_choosing_from_all(rows, sampling, tokens, allowed, k, n_nodes, n_ids):
    assume(allowed is None or min(allowed) < n_ids)
    sampling = structs.replace(sampling, logit_bias={i: bias for i, bias in sampling.logit_bias.items() if i < n_ids})
    some, everything = Sampler(sampling, n_ids, 3), Sampler(sampling, n_ids, 3)
    for logits in rows:
        found, _ = choose(some, logits, n_nodes, tokens, k, mask_of(allowed))
        assert found == choose(everything, logits, n_nodes, tokens, 0, mask_of(allowed))[0]
        tokens = [*tokens, found.token]
        assert found.token < n_ids
        assert allowed is None or found.token in allowed


# --- by hand ----------------------------------------------------------------------------------------------------------

FLAT = np.float32([2, 1, 0, -1])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # The answer is 0, 0, 1; the prompt 3.
        ({"presence_penalty": 0.5}, [1.5, 0.5, 0, -1]),
        ({"frequency_penalty": 0.5}, [1.0, 0.5, 0, -1]),
        ({"presence_penalty": 2.0, "frequency_penalty": -0.5}, [1.0, -0.5, 0, -1]),
        ({"repetition_penalty": 2.0}, [1.0, 0.5, 0, -2]),
        ({"logit_bias": {2: 3.0, 3: -100.0}}, [2, 1, 3, -101]),
        # First the bias, then the division, then the subtraction.
        ({"logit_bias": {0: 4.0, 1: -2.0}, "repetition_penalty": 2.0, "presence_penalty": 1.0}, [2.0, -3.0, 0, -2]),
    ],
)
def test_penalties_and_biases_are_those_worked_by_hand(changes, expected):
    sampling = Sampling(1.0, **changes)
    changed, _ = by_hand(FLAT, sampling, [3, 0, 0, 1], 1)
    assert changed.tolist() == expected
    weights = np.exp(changed)
    for seed in range(500):
        sampler = Sampler(structs.replace(sampling, seed=seed), 4, n_prompt=1)
        wanted = token_of(coin_of(seed), changed, weights / weights.sum())
        assert wanted in (None, choose(sampler, FLAT, 2, [3, 0, 0, 1])[0].token), seed


def test_a_typical_token_is_not_always_the_likeliest():
    # 1/4 and twelve of 1/16: the entropy is 2/4 + 3 = 3.5 bits, from which 4 bits are nearer than 2.
    logits = np.log(np.float32([4, *[1] * 12]))
    for typical_p, tokens in ((0.74, set(range(1, 13))), (0.76, set(range(13)))):
        sampler = Sampler(Sampling(1.0, typical_p=typical_p, seed=1), 13)
        assert {choose(sampler, logits, 1, [0] * n)[0].token for n in range(300)} == tokens


def test_min_p_asks_for_more_until_the_next_token_is_too_unlikely():
    logits = np.float32([3, 2.9, 2.8, 2.7, 0, -1, -2, -3])  # half of the likeliest's probability is 0.69 less
    found = set()
    for seed in range(50):
        choice, n_asked = choose(Sampler(Sampling(1.0, min_p=0.5, seed=seed), 8), logits, k=1)
        assert n_asked == 2
        found.add(choice.token)
    assert found == {0, 1, 2, 3}


def test_greedy_takes_the_best_after_penalties():
    sampler = Sampler(Sampling(presence_penalty=1.5), 4, n_prompt=0)
    assert choose(sampler, FLAT, 2, [0])[0].token == 1
    assert choose(sampler, FLAT, 2, [0, 1])[0].token == 0  # of 0.5, -0.5, 0 and -1


def test_a_step_that_is_run_again_gives_the_same_token():
    # It is lost after candidates came that did not suffice, or after those of this row did and another's did not.
    logits = np.random.default_rng(3).standard_normal(2000, dtype=np.float32)
    undisturbed, disturbed = (Sampler(Sampling(5.0, seed=8, presence_penalty=1.0), 2000) for _ in range(2))
    for n in range(10):
        tokens = list(range(n))
        disturbed.choose(row_of(logits, replace(disturbed.ask(tokens), k=1)))
        choose(disturbed, logits, 2, tokens)
        assert choose(disturbed, logits, 2, tokens) == choose(undisturbed, logits, 2, tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bias", [{}, {2: 50.0}])
def test_a_mask_that_allows_no_token_is_an_error_that_says_so(temperature, bias):
    sampler = Sampler(Sampling(temperature, logit_bias=bias), n_ids=3)
    with pytest.raises(RequestError, match="the mask of allowed ids allows no token of this model"):
        choose(sampler, FLAT, 2, mask=mask_of([3], 4))  # id 3 pads the vocabulary


def test_a_mask_is_stronger_than_a_bias():
    sampler = Sampler(Sampling(1.0, logit_bias={2: 100.0}, logprobs=2, seed=0), n_ids=4)
    choice, _ = choose(sampler, FLAT, 2, mask=mask_of([3], 4))
    assert choice.token == 3
    assert [token for token, _ in choice.top] == [3]


def test_only_what_changes_logits_lists_ids():
    assert Sampler(Sampling(1.0), 9).ask([1, 2, 3]).listed is None
    assert Sampler(Sampling(1.0, presence_penalty=1.0), 9, n_prompt=3).ask([1, 2, 3]).listed is None
    assert Sampler(Sampling(1.0, presence_penalty=1.0), 9, n_prompt=1).ask([1, 2, 3]).listed.tolist() == [2, 3]
    assert Sampler(Sampling(1.0, repetition_penalty=1.1, logit_bias={7: 1.0}), 9).ask([5, 2, 5]).listed.tolist() == [
        2,
        5,
        7,
    ]


@pytest.mark.parametrize(
    ("sampling", "k"),
    [
        (Sampling(logprobs=5), 5),
        (Sampling(logprobs=0), 1),
        (Sampling(1.0, top_k=3, logprobs=20), 20),
        (Sampling(1.0, typical_p=0.5), 0),
        (Sampling(1.0, typical_p=0.5, top_k=10), 10),
        (Sampling(1.0, typical_p=0.5, min_p=0.1), 64),
    ],
)
def test_the_first_ask_is_for_the_candidates_that_the_request_names_or_sampling_needs(sampling, k):
    assert sampling.initial_k() == k
