"""The computers that `plan` takes the nodes of a file or of a running cluster to be on, and what these have."""

from __future__ import annotations

from functools import partial

import pytest
from statuses import a_node, a_status

from dllama_zmq.bench.outlook import Host
from dllama_zmq.cli import plan_question
from dllama_zmq.cli.plan_question import hosts_of_file, hosts_of_nothing, hosts_of_status
from dllama_zmq.cluster import parse_cluster

GB = 10**9
FOUR_CORES = 4


@pytest.fixture(autouse=True)
def this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has four cores and 8 GB free."""
    monkeypatch.setattr(plan_question, "usable_cores", lambda: FOUR_CORES)
    monkeypatch.setattr(plan_question, "free_memory_bytes", lambda: 8 * GB)


def fields_of(host: Host) -> tuple[str, list[str], int, int | None]:
    return host.host, list(host.nodes), host.threads, host.free_bytes


def test_without_a_file_each_node_has_a_computer_like_this_one_or_all_share_it() -> None:
    assert [fields_of(host) for host in hosts_of_nothing(False, None, GB, 2)] == [
        ("this computer", ["root"], 4, 8 * GB),
        ("the computer of worker1", ["worker1"], 4, GB),
    ]
    assert [fields_of(host) for host in hosts_of_nothing(True, None, GB, 2)] == [
        ("this computer", ["root", "worker1"], 2, 8 * GB)
    ]
    assert hosts_of_nothing(True, 3, None, 2)[0].threads == 3
    assert hosts_of_nothing(True, None, None, 16)[0].threads == 1


FILE = """
model: demo
security: none
root: {host: 192.0.2.1, threads: 2}
workers:
  - {name: here, threads: 1}
  - {name: pi1, host: 192.0.2.11, threads: 16}
  - {name: pi2, host: 192.0.2.11}
"""


def test_a_file_says_who_shares_a_computer_and_with_how_many_threads() -> None:
    hosts = partial(hosts_of_file, parse_cluster(FILE), None, GB)
    assert [fields_of(host) for host in hosts(2)] == [("this computer", ["root", "here"], 1, 8 * GB)]
    assert [fields_of(host) for host in hosts(4)] == [
        ("this computer", ["root", "here"], 1, 8 * GB),
        # No other computer is taken to have more cores than this one, whose speed is measured.
        ("192.0.2.11", ["pi1", "pi2"], 2, GB),
    ]
    assert [host.threads for host in hosts_of_file(parse_cluster(FILE), 2, None, 4)] == [2, 2]


def test_the_nodes_of_a_running_cluster_are_where_they_are_and_have_what_they_had() -> None:
    status = a_status(
        a_node("root", host="box", address="192.0.2.1", free_bytes=2 * GB, weight_bytes=GB, threads=2),
        a_node("over ipc", host="box", free_bytes=9 * GB, weight_bytes=3 * GB, threads=2),
        a_node("over tcp", host="box", address="192.0.2.1", free_bytes=9 * GB, weight_bytes=GB, threads=2),
        a_node("pi1", host="pi", address="192.0.2.11", free_bytes=4 * GB, threads=4),
        a_node("pi2", host="pi", address="192.0.2.11", free_bytes=3 * GB, threads=4),
        a_node("pi3", host="pi", address="192.0.2.12", free_bytes=None, threads=4),
    )
    assert [fields_of(host) for host in hosts_of_status(status, None, None, 6)] == [
        ("box", ["root", "over ipc", "over tcp"], 1, 7 * GB),  # what is free now, and what the weights take
        ("pi 192.0.2.11", ["pi1", "pi2"], 2, 4 * GB),  # the first one found most
        ("pi 192.0.2.12", ["pi3"], 4, None),
    ]
    assert [host.free_bytes for host in hosts_of_status(status, None, GB, 6)] == [7 * GB, GB, GB]
    assert [fields_of(host) for host in hosts_of_status(status, None, None, 1)] == [("box", ["root"], 2, 3 * GB)]
