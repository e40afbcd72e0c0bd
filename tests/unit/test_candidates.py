"""Candidates: what nodes answer of their logits is, merged, the beginning of what sorting all of them gives."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dllama_zmq.errors import FormatError
from dllama_zmq.quants import F32, U8
from dllama_zmq.sharding import Ask, NodeCandidates, RowCandidates, best_candidates, merge_candidates

# Few different values, so that ties are the rule; or any.
_values = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0]) | st.floats(-50, 50, width=32)
_logits = npst.arrays(np.float32, st.integers(1, 40), elements=_values)


@st.composite
def split_logits(draw: st.DrawFn) -> tuple[F32, list[int]]:
    """Logits (V,) and the bounds of the nodes' parts of the vocabulary, none of them empty."""
    logits = draw(_logits)
    inner = draw(st.lists(st.integers(1, max(1, len(logits) - 1)), max_size=7))
    return logits, sorted({0, len(logits), *inner})


def mask_of(ids: list[int], n_ids: int) -> U8:
    allowed = np.zeros(n_ids, np.uint8)
    allowed[ids] = 1
    return np.packbits(allowed, bitorder="little")


@st.composite
def asked_logits(draw: st.DrawFn) -> tuple[F32, list[int], list[int], Ask]:
    """Split logits, those of their ids that can be candidates, and an ask that leaves the others out."""
    logits, bounds = draw(split_logits())
    n_ids = len(logits)
    some = st.lists(st.integers(0, n_ids - 1), unique=True)
    listed, allowed = sorted(draw(some)), draw(st.none() | some)
    ask = Ask(
        k=draw(st.integers(0, 12)),
        temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 5.0])),
        logprobs=draw(st.booleans()),
        listed=np.int32(listed) if draw(st.booleans()) or listed else None,
        mask=None if allowed is None else mask_of(allowed, n_ids),
    )
    left = [i for i in (range(n_ids) if allowed is None else allowed) if i not in listed]
    return logits, bounds, left, ask


def merged(logits: F32, bounds: list[int], ask: Ask) -> RowCandidates:
    return merge_candidates(answers(logits, bounds, ask), ask, bounds[:-1])


def answers(logits: F32, bounds: list[int], ask: Ask) -> list[NodeCandidates]:
    return [best_candidates(logits[None, first:last], [ask], first)[0] for first, last in pairwise(bounds)]


def best_first(logits: F32, ids: list[int]) -> list[int]:
    """The ids, best first, ties by lower id."""
    return sorted(ids, key=lambda i: (-logits[i], i))


def log_sum_exp(logits: F32, ids: list[int], temperature: float) -> float:
    if not ids:
        return -math.inf
    scaled = [float(logits[i]) / temperature for i in ids]
    return max(scaled) + math.log(math.fsum(math.exp(value - max(scaled)) for value in scaled))


def about(expected: float) -> object:
    """In float64 throughout: some 50 additions and exponentials of its rounding."""
    return pytest.approx(expected, rel=1e-13, abs=1e-13)


@given(asked_logits())
def test_merged_answers_begin_as_sorting_everything_does_down_to_n_sure(asked):
    logits, bounds, left, ask = asked
    found, best = merged(logits, bounds, ask), best_first(logits, left)
    assert found.ids[: found.n_sure].tolist() == best[: found.n_sure]
    assert found.logits[: found.n_sure].tolist() == logits[best[: found.n_sure]].tolist()
    assert found.n_sure >= (min(ask.k, len(left)) if ask.k else len(left))
    assert not found.complete or found.n_sure == len(found.ids) == len(left)
    assert found.complete or ask.k


@given(asked_logits())
def test_listed_logits_and_log_sum_exps_are_those_of_the_whole_row(asked):
    logits, bounds, left, ask = asked
    found = merged(logits, bounds, ask)
    assert found.listed.tolist() == ([] if ask.listed is None else logits[ask.listed].tolist())
    of_left = log_sum_exp(logits, left, ask.temperature) if ask.temperature else 0.0
    of_all = log_sum_exp(logits, list(range(len(logits))), 1.0) if ask.logprobs else 0.0
    assert found.log_sum_exp == about(of_left)
    assert found.raw_log_sum_exp == about(of_all)


@given(asked_logits())
def test_a_node_answers_with_as_many_ids_and_logits_as_the_root_expects_of_it(asked):
    logits, bounds, _, ask = asked
    for answer, (first, last) in zip(answers(logits, bounds, ask), pairwise(bounds), strict=True):
        assert (answer.ids.dtype, answer.logits.dtype, answer.listed.dtype) == (np.int32, np.float32, np.float32)
        n_logits = len(answer.logits) + len(answer.listed)
        assert ask.reply(first, last) == (len(answer.ids), n_logits, answer.complete)


