"""Whoever has not the right key is not let in, is counted by address, and hears why; who has it does not notice."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest
import zmq
from command_line import until
from contexts import a_context
from hostile.knocking import JOIN, SOON_S, a_link, heard, knocking, next_event
from integration.nodes import Context, tcp
from secured import Secured
from wiretap import Wiretap

from dllama_zmq.bus import guard, sockets
from dllama_zmq.bus.codec import encode
from dllama_zmq.bus.links import Endpoints, RootLink
from dllama_zmq.bus.messages import Beacon
from dllama_zmq.bus.peers import Peers
from dllama_zmq.bus.roster import Roster
from dllama_zmq.bus.security import FAILED, Peer
from dllama_zmq.trust import Entry, KeyPair, Ring, Role

N_GREETING, N_HELLO = 64, 202  # bytes, with the two of a short command's head (RFC 23 and 26 of ZeroMQ)
LINKS = {"replies": zmq.DEALER, "steps": zmq.SUB}


@pytest.fixture
def context() -> Iterator[Context]:
    with a_context() as context:
        yield context


def of_plain(secured: Secured, peer: zmq.Socket[bytes]) -> None:
    peer.set(zmq.PLAIN_USERNAME, b"worker1")
    peer.set(zmq.PLAIN_PASSWORD, b"worker1")


def of_a_stolen_name(secured: Secured, peer: zmq.Socket[bytes]) -> None:
    """A listed public key, and another's secret key."""
    Peer(KeyPair(secured.own["worker1"].public, KeyPair.new().secret), secured.root.public).apply(peer)


INTRUDERS: dict[str, Callable[[Secured, zmq.Socket[bytes]], None]] = {
    "no key": lambda secured, peer: None,
    "PLAIN": of_plain,
    "a key that nobody knows": lambda secured, peer: Peer(KeyPair.new(), secured.root.public).apply(peer),
    "a client's key": lambda secured, peer: secured.peer("laptop").apply(peer),
    "a worker of another cluster": lambda secured, peer: Secured().peer("worker1").apply(peer),
    "a worker who takes it for another root": lambda secured, peer: Peer(
        secured.own["worker1"], KeyPair.new().public
    ).apply(peer),
    "a listed key without its secret": of_a_stolen_name,
}


AT_THE_RING = [INTRUDERS["a key that nobody knows"], INTRUDERS["a client's key"]]


@pytest.mark.parametrize("link_name", LINKS)
@pytest.mark.parametrize("dress", INTRUDERS.values(), ids=INTRUDERS)
def test_who_has_not_the_right_key_is_not_let_in_and_is_counted(
    dress: Callable[[Secured, zmq.Socket[bytes]], None], link_name: str, context: Context
) -> None:
    secured, kind = Secured(), LINKS[link_name]
    with a_link(context, secured) as (link, at), ExitStack() as stack:
        intruder, events = stack.enter_context(
            knocking(context, kind, at[link_name], lambda peer: dress(secured, peer))
        )
        assert next_event(events) & FAILED
        # Who has left before the guard's thread looks is nobody's: that is before the ring is asked.
        at_all = {"127.0.0.1"} if dress in AT_THE_RING else {"127.0.0.1", ""}
        until(lambda: link.refused().keys() & at_all, SOON_S, "the refusal to be counted")
        if kind == zmq.DEALER:
            with contextlib.suppress(zmq.Again):
                intruder.send_multipart(encode(JOIN), zmq.NOBLOCK)
            assert link.receive(time.monotonic() + 0.2) is None
            worker = stack.enter_context(knocking(context, kind, at[link_name], secured.peer("worker1").apply))[0]
            assert heard(link, worker)
        else:
            worker = stack.enter_context(knocking(context, kind, at[link_name], secured.peer("worker1").apply))[0]
            deadline = time.monotonic() + SOON_S
            while not worker.poll(20):
                assert time.monotonic() < deadline, "the worker hears nothing"
                link.publish(Beacon(1))
            assert not intruder.poll(0)


def test_a_client_with_a_workers_key_is_not_let_in(context: Context) -> None:
    secured = Secured()
    (address,) = tcp().replies
    with (
        closing(Peers(context, [address], sockets.CLIENTS, security=secured.server(Role.client))) as clients,
        knocking(context, zmq.DEALER, address, secured.peer("worker1").apply) as (_, refused),
        knocking(context, zmq.DEALER, address, secured.peer("laptop").apply) as (laptop, admitted),
    ):
        assert next_event(refused) == zmq.EVENT_HANDSHAKE_FAILED_AUTH
        assert next_event(admitted) == zmq.EVENT_HANDSHAKE_SUCCEEDED
        laptop.send(b"hello")
        frames = clients.receive(time.monotonic() + SOON_S, 0.0)
        assert frames is not None
        assert clients.key(bytes(frames[0])) == secured.own["laptop"].public


