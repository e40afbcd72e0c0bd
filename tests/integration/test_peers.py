"""The root's ROUTER and what guards it: real sockets over TCP, kernels and limits as some computers have them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
        peer.send(b"hello")
        assert peers.receive(time.monotonic() + SOON_S, 0.0) == [b"peer", b"hello"]


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
