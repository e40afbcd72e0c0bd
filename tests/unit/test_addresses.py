"""Addresses as people write them, and names with several addresses."""

from __future__ import annotations

import socket

import pytest

from dllama_zmq.bus import addresses
from dllama_zmq.bus.addresses import (
    endpoint_of,
    listening,
    reachable,
    resolve,
    why_no_answer,
    with_host_of,
    without_host,
)
from dllama_zmq.errors import BusError, UsageError


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("pi1", "tcp://pi1:5570"),
        ("pi1:99", "tcp://pi1:99"),
        ("tcp://pi1", "tcp://pi1:5570"),
        ("192.168.1.10", "tcp://192.168.1.10:5570"),
        ("tcp://192.168.1.10:99", "tcp://192.168.1.10:99"),
        ("::1", "tcp://[::1]:5570"),
        ("fd77::1", "tcp://[fd77::1]:5570"),
        ("[fd77::1]", "tcp://[fd77::1]:5570"),
        ("tcp://[fd77::1]:99", "tcp://[fd77::1]:99"),
        ("tcp://fd77::1:5570", "tcp://[fd77::1]:5570"),
        ("fe80::1%eth0", "tcp://[fe80::1%eth0]:5570"),
        ("ipc:///run/x/replies", "ipc:///run/x/replies"),
        ("inproc://x", "inproc://x"),
    ],
)
def test_an_address_is_understood_as_people_write_it(text: str, endpoint: str) -> None:
    assert endpoint_of(text, 5570) == endpoint


@pytest.mark.parametrize("text", ["", "tcp://", ":5570", "pi 1", "http://pi1", "ipc://", "[", "pi1/x"])
def test_a_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected HOST"):
        endpoint_of(text, 5570)


@pytest.mark.parametrize("text", ["pi1:0", "pi1:65536", "pi1:http", "pi1:-1", "[::1]:x"])
def test_a_text_that_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected 1 to 65535, or none for 5570"):
        endpoint_of(text, 5570)


def test_a_name_that_nobody_has_is_an_error_that_names_it() -> None:
    with pytest.raises(BusError, match=r"^no-such-host\.invalid: this computer knows no host of that name"):
        resolve("tcp://no-such-host.invalid:5570")


def test_a_host_is_left_out_and_put_in() -> None:
    assert without_host("tcp://[fd77::1]:5570") == "tcp://*:5570"
    assert without_host("ipc:///x") == "ipc:///x"
    assert with_host_of("tcp://*:5571", "tcp://[fd77::1]:5570") == "tcp://[fd77::1]:5571"
    assert with_host_of("tcp://10.0.0.1:5571", "tcp://10.0.0.2:5570") == "tcp://10.0.0.1:5571"


def test_the_address_of_a_name_where_somebody_listens_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def both(host: str, port: int, **_: object) -> list[object]:
            return [(socket.AF_INET6, 1, 6, "", ("::1", port, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(addresses.socket, "getaddrinfo", both)  # the resolver is the system's
        assert resolve(f"tcp://dual.test:{port}") == [f"tcp://[::1]:{port}", f"tcp://127.0.0.1:{port}"]
        monkeypatch.undo()
        monkeypatch.setattr(addresses, "resolve", lambda endpoint: [f"tcp://[::1]:{port}", f"tcp://127.0.0.1:{port}"])
        assert reachable(f"tcp://dual.test:{port}") == f"tcp://127.0.0.1:{port}"


def test_the_reason_for_no_answer_is_said_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert "a program listens at 127.0.0.1" in why_no_answer(address, "its port")
    assert "(connection refused): is the cluster up there" in why_no_answer(address, "its port")
    no_host = why_no_answer("tcp://255.255.255.255:5570", "its port")  # a broadcast: TCP has no way there
    assert no_host.startswith("no way leads to 255.255.255.255 (Network is unreachable): is this its address")


def test_a_computer_that_answers_nothing_is_distinguished_from_one_that_refuses() -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as server,
        socket.create_connection(
            server.getsockname()
        ),  # its queue is full: what more comes is dropped, as by a firewall
    ):
        words = why_no_answer(f"tcp://127.0.0.1:{server.getsockname()[1]}", "its port")
    assert words.startswith("the computer 127.0.0.1 does not answer (timeout): is it on")


# --- names ------------------------------------------------------------------------------------------------------------

HAS_IPV6 = addresses._is_here("::1")
needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this computer has no IPv6")


def resolved_as(monkeypatch: pytest.MonkeyPatch, *ips: str) -> None:
    """From here on the system's resolver takes home.test for these addresses."""
    real = socket.getaddrinfo

    def look_up(host: str, port: int, **more: object) -> list[object]:
        return [found for ip in (ips if host == "home.test" else [host]) for found in real(ip, port, **more)]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", look_up)


@needs_ipv6
def test_a_link_local_address_keeps_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved_as(monkeypatch, "fe80::1%lo")
    assert resolve("tcp://home.test:5570") == ["tcp://[fe80::1%lo]:5570"]
    assert addresses.ip_addresses("home.test") == {"fe80::1"}


def test_a_name_of_the_local_network_that_is_unknown_names_what_is_missing() -> None:
    with pytest.raises(BusError, match=r"no-such-pi\.local: .*; write its IP address, or install .*libnss-mdns"):
        resolve("tcp://no-such-pi.local:5570")


@needs_ipv6
def test_a_root_listens_at_those_addresses_of_its_name_that_this_computer_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listening("tcp://0.0.0.0:5570") == ["tcp://0.0.0.0:5570"]
    assert listening("tcp://[fd77::1]:5570") == ["tcp://[fd77::1]:5570"]  # binding says what is wrong with it
    assert set(listening("tcp://localhost:5570")) <= {"tcp://[::1]:5570", "tcp://127.0.0.1:5570"}
    resolved_as(monkeypatch, "fd77::1", "192.0.2.9")
    with pytest.raises(BusError, match=r"home\.test is fd77::1, 192\.0\.2\.9, and this computer has no such address"):
        listening("tcp://home.test:5570")


def test_a_name_that_means_this_computer_alone_is_refused_for_a_root_that_others_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved_as(monkeypatch, "127.0.1.1")  # as Debian writes it into /etc/hosts
    with pytest.raises(BusError, match=r"home\.test is 127\.0\.1\.1 on this computer .* write its address in the net"):
        listening("tcp://home.test:5570")
