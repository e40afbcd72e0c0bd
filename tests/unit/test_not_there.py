"""The messages to people about a cluster that does not get ready."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from dllama_zmq.cluster import ClusterFile, parse_cluster
from dllama_zmq.launch.lifecycle import commands_elsewhere, not_there
from dllama_zmq.trust import Entry, KeyPair, Role, own_key
from dllama_zmq.trust.learned import keep

TEXT = """
name: pis
model: demo
security: none
root: {host: 192.168.1.10}
workers: [{name: worker1}, {name: pi2, host: 192.168.1.11}, {name: pi3, host: 192.168.1.12}]
"""


def test_a_missing_worker_is_named_with_what_to_start_where_or_which_log_to_read(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(home))
    file = ClusterFile(Path("home.yaml"), parse_cluster(TEXT))
    absent = {"worker1": "has not joined yet", "pi2": "was lost"}
    assert not_there(file, absent) == (
        "not every worker is there after 60 s (limits.join_s): "
        "worker1 has not joined yet: see its log: dllama-zmq logs worker1 --cluster home.yaml; "
        "pi2 was lost: on 192.168.1.11: dllama-zmq worker 192.168.1.10 --security none"
    )
    sentence = not_there(replace(file, private=True), absent)  # no command finds this one
    assert f"worker1 has not joined yet: see its log: {home}/logs/pis/worker1.log; " in sentence


def test_a_worker_that_the_root_does_not_know_needs_a_token_and_others_what_they_lack(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(home))
    key = KeyPair.new().public
    text = TEXT.replace("security: none\n", "").replace("192.168.1.12}", f"192.168.1.12, key: '{key}'}}")
    file = ClusterFile(Path("home.yaml"), parse_cluster(text))
    token = "dllama-zmq worker --join TOKEN, which `dllama-zmq token pi2 --cluster home.yaml` prints here"
    assert commands_elsewhere(file) == {
        "pi2": f"on 192.168.1.11: {token}",
        "pi3": f"on 192.168.1.12: dllama-zmq worker 192.168.1.10 --root-key '{own_key().public}'",
    }
    keep("pis", Entry(Role.worker, "pi2", KeyPair.new().public))
    assert commands_elsewhere(file)["pi2"] == "on 192.168.1.11: dllama-zmq worker 192.168.1.10"
