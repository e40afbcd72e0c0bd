"""Checks of `doctor`: each ends at its deadline, whatever it meets; names and ports of a cluster's file."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from surroundings import free_ports

from dllama_zmq.bus import addresses
from dllama_zmq.bus.text_messages import LinkStatus
from dllama_zmq.cluster import Cluster, ClusterFile, parse_cluster
from dllama_zmq.doctor import Check, Finding, Subject, checks_of, examined, keys, names, nodes, ports, programs
from dllama_zmq.doctor.findings import ok
from dllama_zmq.errors import ClusterError
from dllama_zmq.node_config import Ports
from dllama_zmq.trust import own_key
from dllama_zmq.trust.files import HOME_VARIABLE


def cluster(text: str) -> Cluster:
    return parse_cluster(f"model: demo\nsecurity: none\n{text}")


def test_a_check_that_hangs_is_a_finding_and_what_it_has_found_before_counts() -> None:
    end = threading.Event()

    def look() -> Iterator[Finding]:
        yield ok("disk", "one is well")
        end.wait(60)

    start = time.monotonic()
    found = list(examined(Check("disk", "looking at /mnt", 0.2, look)))
    end.set()
    assert time.monotonic() - start < 10
    assert [(one.level, one.text) for one in found] == [
        ("ok", "one is well"),
        ("problem", "no answer within 0 s while looking at /mnt"),
    ]


def test_an_error_of_a_check_is_a_finding() -> None:
    def look() -> Iterator[Finding]:
        yield ok("ports", "5570 is free")
        raise ClusterError("the name is another cluster's")

    found = list(examined(Check("ports", "looking at ports", 10.0, look)))
    assert [one.level for one in found] == ["ok", "problem"]
    assert found[1].text == "the check failed: the name is another cluster's"


def test_the_disk_on_which_a_worker_keeps_weights_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    found = [one for check in checks_of(Subject()) if check.about == "disk" for one in examined(check)]
    (kept,) = (one for one in found if one.text.startswith(f"weights of earlier starts in {tmp_path}/slices: "))
    assert kept.text.endswith(" free")


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_worker_of_an_unknown_name_is_a_problem_and_the_others_are_looked_for() -> None:
    workers = "[{name: a, host: no-such-pi.local}, {name: b, host: no-such-host.invalid}, {name: c}]"
    found = list(names.hosts(cluster(f"root: {{host: 0.0.0.0}}\nworkers: {workers}")))
    assert [(one.level, one.about) for one in found] == [
        ("problem", "workers: no-such-pi.local"),
        ("problem", "workers: no-such-host.invalid"),
    ]
    assert "libnss-mdns" in found[0].cure


def test_a_root_whose_name_is_a_loopback_address_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def look_up(host: str, port: int, **more: object) -> list[object]:
        return real("127.0.1.1" if host == "pi1" else host, port, **more)

    monkeypatch.setattr(addresses.socket, "getaddrinfo", look_up)
    (found,) = names.hosts(cluster("root: {host: pi1}"))
    assert (found.level, found.text.partition(",")[0]) == ("problem", "pi1 is 127.0.1.1 here")


def test_the_way_to_a_worker_leads_from_an_address_that_is_the_roots_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_DOORS", free_ports(1))
    ways = [
        ("127.0.0.1", "127.0.0.1", ["ok"]),
        ("127.0.0.1", "0.0.0.0", ["ok"]),
        ("127.0.0.1", "192.0.2.1", ["ok", "warning"]),
    ]
    if addresses._is_here("::1"):
        ways.append(("::1", "::1%lo", ["ok"]))
    for worker, root, levels in ways:
        assert [one.level for one in names._way(worker, [worker], root)] == levels


def test_a_computer_answers_by_refusing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    refused, taken = free_ports(1)[0], socket.create_server(("127.0.0.1", 0))
    with taken:
        for doors in ((refused,), (taken.getsockname()[1],)):
            monkeypatch.setattr(names, "_DOORS", doors)
            took_s = names._answers("127.0.0.1")
            assert took_s is not None
            assert took_s < 1
    assert names._answers("255.255.255.255") is None


# --- ports ------------------------------------------------------------------------------------------------------------


def test_a_port_that_another_program_has_is_a_problem_that_names_it() -> None:
    replies, steps, clients = free_ports(3)
    described = f"root: {{ports: {{replies: {replies}, steps: {steps}, clients: {clients}}}}}\nworkers: 1"
    with socket.create_server(("127.0.0.1", steps)):
        found = list(ports.own_ports(cluster(described), lambda: None))
    assert [one.level for one in found] == ["problem", "ok"]
    assert f"{steps} (steps) on 127.0.0.1 is taken by" in found[0].text
    assert "(process " in found[0].text
    assert found[1].text == f"{replies} (replies), {clients} (clients) on 127.0.0.1: free"


def test_the_ports_of_a_root_elsewhere_are_reported_one_by_one() -> None:
    replies, steps, clients = free_ports(3)
    with socket.create_server(("127.0.0.1", clients)):
        found = list(ports.ports_elsewhere("127.0.0.1", Ports(replies=replies, steps=steps, clients=clients)))
    assert [one.level for one in found] == ["problem", "problem", "ok"]
    assert "connection refused" in found[0].text
    assert found[2].text == f"{clients} (clients) of 127.0.0.1 can be reached"


# --- nodes and programs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "levels", "words"),
    [
        (LinkStatus("pi2", 3e-4, 117e6, 117e6, 0.001), ["ok"], "round trip 0.30 ms, 936 Mbit/s to it, 936 from it"),
        (LinkStatus("pi2", 8e-3, 117e6, 117e6, 0.001), ["warning"], "round trip 8.00 ms"),
        (LinkStatus("pi2", 3e-4, 5e6, 5e6, 0.001), ["warning"], "40 Mbit/s to it, 40 from it"),
        (LinkStatus("pi2", 3e-4, 12e6, 12e6, 0.001), ["warning"], "96 Mbit/s to it, 96 from it"),
        (LinkStatus("pi2", 3e-4, 117e6, 30e6, 0.001), ["warning"], "936 Mbit/s to it, 240 from it"),
        (LinkStatus("pi2", note="it is absent"), ["problem"], "not measured: it is absent"),
        (LinkStatus("pi2", 3e-4, note="it did not answer"), ["problem"], "round trip 0.30 ms; it did not answer"),
        (LinkStatus("pi2", 3e-4, 117e6, 117e6, -86400.0), ["ok", "warning"], "round trip 0.30 ms"),
    ],
    ids=["wired", "far", "slow", "100 Mbit", "lopsided", "absent", "silent", "clock"],
)
def test_a_link_is_judged_by_its_numbers(link: LinkStatus, levels: list[str], words: str) -> None:
    found = list(nodes._link(link))
    assert [one.level for one in found] == levels
    assert found[0].text.startswith(words) or found[0].text.endswith(words)
    if len(found) > 1:
        assert found[1].text == "pi2's is 86400 s behind the root's"


def test_a_package_that_is_missing_or_too_old_is_a_problem_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "dllama_zmq-0.1.dist-info"
    info.mkdir()
    needs = ["numpy>=1.26", "msgspec>=99", "no-such-package>=1", "pytest; extra == 'dev'"]
    rows = "".join(f"Requires-Dist: {need}\n" for need in needs)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dllama-zmq\nVersion: 0.1\n{rows}")
    monkeypatch.syspath_prepend(tmp_path)
    found = list(programs.packages())
    assert [(one.level, one.text.partition(" ")[0], one.cure) for one in found] == [
        ("problem", "msgspec", "pip install 'msgspec>=99'"),
        ("problem", "no-such-package", "pip install 'no-such-package>=1'"),
    ]


def test_a_libzmq_without_curve_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda capability: False)
    _, found = programs.versions()
    assert (found.level, found.text.endswith("without CURVE: nothing can be encrypted")) == ("problem", True)


def test_a_computer_of_32_bits_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "maxsize", (1 << 31) - 1)
    (found,) = programs.kernels()
    assert (found.level, found.cure) == ("warning", "install a 64-bit system")


def test_the_packages_of_this_environment_and_its_libzmq_will_do() -> None:
    for found in (*programs.versions(), *programs.packages()):
        assert found.level == "ok", found.text


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_that_others_can_read_is_a_problem_with_the_command_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(tmp_path))
    assert [one.level for one in keys.own_keys()] == ["ok"]
    assert not (tmp_path / "keys").exists()  # looking makes none
    public = own_key().public
    (found,) = keys.own_keys()
    assert (found.level, public in found.text, "mode 0600" in found.text) == ("ok", True, True)
    path = tmp_path / "keys" / "key"
    path.chmod(0o644)
    (tmp_path / "keys" / "known_roots").write_text("nonsense\n")
    first, second = keys.own_keys()
    assert (first.level, first.cure) == ("problem", f"make it yours alone: chmod 600 {path}")
    assert (second.level, second.cure) == ("problem", "remove this line")


def test_an_open_bus_is_a_warning() -> None:
    path = Path("cluster.yaml")
    (found,) = keys.ring(ClusterFile(path, cluster("root: {host: 192.0.2.1}")))
    assert (found.level, found.about) == ("warning", "security")
    assert list(keys.ring(ClusterFile(path, cluster("workers: 1")))) == []
