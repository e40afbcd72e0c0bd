"""The cases that `make test` takes of a test with several lists of parameters."""

from __future__ import annotations

import itertools
import random

import pytest
from cases import covering, select
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.lists(st.text(max_size=1), min_size=1, unique=True), min_size=2, max_size=4), st.data())
def test_each_value_is_in_a_case_and_no_case_is_there_twice(lists: list[list[str]], data: st.DataObject) -> None:
    product = list(itertools.product(*lists))
    cases = data.draw(st.lists(st.sampled_from(product), min_size=1, unique=True))
    chosen = covering(cases, random.Random(data.draw(st.integers())))
    assert len(set(chosen)) == len(chosen)
    columns = zip(*cases, strict=True), zip(*(cases[i] for i in chosen), strict=True)
    assert all(set(values) == set(taken) for values, taken in zip(*columns, strict=True))


def test_cases_are_few_and_others_with_another_seed() -> None:
    product = list(itertools.product("abcdefgh", "123", "xy"))
    found = [covering(product, random.Random(seed)) for seed in range(10)]
    assert all(8 <= len(chosen) <= 11 for chosen in found)
    assert len(set(map(tuple, found))) == 10


@pytest.mark.parametrize("cases", [[], [[]], [["a"], ["b"], ["c"]]])
def test_of_one_list_all_cases_are_taken(cases: list[list[str]]) -> None:
    assert covering(cases, random.Random(1)) == list(range(len(cases)))


@pytest.mark.few(2)
@pytest.mark.parametrize("number", range(5))
def test_of_a_test_marked_as_such_few_cases_are_taken(request: pytest.FixtureRequest, number: int) -> None:
    mine = [item for item in request.session.items if item.nodeid.startswith(request.node.nodeid.partition("[")[0])]
    taken = [select(mine, str(seed))[0] for seed in range(10)]
    assert {len(kept) for kept in taken} == {min(2, len(mine))}
    assert len(mine) < 5 or len({tuple(map(id, kept)) for kept in taken}) > 1


@pytest.mark.parametrize("word", ["a", "b"])
@pytest.mark.parametrize("number", [1, 2])
def test_of_this_very_run_no_test_and_no_value_is_left_out(
    request: pytest.FixtureRequest, word: str, number: int
) -> None:
    items = request.session.items
    kept, others = select(items, f"{word}{number}")
    assert sorted(map(id, [*kept, *others])) == sorted(map(id, items))

    def names(of: list[pytest.Item]) -> set[str]:
        return {item.nodeid.partition("[")[0] for item in of}

    def values(of: list[pytest.Item]) -> list[set[str]]:
        mine = [item.nodeid for item in of if item.nodeid.startswith(request.node.nodeid.partition("[")[0])]
        return [set(column) for column in zip(*(name[:-1].partition("[")[2].split("-") for name in mine), strict=True)]

    assert names(kept) == names(items)
    assert values(kept) == values(items)
