"""Whoever has not the right key is not let in, is counted by address, and hears why; who has it does not notice."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import zmq
from command_line import until
from contexts import a_context
from integration.nodes import Context, tcp
from secured import Secured
from wiretap import Wiretap

from dllama_zmq.bus import sockets
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.enrol import TO_HOLDER, enrol
from dllama_zmq.bus.links import Endpoints, RootLink
from dllama_zmq.bus.messages import Beacon, Enroll, Join
from dllama_zmq.bus.peers import Peers
from dllama_zmq.bus.security import FAILED, Peer
from dllama_zmq.errors import TokenError
from dllama_zmq.trust import Entry, KeyPair, Ring, Role, Token

SOON_S = 20.0
SOON_MS = 20_000
LINKS = {"replies": zmq.DEALER, "steps": zmq.SUB}
JOIN = Join("", "a host", 1, "0", "elsewhere", 1, None)


@pytest.fixture
def context() -> Iterator[Context]:
    with a_context() as context:
        yield context


@contextmanager
def a_link(context: Context, secured: Secured) -> Iterator[tuple[RootLink, dict[str, str]]]:
    """The root's sockets, and the address of each."""
    places = tcp()
    link = RootLink(context, Endpoints(places.steps, places.replies, security=secured.server()), 0.0, lambda of: None)
    try:
        yield link, {"steps": places.steps[0], "replies": places.replies[0]}
    finally:
        link.close()


@contextmanager
def knocking(
    context: Context, kind: int, address: str, dress: Callable[[zmq.Socket[bytes]], None]
) -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    """Somebody who connects with what `dress` gives it, and the events of its handshakes."""
    peer = context.socket(kind)
    events = peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | FAILED)
    try:
        peer.set(zmq.LINGER, 0)
        if kind == zmq.SUB:
            peer.set(zmq.SUBSCRIBE, b"")
        dress(peer)
        peer.connect(address)
        yield peer, events
    finally:
        peer.disable_monitor()
        events.close(linger=0)
        peer.close(linger=0)


def next_event(events: zmq.Socket[bytes]) -> int:
    assert events.poll(SOON_MS), "its handshake has not ended"
    return int.from_bytes(events.recv_multipart()[0][:2], "little")


def heard(link: RootLink, peer: zmq.Socket[bytes]) -> bool:
    """Whether the root hears a worker's join."""
    until = time.monotonic() + SOON_S
    while time.monotonic() < until:
        if peer.poll(0, zmq.POLLOUT):
            peer.send_multipart(encode(JOIN))
        if link.receive(time.monotonic() + 0.05) is not None:
            return True
    return False


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
                link.publish(Beacon(1), [], [])
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


def test_nobody_is_let_in_while_nobody_decides(context: Context) -> None:
    """libzmq would let in everybody whose handshake is right, whatever the key is."""
    secured = Secured()
    with a_link(context, secured) as (link, at):
        for guard in (link._guard, link._peers._guard):
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
        closing(RootLink(context, endpoints, 0.0, lambda of: None)) as link,
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
        assert link.key(arrived[0]) == ""


# --- a key that is removed -------------------------------------------------------------------------------------------


def test_the_connection_of_a_removed_key_is_cut_and_no_other(context: Context) -> None:
    secured = Secured(clients=["laptop", "desktop"])
    (address,) = tcp().replies
    with (
        closing(Peers(context, [address], sockets.CLIENTS, security=secured.server(Role.client))) as clients,
        closing(sockets.Connection(context, address, secured.peer("laptop"))) as removed,
        closing(sockets.Connection(context, address, secured.peer("desktop"))) as other,
    ):
        for connection in (removed, other):
            assert connection.up(SOON_S)
            connection.socket.send(b"hello")
            assert clients.receive(time.monotonic() + SOON_S, 0.0) is not None
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
        until(lambda: link.publish(Beacon(1), [], []) or removed.poll(20), SOON_S, "the first beacon")
        secured.ring._state = Ring([Entry(Role.worker, "worker2", secured.own["worker2"].public)])._state
        while next_event(events) != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            pass
        while removed.poll(0):
            removed.recv_multipart()
        while other.poll(0):
            other.recv_multipart()
        until(lambda: link.publish(Beacon(2), [], []) or other.poll(20), SOON_S, "a beacon for the other")
        assert not removed.poll(0)


