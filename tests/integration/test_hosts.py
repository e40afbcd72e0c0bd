"""A root and a worker that find each other by IPv4, IPv6, names and through a router, all on loopback."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from command_line import Cli, json_object
from integration.nodes import Context, Start, a_root, a_worker, assert_are, form, logits
from surroundings import free_ports

from dllama_zmq.bus.addresses import listening
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.formats import ModelFile
from dllama_zmq.quants import F32

try:
    socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    HAS_IPV6 = True
except OSError:
    HAS_IPV6 = False


def skip_without_ipv6(*hosts: str) -> None:
    if not HAS_IPV6 and any(":" in host for host in hosts):
        pytest.skip("this computer has no IPv6")


@pytest.mark.parametrize(
    ("root_host", "worker_says", "comes_from"),
    [
        ("[::1]", "[::1]", "::1"),
        ("127.0.0.2", "127.0.0.2", "127.0.0.1"),
        ("[::]", "[::1]", "::1"),
        ("[::]", "127.0.0.3", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.3", "127.0.0.1"),
        ("localhost", "localhost", None),
        ("localhost", "127.0.0.1", "127.0.0.1"),
    ],
)
def test_a_worker_joins_by_any_address_of_the_root(
    context: Context,
    model: ModelFile,
    expected: F32,
    start: Start,
    root_host: str,
    worker_says: str,
    comes_from: str | None,
) -> None:
    skip_without_ipv6(root_host, worker_says)
    replies, steps = free_ports(2)
    at = Endpoints(listening(f"tcp://{root_host}:{steps}"), listening(f"tcp://{root_host}:{replies}"))
    worker_goes_to = Endpoints([], [f"tcp://{worker_says}:{replies}"])
    with a_root(context, model, at) as root:
        start(a_worker(context, worker_goes_to))
        form(root)
        assert_are(logits(root), expected, "numpy")
        (member,) = root.roster.members
        assert member.address in ([comes_from] if comes_from else ["::1", "127.0.0.1"])


@contextlib.contextmanager
def router(inside: str, outside: str, ports: list[int]) -> Iterator[None]:
    """What a NAT does: who connects to a port at `inside` speaks to that port of `outside`, from another address."""
    servers = [socket.create_server((inside, port)) for port in ports]
    ends: list[socket.socket] = list(servers)
    threads = [threading.Thread(target=accept, args=(server, outside, ends)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for end in list(ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for end in ends:
            end.close()


def accept(server: socket.socket, outside: str, ends: list[socket.socket]) -> None:
    pumps = []
    with contextlib.suppress(OSError):
        while True:
            near, _ = server.accept()
            far = socket.create_connection((outside, server.getsockname()[1]), source_address=("127.0.0.9", 0))
            ends += [near, far]
            for one, other in ((near, far), (far, near)):
                pumps.append(threading.Thread(target=pump, args=(one, other)))
                pumps[-1].start()
    for thread in pumps:
        thread.join()


def pump(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)


def test_a_worker_behind_a_router_joins_for_all_connections_are_its_own(
    context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    replies, steps = free_ports(2)
    at = Endpoints([f"tcp://127.0.0.2:{steps}"], [f"tcp://127.0.0.2:{replies}"])
    with router("127.0.0.8", "127.0.0.2", [replies, steps]), a_root(context, model, at) as root:
        start(a_worker(context, Endpoints([], [f"tcp://127.0.0.8:{replies}"])))
        form(root)
        assert_are(logits(root), expected, "numpy")
        assert root.roster.members[0].address == "127.0.0.9"


def test_a_cluster_at_an_ipv6_address_is_up_and_asked_over_it(cli: Cli) -> None:
    skip_without_ipv6("::1")
    cli.up(2, host="::1", api={"host": "::1"})
    try:
        address = f"[::1]:{cli.ports['clients']}"
        status = json_object(cli.run("status", "--connect", address, "--json").out)
        assert status["state"] == "ready"
        assert status["api"].startswith("http://[::1]:")
        found = json_object(cli.run("doctor", "--connect", address, "--json").out)
        assert "link to worker1" in [one["about"] for one in found["findings"]]
    finally:
        cli.down()
