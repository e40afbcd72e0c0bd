"""Threads of the nodes of one host: its cores, shared."""

from __future__ import annotations

import pytest

from dllama_zmq.launch.local_nodes import shared


@pytest.mark.parametrize(
    ("wanted", "cores", "threads", "oversubscribed"),
    [
        (["auto"], 4, [4], False),
        (["auto", "auto"], 4, [2, 2], False),
        (["auto"] * 4, 6, [1, 1, 1, 1], False),
        (["auto"] * 4, 2, [1, 1, 1, 1], True),
        ([3, "auto"], 4, [3, 2], True),
        ([1, 1], 2, [1, 1], False),
    ],
)
def test_nodes_share_the_cores_of_their_host_and_know_when_these_are_too_few(wanted, cores, threads, oversubscribed):
    assert shared(wanted, cores) == (threads, oversubscribed)
