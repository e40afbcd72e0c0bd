"""Which cases of a test run if not all do: so many that each value of each list of parameters is in one.

A test of 14 architectures, 3 kinds of kernels and 3 numbers of nodes has 126 cases, of which 14 have each architecture,
each kind and each number ("each-choice coverage" in Ammann and Offutt, Introduction to Software Testing). Of a test
with one list all cases run, unless it is marked `few(n)`: then n of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest


def select(items: list[pytest.Item], seed: str) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Those of `items` that run if not all cases do, and the others. Another `seed` takes other cases of a test."""
    tests: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        tests.setdefault(item.nodeid.partition("[")[0], []).append(i)
    kept = set()
    for name, places in tests.items():
        rng = random.Random(f"{seed} {name}")
        few = items[places[0]].get_closest_marker("few")
        if few is not None:
            kept |= set(rng.sample(places, min(few.args[0], len(places))))
        else:
            kept |= {places[i] for i in covering([_values(items[i]) for i in places], rng)}
    return [items[i] for i in sorted(kept)], [item for i, item in enumerate(items) if i not in kept]


def _values(item: pytest.Item) -> list[str]:
    """The name of a case's value of each of its lists of parameters, for which pytest has no public word."""
    case = getattr(item, "callspec", None)
    return list(case._idlist) if case else []


def covering(cases: Sequence[Sequence[str]], rng: random.Random) -> list[int]:
    """Indices of cases that have each value of each list of parameters; few, though not always the fewest.

    cases: their values, one of each list. With one list, or none, these are all cases.
    """
    if not cases or len(cases[0]) < 2:
        return list(range(len(cases)))
    missing = {value for values in cases for value in enumerate(values)}
    order, chosen = rng.sample(range(len(cases)), len(cases)), []
    for n_new in range(len(cases[0]), 0, -1):  # at first those that bring one of each list
        for i in order:
            new = missing.intersection(enumerate(cases[i]))
            if len(new) >= n_new:
                chosen.append(i)
                missing -= new
    return sorted(chosen)
