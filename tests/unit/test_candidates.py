"""Candidates: what nodes send of their logits is, merged, the beginning of what sorting all of them gives."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dllama_zmq.quants import F32
from dllama_zmq.sharding import NodeCandidates, best_candidates, merge_candidates

# Few different values, so that ties are the rule; or any.
_logits = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0]) | st.floats(-50, 50, width=32),
)


@st.composite
def split_logits(draw: st.DrawFn) -> tuple[F32, list[int]]:
    """Logits (R, V) and the bounds of the nodes' parts of the vocabulary, none of them empty."""
    logits = draw(_logits)
    inner = draw(st.lists(st.integers(1, max(1, logits.shape[1] - 1)), max_size=7))
    return logits, sorted({0, logits.shape[1], *inner})


def from_nodes(logits: F32, bounds: list[int], k: int, temperature: float = 1.0) -> list[NodeCandidates]:
    temperatures = [temperature] * len(logits)
    return [best_candidates(logits[:, first:last], k, temperatures, first) for first, last in pairwise(bounds)]


def sorted_ids(row: F32) -> list[int]:
    """All ids, best first, ties by lower id."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


@given(split_logits(), st.integers(1, 12))
def test_a_merged_list_begins_as_sorting_everything_does_down_to_n_sure(split, k):
    logits, bounds = split
    rows = merge_candidates(from_nodes(logits, bounds, k))
    for row, found in zip(logits, rows, strict=True):
        best = sorted_ids(row)
        assert found.ids[: found.n_sure].tolist() == best[: found.n_sure]
        assert found.logits[: found.n_sure].tolist() == row[best[: found.n_sure]].tolist()
        assert found.n_sure >= min(k, len(row))


@given(split_logits(), st.integers(1, 40))
def test_a_list_is_complete_when_every_node_sent_all_it_has(split, k):
    logits, bounds = split
    complete = k >= max(last - first for first, last in pairwise(bounds))
    for row in merge_candidates(from_nodes(logits, bounds, k)):
        assert row.complete == complete
        assert not complete or row.n_sure == len(row.ids) == logits.shape[1]


def test_a_tie_with_what_a_node_left_out_is_not_sure():
    # Nodes of 4 ids that send one each. Id 2 was left out, and comes before 5.
    logits = np.array([[9, 1, 9, 0, 0, 9, 0, 0]], np.float32)
    (row,) = merge_candidates(from_nodes(logits, [0, 4, 8], k=1))
    assert row.ids.tolist() == [0, 5]
    assert row.n_sure == 1


def test_what_a_worse_node_sent_below_another_nodes_last_is_not_sure():
    logits = np.array([[8, 7, 6, 5, 4, 3, 2, 1]], np.float32)
    (row,) = merge_candidates(from_nodes(logits, [0, 4, 8], k=2))
    assert row.ids.tolist() == [0, 1, 4, 5]
    assert row.n_sure == 2


@given(split_logits())
def test_the_best_one_of_every_node_gives_the_first_largest_of_all(split):
    logits, bounds = split
    rows = merge_candidates(from_nodes(logits, bounds, k=1, temperature=0.0))
    assert [int(row.ids[0]) for row in rows] == np.argmax(logits, axis=1).tolist()


@given(split_logits(), st.floats(0.05, 20))
def test_the_log_sum_exp_is_that_of_the_whole_row_at_the_temperature_asked_for(split, temperature):
    logits, bounds = split
    for row, found in zip(logits, merge_candidates(from_nodes(logits, bounds, 1, temperature)), strict=True):
        scaled = [float(value) / temperature for value in row]
        expected = max(scaled) + math.log(math.fsum(math.exp(value - max(scaled)) for value in scaled))
        # float64 throughout: some 50 additions and exponentials of its rounding
        assert found.log_sum_exp == pytest.approx(expected, rel=1e-13, abs=1e-13)


def test_each_row_has_its_own_temperature():
    logits = np.log(np.array([[1, 3], [1, 3]], np.float32))
    node = best_candidates(logits, 2, [1.0, 0.5], first_id=0)
    assert node.log_sum_exp.tolist() == pytest.approx([math.log(1 + 3), math.log(1 + 9)], rel=1e-7)


@given(_logits, st.integers(1, 50), st.integers(0, 1000))
def test_a_nodes_candidates_are_its_best_with_ids_of_the_whole_vocabulary(logits, k, first_id):
    node = best_candidates(logits, k, [0.0] * len(logits), first_id)
    assert (node.ids.dtype, node.logits.dtype) == (np.int32, np.float32)
    assert node.complete == (k >= logits.shape[1])
    for row, ids, values in zip(logits, node.ids, node.logits, strict=True):
        best = sorted_ids(row)[:k]
        assert ids.tolist() == [first_id + i for i in best]
        assert values.tolist() == row[best].tolist()


@given(split_logits(), st.integers(1, 12), st.integers(1, 40))
def test_below_an_id_a_list_begins_as_sorting_the_ids_below_it_does(split, k, n_ids):
    logits, bounds = split
    for row, whole in zip(logits, merge_candidates(from_nodes(logits, bounds, k)), strict=True):
        found = whole.below(n_ids)
        best = sorted_ids(row[:n_ids])
        assert found.ids[: found.n_sure].tolist() == best[: found.n_sure]
        assert found.logits[: found.n_sure].tolist() == row[best[: found.n_sure]].tolist()
        assert (found.complete, found.log_sum_exp) == (whole.complete, whole.log_sum_exp)
        assert not found.complete or found.n_sure == len(best)


def test_nothing_is_sure_below_an_id_where_all_that_is_sure_is_above_it():
    # Nodes of 4 ids that send one each; what the second left out may be better than id 0, and be below 6.
    logits = np.array([[1, 0, 0, 0, 0, 2, 9, 0]], np.float32)
    found = merge_candidates(from_nodes(logits, [0, 4, 8], k=1))[0].below(6)
    assert (found.ids.tolist(), found.n_sure) == ([0], 0)
