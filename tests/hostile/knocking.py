"""A root's sockets with keys and no model, who knocks at them, and what becomes of their handshakes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq
from integration.nodes import Context, tcp
from secured import Secured

from dllama_zmq.bus.codec import encode
from dllama_zmq.bus.links import Endpoints, RootLink
from dllama_zmq.bus.messages import Enroll, Join
from dllama_zmq.bus.roster import Roster
from dllama_zmq.bus.security import FAILED, enrolled

SOON_S = 20.0
_SOON_MS = 20_000
JOIN = Join("", "a host", 1, "0", "elsewhere", 1, None)


@contextmanager
def a_link(context: Context, secured: Secured) -> Iterator[tuple[RootLink, dict[str, str]]]:
    """The root's sockets, and the address of each."""
    places = tcp()
    link = RootLink(context, Endpoints(places.steps, places.replies, security=secured.server()), 0.0, Roster([], 1))
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
    assert events.poll(_SOON_MS), "its handshake has not ended"
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


@contextmanager
def answering(context: Context, secured: Secured, n_dropped: int = 0) -> Iterator[str]:
    """The address of a root without a model that answers workers and holders of tokens, as Membership does.

    n_dropped: the first messages, which it does not answer.
    """
    with a_link(context, secured) as (link, at):
        ended = threading.Event()

        def answer() -> None:
            to_drop = n_dropped
            while not ended.is_set():
                arrived = link.receive(time.monotonic() + 0.05)
                if arrived is not None and to_drop:
                    to_drop -= 1
                elif arrived is not None and isinstance(arrived[1], Enroll):
                    link.send(arrived[0], "", enrolled(link.peers.security, link.peers.key(arrived[0]), arrived[1]))

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield at["replies"]
        finally:
            ended.set()
            thread.join()