@given(asked_logits(), st.sampled_from([2, 4, 8]))
def test_any_number_of_nodes_gives_the_candidates_of_one(asked, n_nodes):
    logits, _, left, ask = asked
    bounds = sorted({len(logits) * node // n_nodes for node in range(n_nodes + 1)})
    of_one, of_all = merged(logits, [0, len(logits)], ask), merged(logits, bounds, ask)
    n = min(of_one.n_sure, of_all.n_sure)
    assert n >= (min(ask.k, len(left)) if ask.k else len(left))
    assert of_one.ids[:n].tolist() == of_all.ids[:n].tolist()
    assert of_one.logits[:n].tolist() == of_all.logits[:n].tolist()
    assert of_one.listed.tolist() == of_all.listed.tolist()
    assert of_one.log_sum_exp == about(of_all.log_sum_exp)


@given(asked_logits(), st.data())
def test_listed_ids_go_back_among_the_candidates_with_other_logits(asked, data):
    logits, bounds, left, ask = asked
    if ask.listed is None:
        return
    others = data.draw(npst.arrays(np.float64, len(ask.listed), elements=_values))
    found = merged(logits, bounds, ask).with_listed(ask.listed, others, ask.temperature)
    changed = logits.astype(np.float64)
    changed[ask.listed] = others
    best = best_first(changed, sorted([*left, *ask.listed.tolist()]))
    assert found.n_sure == len(found.ids) == len(found.logits)
    assert found.ids.tolist() == best[: found.n_sure]
    assert found.logits.tolist() == changed[best[: found.n_sure]].tolist()
    assert found.n_sure >= (min(ask.k, len(best)) if ask.k else len(best))
    if ask.temperature:
        assert found.log_sum_exp == about(log_sum_exp(changed, best, ask.temperature))


def test_a_listed_id_that_goes_back_below_all_that_was_sent_is_not_sure():
    # Two were asked for; of ids 2, 3 and 4 it is not known which are better than -5.
    logits, ask = np.float32([9, 8, 7, 6, 5]), Ask(2, 1.0, listed=np.int32([1]))
    row = merged(logits, [0, 5], ask)
    assert row.with_listed(ask.listed, np.float64([-5]), 1.0).ids.tolist() == [0, 2]
    assert row.with_listed(ask.listed, np.float64([8.5]), 1.0).ids.tolist() == [0, 1, 2]


def test_a_tie_with_what_a_node_left_out_is_not_sure():
    # Nodes of 4 ids that send one each. Id 2 was left out, and comes before 5.
    row = merged(np.float32([9, 1, 9, 0, 0, 9, 0, 0]), [0, 4, 8], Ask(1))
    assert row.ids.tolist() == [0, 5]
    assert row.n_sure == 1


def test_candidates_below_the_last_of_another_nodes_truncated_list_are_not_sure():
    row = merged(np.float32([8, 7, 6, 5, 4, 3, 2, 1]), [0, 4, 8], Ask(2))
    assert row.ids.tolist() == [0, 1, 4, 5]
    assert row.n_sure == 2


@given(split_logits())
def test_the_best_one_of_every_node_gives_the_first_largest_of_all(split):
    logits, bounds = split
    assert merged(logits, bounds, Ask(1)).ids[0] == np.argmax(logits)


def test_every_row_has_an_ask_of_its_own():
    logits = np.log(np.array([[1, 3, 2], [1, 3, 2], [1, 3, 2]], np.float32))
    asks = [Ask(1), Ask(2, 0.5, logprobs=True, mask=mask_of([0, 2], 3)), Ask(0)]
    greedy, masked, all_of_them = best_candidates(logits, asks, first_id=0)
    assert (greedy.ids.tolist(), greedy.log_sum_exp, greedy.raw_log_sum_exp) == ([1], 0.0, 0.0)
    assert (masked.ids.tolist(), masked.complete) == ([2, 0], True)
    assert masked.log_sum_exp == pytest.approx(math.log(1 + 4), rel=1e-6)
    assert masked.raw_log_sum_exp == pytest.approx(math.log(1 + 3 + 2), rel=1e-6)
    assert (all_of_them.ids.tolist(), all_of_them.logits.tolist()) == ([], logits[2].tolist())


@pytest.mark.parametrize("k", [0, 1, 5])
def test_a_mask_that_allows_no_id_leaves_no_candidate_and_no_warning(k):
    row = merged(np.float32([1, 2, 3, 4]), [0, 2, 4], Ask(k, 0.7, logprobs=True, mask=mask_of([], 4)))
    assert (row.ids.tolist(), row.n_sure, row.complete) == ([], 0, True)
    assert row.log_sum_exp == -math.inf
    assert row.raw_log_sum_exp == pytest.approx(4.4401897)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_finite_numbers_are_an_error(bad):
    with pytest.raises(FormatError, match="not finite"):
        best_candidates(np.float32([[0, bad]]), [Ask(1)], 0)
    every = NodeCandidates(np.empty(0, np.int32), np.float32([0, bad]), np.empty(0, np.float32), 0.0, 0.0, True)
    with pytest.raises(FormatError, match="not finite"):
        merge_candidates([every], Ask(0), [0])


@given(asked_logits(), st.integers(1, 40))
def test_below_an_id_a_list_begins_as_sorting_the_ids_below_it_does(asked, n_ids):
    logits, bounds, left, ask = asked
    whole = merged(logits, bounds, ask)
    found = whole.below(n_ids)
    best = best_first(logits, [i for i in left if i < n_ids])
    assert found.ids[: found.n_sure].tolist() == best[: found.n_sure]
    assert found.logits[: found.n_sure].tolist() == logits[best[: found.n_sure]].tolist()
    assert (found.complete, found.log_sum_exp) == (whole.complete, whole.log_sum_exp)
    assert not found.complete or found.n_sure == len(best)


def test_nothing_is_sure_below_an_id_where_all_that_is_sure_is_above_it():
    # Nodes of 4 ids that send one each; what the second left out may be better than id 0, and be below 6.
    found = merged(np.float32([1, 0, 0, 0, 0, 2, 9, 0]), [0, 4, 8], Ask(1)).below(6)
    assert (found.ids.tolist(), found.n_sure) == ([0], 0)
