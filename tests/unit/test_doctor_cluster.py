"""What `doctor` looks at, and what it makes of a cluster: its state, its keys, its ports, its hosts."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from statuses import a_node, a_status
from surroundings import free_ports

from dllama_zmq import __version__
from dllama_zmq.cluster import ClusterFile, parse_cluster
from dllama_zmq.doctor import Subject, checks_of, keys, names, nodes, ports
from dllama_zmq.launch.registry import Record
from dllama_zmq.node_config import Ports
from dllama_zmq.trust import Entry, KeyPair, Role
from dllama_zmq.trust.learned import keep, learned_path

HERE = [
    "version",
    "packages",
    "keys",
    "kernels",
    "cores",
    "clock rate",
    "heat",
    "power",
    "memory",
    "huge pages",
    "limits",
]


def a_file(text: str) -> ClusterFile:
    return ClusterFile(Path("cluster.yaml"), parse_cluster(f"model: demo\nname: small\n{text}"))


def test_this_computer_is_looked_at_first_then_the_file_and_what_runs() -> None:
    def abouts(subject: Subject) -> list[str]:
        return [check.about for check in checks_of(subject) if check.about != "disk"]

    assert abouts(Subject()) == [*HERE, "ports"]
    assert abouts(Subject(a_file("workers: 1"))) == [*HERE, "model", "hosts", "security", "ports", "cluster"]
    assert abouts(Subject(broken="a mistake")) == [*HERE, "file"]
    assert abouts(Subject(root="tcp://192.0.2.1:5572")) == [*HERE, "ports", "cluster"]
    assert abouts(Subject(root="tcp://192.0.2.1:5573")) == [*HERE, "cluster"]  # its other ports are not known


# --- its state --------------------------------------------------------------------------------------------------------


def test_a_cluster_that_is_not_ready_is_a_problem_and_refused_peers_and_other_versions_are_warnings() -> None:
    own, old = a_node("root", version=__version__), a_node("pi2", version="0.0.9")
    found = list(nodes._state(a_status(own, old, state="ready", refused={"192.0.2.7": 3})))
    assert [(one.level, one.about) for one in found] == [
        ("ok", "cluster"),
        ("warning", "refused"),
        ("warning", "versions"),
    ]
    assert found[1].text == "connections from 192.0.2.7 (3 times)"
    assert found[2].text == f"pi2 0.0.9; this is {__version__}"
    absent = a_node("pi2", state="absent", version="")
    found = list(nodes._state(a_status(own, absent, note="waits for pi2")))
    assert [(one.level, one.text) for one in found] == [
        ("problem", "small is not ready: waits for pi2"),
        ("ok", f"1 node present, each with {__version__}"),
    ]


@pytest.mark.parametrize(
    ("ahead_s", "text"),
    [(86400.0, "pi2's is 86400 s ahead of the root's"), (-31.0, "pi2's is 31 s behind the root's"), (-29.0, "")],
)
def test_a_clock_that_is_far_off_is_a_warning(ahead_s: float, text: str) -> None:
    found = [(one.level, one.text) for one in nodes._clock("pi2's", ahead_s, "the root's")]
    assert found == ([("warning", text)] if text else [])


# --- its keys ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(tmp_path))
    return tmp_path


SECURED = "root: {host: 192.0.2.1}\nworkers: [{name: pi2, host: 192.0.2.2}, {name: here}, {name: too}]"


def test_workers_elsewhere_without_a_key_will_need_a_token(home: Path) -> None:
    file = a_file(SECURED)
    (found,) = keys.ring(file)
    assert (found.level, found.text.partition("`")[0]) == ("ok", "curve; 0 keys may connect; pi2 will need a token: ")
    keep("small", Entry(Role.worker, "pi2", KeyPair.new().public))
    assert [one.text for one in keys.ring(file)] == ["curve; 1 key may connect"]


def test_a_key_for_any_place_will_do_for_a_worker_elsewhere(home: Path) -> None:
    keep("small", Entry(Role.worker, "", KeyPair.new().public))
    assert [one.text for one in keys.ring(a_file(SECURED))] == ["curve; 1 key may connect"]


def test_a_list_of_keys_that_others_can_write_is_a_problem_with_the_command_that_mends_it(home: Path) -> None:
    keep("small", Entry(Role.worker, "pi2", KeyPair.new().public))
    learned_path("small").chmod(0o666)
    (found,) = keys.ring(a_file(SECURED))
    assert found.level == "problem"
    assert "chmod" in found.cure
    assert str(learned_path("small")) in found.cure


def test_a_key_that_is_a_link_to_nowhere_is_a_problem(home: Path) -> None:
    (home / "keys").mkdir(mode=0o700)
    (home / "keys" / "key").symlink_to("nowhere")
    (found,) = keys.own_keys()
    assert (found.level, "symbolic link" in found.text) == ("problem", True)


# --- its ports --------------------------------------------------------------------------------------------------------


def with_ports(more: str = "workers: 1") -> tuple[ClusterFile, Ports]:
    made = Ports(**dict(zip(("replies", "steps", "clients"), free_ports(3), strict=True)))
    root = f"root: {{ports: {{replies: {made.replies}, steps: {made.steps}, clients: {made.clients}}}}}"
    return a_file(f"{root}\n{more}"), made


def test_a_port_that_the_cluster_itself_has_is_its_own_and_one_of_another_process_is_not() -> None:
    file, used = with_ports()
    with (
        socket.create_server(("127.0.0.1", used.steps)),
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as other,
    ):
        own, free = ports.own_ports(file.cluster, lambda: Record.of(file))  # this process is its root
        assert (own.level, own.text.partition(", of ")[0]) == ("ok", f"{used.steps} (steps) is this cluster's own")
        assert free.text == f"{used.replies} (replies), {used.clients} (clients) on 127.0.0.1: free"
        record = Record(path_text="x", cluster=file.cluster, pid=other.pid, since=0.0)
        found = list(ports.own_ports(file.cluster, lambda: record))
        assert [one.level for one in found] == ["problem", "ok"]
        other.communicate()


def test_before_there_is_a_file_a_taken_port_is_only_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    _, usual = with_ports()
    monkeypatch.setattr(ports, "Ports", lambda: usual)
    with socket.create_server(("0.0.0.0", usual.clients)):
        found = list(ports.own_ports(None, lambda: None))
    assert [one.level for one in found] == ["warning", "ok"]
    assert "root.ports" in found[0].cure


def test_a_port_that_only_the_administrator_may_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = with_ports("")
    monkeypatch.setattr(ports, "bind_error", lambda host, port: errno.EACCES)
    (found,) = ports.own_ports(file.cluster, lambda: None)
    assert (found.level, found.text.endswith(os.strerror(errno.EACCES))) == ("problem", True)
    assert found.cure == "use ports from 1024 on"


def test_a_cluster_of_one_node_needs_only_the_port_of_clients_and_that_of_its_api() -> None:
    api = free_ports(1)[0]
    file, own = with_ports(f"api: {{port: {api}}}")
    with socket.create_server(("127.0.0.1", api)):
        taken, free = ports.own_ports(file.cluster, lambda: None)
    assert (taken.level, taken.text.partition(" is ")[0]) == ("problem", f"{api} (API) on 127.0.0.1")
    assert taken.cure == "stop it"
    assert free.text == f"{own.clients} (clients) on 127.0.0.1: free"


def test_a_cluster_of_this_computer_needs_no_ports() -> None:
    (found,) = ports.own_ports(a_file("workers: 1\napi: false").cluster, lambda: None)
    assert (found.level, "no TCP ports" in found.text) == ("ok", True)


# --- its hosts --------------------------------------------------------------------------------------------------------


def test_workers_of_a_root_on_another_computer_are_not_looked_for() -> None:
    """They need a way to that one, not to this."""
    (found,) = names.hosts(
        a_file("security: none\nroot: {host: 192.0.2.1}\nworkers: [{name: a, host: 192.0.2.2}]").cluster
    )
    assert (found.level, found.text) == ("ok", "192.0.2.1 is another computer")


def test_a_host_of_two_workers_is_looked_for_once() -> None:
    workers = "[{name: a, host: no-such-host.invalid}, {name: b, host: no-such-host.invalid}, {name: c}]"
    found = list(names.hosts(a_file(f"security: none\nroot: {{host: 0.0.0.0}}\nworkers: {workers}").cluster))
    assert [one.about for one in found] == ["workers: no-such-host.invalid"]


def test_a_computer_that_does_not_answer_is_a_warning_and_any_address_is_the_roots() -> None:
    silent = list(names._way("pi2", ["255.255.255.255"], "0.0.0.0"))
    assert [one.level for one in silent] == ["warning"]
    assert "does not answer at ports 22 and 9" in silent[0].text
