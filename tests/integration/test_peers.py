"""The root's ROUTER and what guards it: real sockets over TCP, kernels and limits as some computers have them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from nodes import Context
from surroundings import free_ports

from dllama_zmq.bus import guard, sockets
from dllama_zmq.bus.peers import Peers

SOON_S = 20.0


@contextmanager
def peers_and_one(context: Context, known: list[bool]) -> Iterator[tuple[Peers, zmq.Socket[bytes]]]:
    """A ROUTER for replies, and one who is connected to it: a node of the cluster where `known` says so."""
    (port,) = free_ports(1)
    peers = Peers(context, [f"tcp://127.0.0.1:{port}"], sockets.REPLIES, lambda identity: known[0])
    peer = sockets.connect(context, zmq.DEALER, f"tcp://127.0.0.1:{port}", b"peer")
    try:
        assert peer.poll(round(SOON_S * 1000), zmq.POLLOUT)
        yield peers, peer
    finally:
        peer.close()
        peers.close()


def test_who_cannot_be_watched_is_heard_all_the_same(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old kernel, or one in a sandbox, does not count what a connection has received."""
    monkeypatch.setattr(guard, "_option", lambda *of: b"")
    with peers_and_one(context, [False]) as (peers, peer):
        until, heard = time.monotonic() + SOON_S, None
        while heard is None and time.monotonic() < until:
            peer.send(b"hello")  # again and again, as a worker does: its connection may be seen after its message
            heard = peers.receive(time.monotonic() + 0.05, 0.0)
        assert heard == [b"peer", b"hello"]


def test_who_is_a_node_no_more_is_watched_again(context: Context) -> None:
    known = [True]
    with peers_and_one(context, known) as (peers, peer):
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


def test_where_a_guard_cannot_be_had_its_error_is_told_and_nothing_is_left(
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
        heard = [sockets.receive(worker, time.monotonic() + 2.0) for _ in range(100)]
    assert heard == [[bytes([number])] for number in range(100)]