def test_who_has_not_the_right_key_is_no_client(context: Context) -> None:
    secured = Secured()
    (address,) = tcp().replies
    intruders = INTRUDERS | {"a worker's key": lambda secured, peer: secured.peer("worker1").apply(peer)}
    del intruders["a client's key"]
    with (
        closing(Peers(context, [address], sockets.CLIENTS, security=secured.server(Role.client))) as clients,
        ExitStack() as stack,
    ):
        for dress in intruders.values():
            peer, events = stack.enter_context(knocking(context, zmq.DEALER, address, partial(dress, secured)))
            assert next_event(events) & FAILED
            with contextlib.suppress(zmq.Again):
                peer.send(b"hello", zmq.NOBLOCK)
        laptop, _ = stack.enter_context(knocking(context, zmq.DEALER, address, secured.peer("laptop").apply))
        laptop.send(b"from the laptop")
        frames = clients.receive(time.monotonic() + SOON_S, 0.0)
        assert frames is not None
        assert [bytes(frame) for frame in frames[1:]] == [b"from the laptop"]


def test_a_key_of_one_cluster_opens_no_other_one_of_the_same_user(context: Context) -> None:
    """Both roots have the same key, and are in one process here."""
    one, other = Secured(), Secured()
    other.root = one.root
    with a_link(context, one) as (link, at), a_link(context, other) as (other_link, other_at):
        for secured, right, wrong in ((one, at, other_at), (other, other_at, at)):
            dress = secured.peer("worker1").apply
            for name, kind in LINKS.items():
                with knocking(context, kind, wrong[name], dress) as (_, refused):
                    assert next_event(refused) == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                with knocking(context, kind, right[name], dress) as (_, admitted):
                    assert next_event(admitted) == zmq.EVENT_HANDSHAKE_SUCCEEDED
        for refusing in (link, other_link):
            until(partial(is_counted, refusing, 2), SOON_S, "both to be counted")


def is_counted(link: RootLink, n_times: int) -> bool:
    return link.refused().get("127.0.0.1", 0) >= n_times


def test_nobody_is_let_in_while_nobody_decides(context: Context) -> None:
    """libzmq would let in everybody whose handshake is right, whatever the key is."""
    secured = Secured()
    with a_link(context, secured) as (link, at):
        for guard in (link._guard, link.peers._guard):
            assert guard is not None
            guard._end_admission()
        for name in LINKS:
            with knocking(context, LINKS[name], at[name], Peer(KeyPair.new(), secured.root.public).apply) as (
                _,
                events,
            ):
                assert next_event(events) & FAILED


def test_who_has_come_over_ipc_needs_no_key_where_the_port_does(context: Context, tmp_path: Path) -> None:
    secured, places = Secured(), tcp()
    endpoints = Endpoints(places.steps, places.replies, f"ipc://{tmp_path}/s", f"ipc://{tmp_path}/r", secured.server())
    with (
        closing(RootLink(context, endpoints, 0.0, Roster([], 1))) as link,
        knocking(context, zmq.DEALER, endpoints.local_replies, lambda peer: None) as (local, _),
        knocking(context, zmq.DEALER, places.replies[0], lambda peer: None) as (far, events),
    ):
        assert next_event(events) & FAILED
        assert heard(link, local)
        with contextlib.suppress(zmq.Again):
            far.send_multipart(encode(JOIN), zmq.NOBLOCK)
        local.send_multipart(encode(JOIN))
        arrived = link.receive(time.monotonic() + SOON_S)
        assert arrived is not None
        assert link.peers.key(arrived[0]) == ""