# --- tokens ----------------------------------------------------------------------------------------------------------


@contextmanager
def answering(context: Context, secured: Secured, n_dropped: int = 0) -> Iterator[str]:
    """The address of a root without a model that answers workers and holders of tokens, as Membership does.

    n_dropped: the first messages, which it does not answer.
    """
    from dllama_zmq.bus.enrol import enrolled

    with a_link(context, secured) as (link, at):
        ended = threading.Event()

        def answer() -> None:
            to_drop = n_dropped
            while not ended.is_set():
                arrived = link.receive(time.monotonic() + 0.05)
                if arrived is not None and to_drop:
                    to_drop -= 1
                elif arrived is not None and isinstance(arrived[1], Enroll):
                    link.send(arrived[0], "", enrolled(link.security, link.key(arrived[0]), arrived[1]))

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield at["replies"]
        finally:
            ended.set()
            thread.join()


def test_a_token_admits_one_new_key_once(context: Context) -> None:
    secured, new, other = Secured(), KeyPair.new(), KeyPair.new()
    with answering(context, secured) as address:
        assert enrol(context, address, secured.holder(), new.public) == ""
        assert secured.ring.admits(new.public, Role.worker)
        with pytest.raises(TokenError, match="has been used or has expired"):
            enrol(context, address, secured.holder(), other.public)
        assert not secured.ring.admits(other.public, Role.worker)
        with knocking(context, zmq.DEALER, address, Peer(new, secured.root.public).apply) as (_, events):
            assert next_event(events) == zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_a_holder_that_is_not_answered_asks_again(context: Context) -> None:
    """A root drops what it reads before its guard has seen the connection."""
    secured, new = Secured(), KeyPair.new()
    with answering(context, secured, n_dropped=1) as address:
        assert enrol(context, address, secured.holder(), new.public, wait_s=30.0) == ""
    assert secured.ring.admits(new.public, Role.worker)


def test_two_holders_of_one_token_do_not_both_get_in(context: Context) -> None:
    """Both have connected while it was good."""
    secured, keys = Secured(), [KeyPair.new(), KeyPair.new()]
    with (
        answering(context, secured) as address,
        closing(sockets.Connection(context, address, secured.holder())) as first,
        closing(sockets.Connection(context, address, secured.holder())) as second,
    ):
        answers = []
        assert first.up(SOON_S)
        assert second.up(SOON_S)
        for connection, pair in zip((first, second), keys, strict=True):
            connection.socket.send_multipart(encode(Enroll(pair.public)))
            frames = sockets.receive(connection.socket, time.monotonic() + SOON_S)
            assert frames is not None
            answers.append(type(decode(frames, TO_HOLDER)[0]).__name__)
    assert answers == ["Enrolled", "Refuse"]
    assert [bool(secured.ring.admits(pair.public, Role.worker)) for pair in keys] == [True, False]


def test_an_expired_token_opens_nothing(context: Context) -> None:
    secured, token = Secured(), KeyPair.new()
    secured.ring = Ring([], [Token.lasting(Role.worker, "", token.public, -1.0)], ["worker1"])
    with answering(context, secured) as address, pytest.raises(TokenError, match="has been used or has expired"):
        enrol(context, address, Peer(token, secured.root.public), KeyPair.new().public)


def test_the_key_of_a_token_hears_no_steps(context: Context) -> None:
    secured = Secured()
    with (
        a_link(context, secured) as (_, at),
        knocking(context, zmq.SUB, at["steps"], secured.holder().apply) as (_, events),
    ):
        assert next_event(events) == zmq.EVENT_HANDSHAKE_FAILED_AUTH


def test_what_is_no_public_key_is_not_enrolled(context: Context) -> None:
    secured = Secured()
    with answering(context, secured) as address:
        for nonsense in ("", "x" * 40 + "\n", "x" * 64, "\xfc" * 40):
            with pytest.raises(TokenError):
                enrol(context, address, secured.holder(), nonsense)
        assert enrol(context, address, secured.holder(), KeyPair.new().public) == ""  # the token is not used up


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
            assert worker.refusal
            assert false_root.receive(time.monotonic() + 0.1, 0.0) is None
