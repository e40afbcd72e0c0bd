"""The node that the others wait for is named; where no node stands out, none is."""

from __future__ import annotations

import pytest

from dllama_zmq.bus.slowest import Slowest, slowest, waited_for_root_s


@pytest.mark.parametrize(
    ("waited_for_s", "n_nodes", "expected"),
    [
        ({"pi2": 0.5, "pi3": 6.0, "pi4": 0.5}, 4, Slowest("pi3", 6 / 7)),
        ({"root": 3.0, "pi2": 0.5}, 2, Slowest("root", 3 / 3.5)),
        ({"pi2": 3.0}, 2, Slowest("pi2", 1.0)),
        ({"pi2": 2.1, "pi3": 2.0, "pi4": 2.0}, 4, None),  # equal nodes come last by turns
        ({"pi2": 0.9}, 2, None),  # 9% of the time: the link's latency
        ({"root": 0.0}, 1, None),
        ({}, 1, None),
    ],
    ids=["a worker", "the root", "of two", "equal nodes", "little waiting", "one node", "nothing measured"],
)
def test_a_node_is_named_where_it_causes_most_of_the_waiting(
    waited_for_s: dict[str, float], n_nodes: int, expected: Slowest | None
) -> None:
    assert slowest(waited_for_s, wall_s=10.0, n_nodes=n_nodes) == expected


def test_workers_wait_for_a_root_that_computes_longer_than_each_of_them() -> None:
    assert waited_for_root_s({"root": 3.0, "pi2": 1.0, "pi3": 2.5}) == 0.5
    assert waited_for_root_s({"root": 2.0, "pi2": 1.0, "pi3": 2.5}) == 0.0
    assert waited_for_root_s({"root": 2.0}) == 0.0
