"""The root's ROUTER and what guards it: real sockets over TCP, kernels and limits as some computers have them."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import hostile.flood
import pytest
import zmq
from command_line import until
from contexts import a_context
from hostile.flood import GREETING, SECURED, frame
from integration.nodes import FORM_S, Context, Start, a_worker, form, tcp
from leaks import nothing_left
from secured import Secured
from surroundings import free_ports
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.bus import guard, sockets
from dllama_zmq.bus.admission import SLOWED_S
from dllama_zmq.bus.messages import PROTOCOL, Frame
from dllama_zmq.bus.peers import Peers
from dllama_zmq.bus.security import Peer
from dllama_zmq.root.root import Root, RootSettings

SOON_S = 20.0


@pytest.fixture(params=["open", "secured"])
def secured(request: pytest.FixtureRequest) -> Secured | None:
    """None, or keys: all is the same for who has one."""
    return Secured() if request.param == "secured" else None


@contextmanager
def peers_and_one(
    context: Context, known: list[bool], secured: Secured | None = None
) -> Iterator[tuple[Peers, zmq.Socket[bytes]]]:
    """A ROUTER for replies, and one who is connected to it: a node of the cluster where `known` says so."""
    (port,) = free_ports(1)
    address, security = f"tcp://127.0.0.1:{port}", None if secured is None else secured.server()
    peers = Peers(context, [address], sockets.REPLIES, lambda identity: known[0], security)
    peer = sockets.connect(context, zmq.DEALER, address, b"peer", keys_of(secured))
    try:
        assert peer.poll(round(SOON_S * 1000), zmq.POLLOUT)
        yield peers, peer
    finally:
        peer.close()
        peers.close()


def keys_of(secured: Secured | None) -> Peer | None:
    return None if secured is None else secured.peer("worker1")


def heard_at_last(peers: Peers, peer: zmq.Socket[bytes], message: bytes) -> list[Frame] | None:
    """A stranger's first message, sent again and again as a worker does: its connection may be seen after it."""
    until, heard = time.monotonic() + SOON_S, None
    while heard is None and time.monotonic() < until:
        peer.send(message)
        heard = peers.receive(time.monotonic() + 0.05, 0.0)
    while peers.receive(time.monotonic() + 0.05, 0.0) is not None:
        pass  # it may have come more than once
    return heard


