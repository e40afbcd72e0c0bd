"""Sockets with every option set in one place, and a receive that always ends.

Waiting spins for a moment before it blocks: sleeping costs more than a reply that is 100 us away. The spin
yields the core at each turn, so that libzmq's own I/O thread gets it. Nodes that share too few cores do not spin: each
would take the core from the one that it waits for (measured: see tools/BENCHMARKS.md).
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import zmq
from msgspec import Struct
from zmq.constants import SocketOption

from dllama_zmq.bus.addresses import reachable
from dllama_zmq.bus.messages import MAX_FRAME_BYTES, Frame
from dllama_zmq.bus.security import FAILED, REFUSED, SEAL_BYTES, Peer, why_failed
from dllama_zmq.errors import BusError

SPIN_S = 300e-6
_HEARTBEAT_MS = 250
_SILENT_MS = 1500  # the next heartbeat and the next ping of the root come up to 0.5 s later: 2 s in all
_DEAD_AFTER_MS = 2000
_STUCK_AFTER_MS = 3000
_PAIR_LINGER_MS = 500


class Bounds(Struct, frozen=True):
    """Bounds on the memory that one peer of a bound socket can take.

    send_messages, receive_messages: in its queues, 0 for no bound. frame_bytes: of one frame that it sends. held_bytes:
    sent and not read yet (`guard.py`); with `in_all`, everything that an unknown peer sends. kernel_bytes: in the
    kernel's own queue of what it sends, 0 for the system's choice.
    """

    send_messages: int
    receive_messages: int
    frame_bytes: int
    held_bytes: int
    kernel_bytes: int = 0
    in_all: bool = False


STEPS = Bounds(send_messages=256, receive_messages=16, frame_bytes=1024, held_bytes=8 << 10)
"""A worker is at most 4 messages and some beacons behind. But libzmq counts messages that have left a queue in halves
of its bound, and looks at that count once in 1 to 3 ms when it sends: with 32 messages, two nodes of a small model lost
one each second, and each was asked for again after 0.5 s."""
REPLIES = Bounds(send_messages=64, receive_messages=0, frame_bytes=MAX_FRAME_BYTES, held_bytes=16 << 10, in_all=True)
"""held_bytes is for peers without a place in the cluster, which send a join each second. A node fills no queue: one
that freezes in mid-answer must be noticed by heartbeats (see `bounded`)."""
CLIENTS = Bounds(
    send_messages=4096, receive_messages=2, frame_bytes=600 << 10, held_bytes=1280 << 10, kernel_bytes=64 << 10
)
"""receive_messages: with 1, libzmq 4.3.5 reads nothing of a peer with CURVE, because the peer's identity fills the
queue. The longest prompt takes 512 KiB; two of them fit into what is held. The API server hears all tokens of its
users: 50 requests with 40 tokens/s fill its queue if it does not run for 2 s."""


class _Socket(zmq.Socket[bytes]):
    """A socket that its context knows before it is open."""

    def __new__(cls, context: Context, *args: Any, **more: Any) -> _Socket:
        socket = super().__new__(cls)
        context._add_socket(socket)
        return socket


class Context(zmq.Context[zmq.Socket[bytes]]):
    """A context whose `destroy` also closes a socket whose creation or close was interrupted by a signal.

    pyzmq's context does not know such a socket, and would wait for it forever.
    """

    _socket_class = _Socket

    def _rm_socket(self, socket: zmq.Socket[bytes]) -> None:
        """Before a socket is closed. It remains known, by a weak reference, until it no longer exists."""


def bounded(context: zmq.Context[zmq.Socket[bytes]], kind: int, bounds: Bounds) -> zmq.Socket[bytes]:
    """Make a socket with these bounds, not yet bound."""
    socket = _socket(context, kind)
    socket.set(SocketOption.SNDHWM, bounds.send_messages)
    socket.set(SocketOption.RCVHWM, bounds.receive_messages)
    socket.set(SocketOption.MAXMSGSIZE, bounds.frame_bytes)
    # With heartbeats of its own, libzmq 4.3.5 aborts the process where a connection breaks while its queue of what was
    # received is full (stream_engine_base.cpp: !_io_error). There the peers' heartbeats have a TTL instead, which is as
    # good for peers that send little; a message ends the watch of a TTL until the next heartbeat.
    if bounds.receive_messages:
        socket.set(SocketOption.HEARTBEAT_IVL, 0)
    if bounds.kernel_bytes:
        socket.set(SocketOption.RCVBUF, bounds.kernel_bytes)
    if kind == zmq.ROUTER:
        socket.set(SocketOption.ROUTER_MANDATORY, 1)  # sending to a peer that is gone raises instead of vanishing
    return socket


def bind(socket: zmq.Socket[bytes], endpoints: Sequence[str]) -> None:
    """Bind to every endpoint. Raises BusError, which names the endpoint that is in use and what to do."""
    for endpoint in endpoints:
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise BusError(_bind_failure(endpoint, error)) from None


def connect(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    endpoint: str,
    identity: bytes = b"",
    security: Peer | None = None,
    watch: Callable[[zmq.Socket[bytes]], None] = lambda socket: None,
) -> zmq.Socket[bytes]:
    """Make a socket that connects, and reconnects, to `endpoint` in the background.

    A DEALER can send only while it is connected, and what it has not read goes with the connection (see `Connection`).
    security: for TCP. watch: is called before it connects.
    Raises BusError if this is no address, or no name of a host.
    """
    address = reachable(endpoint)
    socket = _connecting(context, kind, address, security)
    if identity:
        socket.set(SocketOption.IDENTITY, identity)
    if kind == zmq.DEALER:
        socket.set(SocketOption.IMMEDIATE, 1)  # nothing is queued for a peer that is away, to arrive much too late
    if kind == zmq.SUB:
        socket.set(SocketOption.SUBSCRIBE, b"")
    watch(socket)
    _connect(socket, address)
    return socket


def pair(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, bind: bool = False) -> zmq.Socket[bytes]:
    """Make one end of a PAIR between two processes of one root, which never drops messages."""
    socket = context.socket(zmq.PAIR)
    socket.set(SocketOption.LINGER, _PAIR_LINGER_MS)
    socket.set(SocketOption.SNDHWM, 0)
    socket.set(SocketOption.RCVHWM, 0)
    if bind:
        socket.bind(endpoint)
    else:
        socket.connect(endpoint)
    return socket


def receive_now(socket: zmq.Socket[bytes]) -> list[Frame] | None:
    """The next message if it is already here."""
    try:
        return list(socket.recv_multipart(zmq.NOBLOCK))
    except zmq.Again:
        return None


Take: TypeAlias = Callable[[zmq.Socket[bytes]], list[Frame] | None]


def receive(
    socket: zmq.Socket[bytes], until: float, spin_s: float = SPIN_S, take: Take = receive_now
) -> list[Frame] | None:
    """The next message as frames, or None when time.monotonic() passes `until`. take: reads a message."""
    frames = spin(socket, min(spin_s, until - time.monotonic()), take)
    if frames is not None:
        return frames
    while True:
        wait_s = until - time.monotonic()
        if not socket.poll(max(0, round(wait_s * 1000))):
            if wait_s <= 0:
                return None
            continue
        frames = take(socket)
        if frames is not None or wait_s <= 0:  # every message may have been dropped, and more may come
            return frames


def spin(socket: zmq.Socket[bytes], spin_s: float, take: Take = receive_now) -> list[Frame] | None:
    """The next message if it comes within `spin_s`; yields the core at every turn."""
    if readable(socket):
        return take(socket)
    end = time.perf_counter() + spin_s
    while time.perf_counter() < end:
        os.sched_yield()
        if readable(socket):
            return take(socket)
    return None


def readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message is ready. Faster than a poll."""
    return bool(int(socket.get(SocketOption.EVENTS)) & zmq.POLLIN)