# --- a key that is removed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard_hears", ["first", "last"])
def test_the_connection_of_a_removed_key_is_cut_and_no_other(
    guard_hears: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """guard_hears: of a connection, before or after a message that came over it is read."""
    secured, (address,), read = Secured(clients=["laptop", "desktop"]), tcp().replies, threading.Event()
    cookie = guard._cookie

    def late_in_the_guard(descriptor: int) -> bytes:
        if threading.current_thread().name == "guard":
            read.wait(SOON_S)
        return cookie(descriptor)

    if guard_hears == "last":
        monkeypatch.setattr(guard, "_cookie", late_in_the_guard)
    with (
        closing(Peers(context, [address], sockets.CLIENTS, security=secured.server(Role.client))) as clients,
        closing(sockets.Connection(context, address, secured.peer("desktop"))) as other,
        closing(sockets.Connection(context, address, secured.peer("laptop"))) as removed,
    ):
        for connection in (other, removed):  # in this order they would be cut
            assert connection.up(SOON_S)
            connection.socket.send(b"hello")
            assert clients.receive(time.monotonic() + SOON_S, 0.0) is not None
        read.set()
        secured.ring._state = Ring([Entry(Role.client, "desktop", secured.own["desktop"].public)])._state
        assert removed.lost(SOON_S)
        assert not other.lost()


def test_who_hears_the_steps_with_a_removed_key_hears_no_more(context: Context) -> None:
    secured = Secured(["worker1", "worker2"])
    with (
        a_link(context, secured) as (link, at),
        knocking(context, zmq.SUB, at["steps"], secured.peer("worker1").apply) as (removed, events),
        knocking(context, zmq.SUB, at["steps"], secured.peer("worker2").apply) as (other, _),
    ):
        until(lambda: link.publish(Beacon(1)) or removed.poll(20), SOON_S, "the first beacon")
        secured.ring._state = Ring([Entry(Role.worker, "worker2", secured.own["worker2"].public)])._state
        while next_event(events) != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            pass
        while removed.poll(0):
            removed.recv_multipart()
        while other.poll(0):
            other.recv_multipart()
        until(lambda: link.publish(Beacon(2)) or other.poll(20), SOON_S, "a beacon for the other")
        assert not removed.poll(0)


# --- what is on the wire ---------------------------------------------------------------------------------------------


def test_nothing_on_the_wire_can_be_read_or_said_again(context: Context) -> None:
    secured = Secured()
    with a_link(context, secured) as (link, at), closing(Wiretap(at["replies"])) as tap:
        with knocking(context, zmq.DEALER, tap.address, secured.peer("worker1").apply) as (worker, _):
            assert heard(link, worker)
            while link.receive(time.monotonic() + 0.1) is not None:
                pass
        assert len(tap.sent) > 500
        assert b"join" not in tap.sent
        assert secured.own["worker1"].public.encode() not in tap.sent
        port = int(at["replies"].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), SOON_S) as again, contextlib.suppress(OSError):
            again.sendall(tap.sent)  # it may have had enough before the end
            while again.recv(4096):
                pass
        assert link.receive(time.monotonic() + 0.2) is None
        until(lambda: link.refused(), SOON_S, "the replay to be counted")


def test_a_hello_of_another_connection_leads_no_further(context: Context) -> None:
    """Nor does an initiate, which has the cookie that the root gave to that connection."""
    secured = Secured()
    with a_link(context, secured) as (link, at), closing(Wiretap(at["replies"])) as tap:
        with knocking(context, zmq.DEALER, tap.address, secured.peer("worker1").apply) as (_, events):
            assert next_event(events) == zmq.EVENT_HANDSHAKE_SUCCEEDED
        hello = bytes(tap.sent[: N_GREETING + N_HELLO])
        assert hello[N_GREETING:].startswith(b"\x04\xc8\x05HELLO")
        initiate = bytes(tap.sent[len(hello) :])
        assert b"\x08INITIATE" in initiate[:20]
        port = int(at["replies"].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), SOON_S) as again:
            again.sendall(hello)
            answer = b""
            while b"\x07WELCOME" not in answer:
                answer += (more := again.recv(4096))
                assert more, "the root has hung up before its welcome"
            again.sendall(initiate)
            with contextlib.suppress(ConnectionResetError):
                while more := again.recv(4096):
                    answer += more
        assert b"\x05READY" not in answer
        assert link.receive(time.monotonic() + 0.1) is None
        until(lambda: link.refused(), SOON_S, "the replay to be counted")


def test_altered_bytes_end_the_connection_and_nothing_else_is_heard(context: Context) -> None:
    secured = Secured()
    with (
        a_link(context, secured) as (link, at),
        closing(Wiretap(at["replies"])) as tap,
        closing(sockets.Connection(context, tap.address, secured.peer("worker1"))) as worker,
    ):
        assert worker.up(SOON_S)
        worker.socket.send_multipart(encode(JOIN))
        assert link.receive(time.monotonic() + SOON_S) is not None
        tap.alter_next = True
        worker.socket.send_multipart(encode(JOIN))
        assert worker.lost(SOON_S)
        assert not tap.alter_next
        heard_since = link.receive(time.monotonic() + 0.1)  # all of it, where it was a heartbeat that was altered
        assert heard_since is None or heard_since[1] == JOIN


def test_a_worker_does_not_talk_to_who_is_not_its_root(context: Context) -> None:
    """Neither to one with another key nor to one without any."""
    secured, other = Secured(), Secured()
    other.ring = Ring([Entry(Role.worker, "worker1", secured.own["worker1"].public)])
    for endpoints in (Endpoints([], []), None):
        (address,) = tcp().replies
        server = other.server() if endpoints is not None else None
        with (
            closing(Peers(context, [address], sockets.REPLIES, security=server)) as false_root,
            closing(Wiretap(address)) as tap,
            closing(sockets.Connection(context, tap.address, secured.peer("worker1"))) as worker,
        ):
            assert not worker.up(1.0)
            assert worker.monitor.refusal
            assert false_root.receive(time.monotonic() + 0.1, 0.0) is None