def test_who_cannot_be_watched_is_heard_all_the_same(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old kernel, or one in a sandbox, does not count what a connection has received."""
    monkeypatch.setattr(guard, "_option", lambda *of: b"")
    with peers_and_one(context, [False]) as (peers, peer):
        assert heard_at_last(peers, peer, b"hello") == [b"peer", b"hello"]


def test_the_round_trip_to_a_peer_is_the_kernels(context: Context) -> None:
    with peers_and_one(context, [False]) as (peers, peer):
        assert peers.round_trip_s(b"peer") is None  # it has said nothing, so its connection is not known
        assert heard_at_last(peers, peer, b"hello") is not None
        found = peers.round_trip_s(b"peer")
        assert found is not None
        assert 0 < found < 1
        assert peers.round_trip_s(b"another") is None


def test_who_is_a_node_no_more_is_watched_again(context: Context, secured: Secured | None) -> None:
    known = [True]
    with peers_and_one(context, known, secured) as (peers, peer):
        peer.send(b"as a node")
        assert peers.receive(time.monotonic() + SOON_S, 0.0) == [b"peer", b"as a node"]
        until = time.monotonic() + 1.0  # in which nobody is watched, and the guard sleeps
        assert peers.receive(until, 0.0) is None
        known[0] = False
        peer.send(b"as a stranger")
        assert peers.receive(time.monotonic() + SOON_S, 0.0) == [b"peer", b"as a stranger"]
        peer.send(bytes(1 << 20))
        until = time.monotonic() + SOON_S
        while peer.poll(20, zmq.POLLOUT):
            assert time.monotonic() < until, "its connection stands though it holds too much"


def flood(peers: Peers, peer: zmq.Socket[bytes]) -> int:
    """Messages of 4 bytes, until its connection is ended. How many were heard."""
    with closing(sockets.Monitor(peer)) as monitor:
        until, n_heard = time.monotonic() + SOON_S, 0
        while not monitor.lost:
            monitor.read()
            assert time.monotonic() < until, "its connection stands"
            with suppress(zmq.Again):
                peer.send(b"join", zmq.NOBLOCK)
            n_heard += peers.receive(time.monotonic() + 0.001, 0.0) is not None
    return n_heard


def test_who_has_no_place_and_sends_faster_than_it_may_is_cut(context: Context, secured: Secured | None) -> None:
    with peers_and_one(context, [False], secured) as (peers, peer):
        begun = time.monotonic()
        n_heard = flood(peers, peer)
        assert 1 <= n_heard <= 16 + 2 * (time.monotonic() - begun)


def test_who_joins_once_a_second_is_not_cut(context: Context, secured: Secured | None) -> None:
    with peers_and_one(context, [False], secured) as (peers, peer):
        assert heard_at_last(peers, peer, b"first") == [b"peer", b"first"]
        for number in range(8):
            peer.send(bytes([number]))
            assert peers.receive(time.monotonic() + SOON_S, 0.0) == [b"peer", bytes([number])]
        assert peer.poll(0, zmq.POLLOUT)


def test_an_address_that_flooded_waits_and_another_does_not(context: Context, secured: Secured | None) -> None:
    """Both of this computer: all of 127.0.0.0/8 is."""
    with peers_and_one(context, [False], secured) as (peers, flooding):
        address = peers.socket.get(zmq.LAST_ENDPOINT).decode()
        flood(peers, flooding)
        begun = time.monotonic()
        with ExitStack() as cleanup:
            again = [
                cleanup.enter_context(sockets.connect(context, zmq.DEALER, address, security=keys_of(secured)))
                for _ in range(100)
            ]
            other = cleanup.enter_context(context.socket(zmq.DEALER))
            if (security := keys_of(secured)) is not None:
                security.apply(other)
            other.set(zmq.IMMEDIATE, 1)
            other.connect(address.replace("tcp://", "tcp://127.0.0.2:0;"))
            assert other.poll(round(SOON_S * 1000), zmq.POLLOUT)
            again[-1].poll(1000, zmq.POLLOUT)  # in which all of them get in, where nobody has to wait
            n_in, passed_s = sum(bool(peer.poll(0, zmq.POLLOUT)) for peer in again), time.monotonic() - begun
            assert n_in <= 1 + passed_s / 0.2 or passed_s > SLOWED_S


def test_who_sends_before_the_handshake_is_over_is_not_heard(context: Context, secured: Secured | None) -> None:
    with peers_and_one(context, [False], secured) as (peers, _):
        port = int(peers.socket.get(zmq.LAST_ENDPOINT).rpartition(b":")[2])
        # Without READY: with it, the handshake may be over before the messages come.
        with socket.create_connection(("127.0.0.1", port), SOON_S) as rude, suppress(OSError):
            rude.sendall((GREETING if secured is None else SECURED) + frame(b"hello") * 10)
            while rude.recv(1000):
                pass
        assert peers.receive(time.monotonic() + 0.1, 0.0) is None


def test_a_worker_joins_while_joins_flood_the_root(
    context: Context, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = tcp()
    port = places.replies[0].rpartition(":")[2]
    settings = RootSettings(names=["pi"], kernels="numpy", spin_s=0.0)
    with write_tiny_model(tmp_path / "tiny.m", tiny_spec()) as model:
        root = Root(context, model, settings, places)
        command = [sys.executable, hostile.flood.__file__, port, "joins", str(PROTOCOL)]
        flooding = subprocess.Popen(command)  # for places of other names
        try:
            until = time.monotonic() + FORM_S
            while "closed a connection from 127.0.0.1" not in caplog.text:
                assert time.monotonic() < until
                root.serve_bus(time.monotonic() + 0.05)
            start(a_worker(context, places, "pi"))
            form(root, 60.0)
            assert flooding.poll() is None
        finally:
            flooding.kill()
            flooding.wait()
            root.close("the test is over")


def test_peers_leave_nothing_behind_whoever_is_closed_first() -> None:
    with nothing_left(), a_context() as context:
        with peers_and_one(context, [False]), peers_and_one(context, [False]):
            pass
        with peers_and_one(context, [False]):
            pass
    with nothing_left():
        context = zmq.Context()
        left = Peers(context, ["tcp://127.0.0.1:*"], sockets.REPLIES)
        context.destroy()  # as where half a root is left
        left.close()


def test_where_a_guard_cannot_start_its_error_is_raised_and_nothing_is_left(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limits:
        limits.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Peers(context, [f"tcp://127.0.0.1:{free_ports(1)[0]}"], sockets.CLIENTS)


def test_a_hundred_sums_in_a_row_are_heard(context: Context, tmp_path: Path) -> None:
    """As many as a root of a small model publishes before libzmq looks at how many have left the queue."""
    steps = sockets.bounded(context, zmq.PUB, sockets.STEPS)
    sockets.bind(steps, [f"ipc://{tmp_path}/steps"])
    with steps, sockets.connect(context, zmq.SUB, f"ipc://{tmp_path}/steps") as worker:
        until = time.monotonic() + SOON_S
        while sockets.receive(worker, time.monotonic() + 0.05) is None:  # until it has subscribed
            assert time.monotonic() < until
            steps.send(b"beacon")
        for number in range(100):
            steps.send(bytes([number]))
        heard = []
        while len(heard) < 100:
            sum_ = sockets.receive(worker, time.monotonic() + SOON_S)
            assert sum_ is not None, f"only {len(heard)} of 100"
            heard += [sum_] if sum_ != [b"beacon"] else []  # of which there may have been some
    assert heard == [[bytes([number])] for number in range(100)]


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_the_bytes_that_a_peer_has_not_read_are_known(transport: str, context: Context, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/peers" if transport == "ipc" else f"tcp://127.0.0.1:{free_ports(1)[0]}"
    peers, peer = Peers(context, [endpoint], sockets.CLIENTS), context.socket(zmq.DEALER)
    peer.set(zmq.RCVHWM, 1)
    peer.set(zmq.RCVBUF, 4096)
    peer.connect(endpoint)
    try:
        heard = heard_at_last(peers, peer, b"hello")
        assert heard is not None
        identity = bytes(heard[0])
        assert peers.unread_bytes(identity) == peers.unread_bytes(b"a stranger") == 0
        n = 30
        for _ in range(n):
            peers.send(identity, [bytes(1 << 20)])
        until(lambda: peers.unread_bytes(identity) > 1 << 16, SOON_S, "the kernel's queue to fill")
        for _ in range(n):
            assert peer.poll(round(SOON_S * 1000))
            peer.recv()
        until(lambda: peers.unread_bytes(identity) == 0, SOON_S, "the kernel's queue to empty")
    finally:
        peer.close(linger=0)
        peers.close()