class Monitor:
    """Whether a connecting socket has a peer, has lost it or was refused by it, which ZeroMQ otherwise hides."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str = "", security: Peer | None = None) -> None:
        """Call it before the socket connects. endpoint, security: of the peer, for words about it."""
        self._socket, self._endpoint, self._security = socket, endpoint, security
        self.events = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | FAILED)
        self.up = False
        self.lost = False
        """A peer has been lost, ever."""
        self.refused = False
        """The peer has refused this end for good: libzmq does not connect again."""
        self.refusal = ""
        """Why the last handshake failed, as far as that is known."""
        self.not_admitted = False
        """The peer does not know this end's key."""

    def read(self) -> None:
        """Take in the events so far."""
        while self.events.poll(0):
            kind, value = next_event(self.events)
            self.up = kind == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self.lost = self.lost or kind == zmq.EVENT_DISCONNECTED
            if kind & FAILED:
                self.refusal = why_failed(kind, value, self._endpoint, self._security)
                self.refused = self.refused or bool(kind & REFUSED)
                self.not_admitted = kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH

    def close(self) -> None:
        """Stop watching; before the socket itself is closed."""
        self._socket.disable_monitor()
        self.events.close(linger=0)


class Connection:
    """A DEALER that can still read received messages after its peer left, and knows whether it has a peer.

    libzmq 4.3.5 drops both queues of a connection that ends, or none of them (IMMEDIATE). Here it drops none. So a
    caller sends while the connection is `up`, and makes another one when it has been `lost`: a message that has not
    left must not arrive later.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, security: Peer | None = None) -> None:
        """Connects in the background. Raises BusError if this is no address, or no name of a host."""
        address = reachable(endpoint)
        self.socket = _connecting(context, zmq.DEALER, address, security)
        self.monitor = Monitor(self.socket, endpoint, security)
        _connect(self.socket, address)

    @property
    def descriptors(self) -> tuple[int, int]:
        """Readable when something may have come, or changed; for an event loop, which then looks at both."""
        return int(self.socket.get(SocketOption.FD)), int(self.monitor.events.get(SocketOption.FD))

    def up(self, wait_s: float) -> bool:
        """Whether there is a peer, or is one within `wait_s`; False at once where it refuses this end."""
        self._await(wait_s, lambda: self.monitor.up or self.monitor.refused)
        return self.monitor.up

    def lost(self, wait_s: float = 0.0) -> bool:
        """Whether a peer has been lost, ever, or is within `wait_s`."""
        return self._await(wait_s, lambda: self.monitor.lost)

    def close(self) -> None:
        """Close the socket, and drop its messages."""
        self.monitor.close()
        self.socket.close()

    def _await(self, wait_s: float, happened: Callable[[], bool]) -> bool:
        until = time.monotonic() + wait_s
        while True:
            self.monitor.read()
            if happened():
                return True
            if not self.monitor.events.poll(max(0, round((until - time.monotonic()) * 1000))):
                return False


def _connecting(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str, security: Peer | None
) -> zmq.Socket[bytes]:
    socket = _socket(context, kind)
    socket.set(SocketOption.HEARTBEAT_TTL, _DEAD_AFTER_MS)
    if security is not None and endpoint.startswith("tcp://"):
        security.apply(socket)
        socket.set(SocketOption.MAXMSGSIZE, MAX_FRAME_BYTES + SEAL_BYTES)
    return socket


def next_event(events: zmq.Socket[bytes]) -> tuple[int, int]:
    """The next event of a monitor, and its value.

    As zmq.utils.monitor reads it, which also brings asyncio into every process: 15 ms of its start.
    """
    kind, value = struct.unpack_from("=Hi", events.recv_multipart()[0])
    return int(kind), int(value)


def _connect(socket: zmq.Socket[bytes], endpoint: str) -> None:
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise BusError(
            f"{endpoint!r} is no address to connect to ({error.strerror}); expected something like tcp://192.168.1.10:5570"
        ) from None


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.set(SocketOption.LINGER, 0)
    socket.set(SocketOption.SNDHWM, 0)
    socket.set(SocketOption.RCVHWM, 0)
    socket.set(SocketOption.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.set(SocketOption.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.set(SocketOption.HEARTBEAT_TIMEOUT, _SILENT_MS)
    socket.set(SocketOption.TCP_MAXRT, _STUCK_AFTER_MS)  # a peer that reads nothing has no heartbeat that could fail
    socket.set(SocketOption.HANDSHAKE_IVL, 5000)
    socket.set(SocketOption.RECONNECT_IVL, 50)
    socket.set(SocketOption.RECONNECT_IVL_MAX, 1000)
    socket.set(SocketOption.IPV6, 1)
    return socket


def _bind_failure(endpoint: str, error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{endpoint} is in use by another program; stop it, or choose other numbers under root.ports"
    if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return f"{endpoint}: this machine has no such address; root.host must be one of its own"
    return f"cannot listen on {endpoint}: {error.strerror}"
