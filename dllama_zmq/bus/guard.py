"""Ends TCP connections whose peer sends more than is read from it. Knows Linux alone, as the whole package.

libzmq bounds the bytes of a frame and the number of messages in a queue, but not the frames of a message: a peer that
announces MORE forever fills the memory of the process, and 2 bytes on the wire take 64 there. Such bytes never become
a message, so only the connection itself shows them: the kernel counts what it has received (TCP_INFO), messages say
over which connection they came (ZMQ_SRCFD), and the difference of the two lies in libzmq.

A connection is also ended where a peer without a place in the cluster sends messages faster than a worker that joins.
The next connections from its address are admitted one by one; other addresses do not wait (`admission.py`).

The connection of a peer whose key is removed from the ring is ended too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import secrets
import socket
import struct
import termios
import threading
import time

import zmq
from msgspec import Struct

from dllama_zmq.bus.addresses import ip_of
from dllama_zmq.bus.admission import SLOWED_S, admission_to
from dllama_zmq.bus.rate_limited_log import RateLimitedLog
from dllama_zmq.bus.security import Server, why_refused
from dllama_zmq.bus.sockets import Bounds, next_event
from dllama_zmq.reporting import human_bytes

logger = logging.getLogger(__name__)

POLL_S = 0.02
HURRY_S = 0.004
"""How often connections are looked at, and how often for SLOWED_S after one was cut: libzmq takes in 2.5 GB/s."""
_IDLE_POLL_S = 1.0  # while all are trusted: one may be so no longer
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_MONITOR_STOPPED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_SO_COOKIE = 57
_RECEIVED_AT = 128  # tcpi_bytes_received in struct tcp_info, since Linux 4.1
_RTT_AT = 68  # tcpi_rtt, in us
_MESSAGES, _MESSAGES_S = 16, 2.0
"""Messages that a peer without a place in the cluster may send: at first, and more per second. It joins once a
second."""
_IDLE_BYTES_S, _SECURED_BYTES_S = 256, 640
"""Heartbeats of both sides are 64 bytes/s, joins 150; with CURVE, which adds 33 bytes to each frame, 330 and 180."""
_RELOAD_RING_S = 1.0
_libc = ctypes.CDLL(None)
_MAX_PER_POLL = 64  # connections looked at in one go, so that a thousand of them take no core


class _Connection(Struct):
    cookie: bytes  # the kernel's own number of this socket, because descriptors are reused; empty: not known
    address: str
    since: float
    n_messages: int = 0
    read_bytes: int = 0
    trusted: bool = False
    key: str = ""  # of the peer, once it has said something

    @property
    def watched(self) -> bool:
        return bool(self.cookie) and not self.trusted


class Guard:
    """Watches the connections of one bound socket. Call `took` and `trust` in the socket's own thread."""

    def __init__(self, socket: zmq.Socket[bytes], bounds: Bounds, security: Server | None = None) -> None:
        """Call it before the socket is bound. Raises RuntimeError if no thread can be started."""
        self._socket = socket
        self._bounds = bounds
        self._idle_bytes_s = _IDLE_BYTES_S if security is None else _SECURED_BYTES_S
        self._connections: dict[int, _Connection] = {}
        self._early_keys: dict[int, tuple[bytes, str]] = {}  # cookie and key, before the thread heard of the connection
        self._next = 0
        self._bad_peers = RateLimitedLog(logger)
        self._hurry_until = 0.0
        self._admission, self._end_admission = admission_to(socket, security)
        self._failure: int | None = None  # of the handshake whose connection ends next
        self._secured = security is not None
        self._address = f"inproc://guard-{secrets.token_hex(8)}"
        left = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL if self._secured else 0
        socket.monitor(self._address, _EVENTS | left)
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._end_admission()
            raise
        self._listens.wait()  # a queue of events that nobody reads would hold up libzmq's own thread

    def took(self, descriptor: int, n_bytes: int) -> bool:
        """Count a message of `n_bytes` read from this connection. Returns False if it must be dropped.

        That is so if the connection has ended, or ends now because it sends too many.
        """
        connection = self._connections.get(descriptor)
        if connection is None:
            return False
        if connection.trusted:  # it was a node's, and is no more
            connection.trusted, connection.n_messages, connection.since = False, 0, time.monotonic()
            connection.read_bytes = _received_bytes(descriptor)
        if not self._bounds.in_all:
            connection.read_bytes += n_bytes
            return True
        connection.n_messages += 1
        if connection.n_messages <= _MESSAGES or not connection.watched:
            return True
        now = time.monotonic()
        if connection.n_messages <= _MESSAGES + _MESSAGES_S * (now - connection.since):
            return True
        self._end_flood(descriptor, connection, now, f"{connection.n_messages} messages and has no place")
        return False

    def trust(self, descriptor: int) -> None:
        """Stop bounding this connection: it is that of a node of the cluster."""
        connection = self._connections.get(descriptor)
        if connection is not None:
            connection.trusted = True

    def is_of(self, descriptor: int, key: str) -> None:
        """Note the public key of this connection's peer; empty: none."""
        connection = self._connections.get(descriptor)
        if connection is None:
            self._early_keys[descriptor] = _cookie(descriptor), key
            connection = self._connections.get(descriptor)  # the thread may have heard of it meanwhile
        if connection is not None:
            connection.key = key

    def refused(self) -> dict[str, int]:
        """The number of refused handshakes, by the peer's address."""
        return self._admission.refusals.counts()

    def cut(self, descriptor: int) -> None:
        """End this connection, and free its unread bytes."""
        connection = self._connections.pop(descriptor, None)
        if connection is not None:
            _shut_down(descriptor, connection.cookie)

    def round_trip_s(self, descriptor: int) -> float | None:
        """The kernel's estimate of a connection's round trip; None if it has none."""
        connection = self._connections.get(descriptor)
        if connection is None or not connection.cookie:
            return None
        return _round_trip_s(descriptor)

    def close(self) -> None:
        """Stop watching; before the socket itself is closed."""
        self._end_admission()
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disable_monitor()
        self._thread.join(2.0)

    def _run(self) -> None:
        # Made here, where no signal can come between a socket and what closes it; of a shadow of the context, so that
        # `destroy` in another thread leaves it to this one, which hears of it.
        self._events: zmq.Socket[bytes] = zmq.Context.shadow(self._socket.context).socket(zmq.PAIR)
        looked, ring_read_at = 0.0, time.monotonic()
        try:
            self._events.set(zmq.RCVHWM, 0)
            self._events.set(zmq.LINGER, 0)
            self._events.connect(self._address)
            self._listens.set()
            while True:
                watched = any(c.watched for c in list(self._connections.values()))
                now = time.monotonic()
                every_s = _IDLE_POLL_S if not watched else HURRY_S if now < self._hurry_until else POLL_S
                if watched and now >= looked + every_s:  # also while connections come and go without a pause
                    self._look()
                    looked = now
                if now >= ring_read_at + _RELOAD_RING_S:
                    self._cut_removed()
                    ring_read_at = now
                if self._events.poll(round(every_s * 1000)) and not self._take_event():
                    return
        except zmq.ZMQError:  # the context is being ended
            return
        finally:
            self._listens.set()
            self._events.close()

    def _take_event(self) -> bool:
        kind, descriptor = next_event(self._events)
        if kind == zmq.EVENT_MONITOR_STOPPED:
            return False
        if kind & _FAILED:
            self._failure = descriptor  # the end of the same connection is the next event of libzmq's one thread
        elif kind == zmq.EVENT_ACCEPTED:
            cookie = _cookie(descriptor)
            address = _peer_address(descriptor) if cookie else ""
            self._connections[descriptor] = accepted = _Connection(cookie, address, time.monotonic())
            of, key = self._early_keys.pop(descriptor, (b"", ""))
            if of == cookie:
                accepted.key = key
        else:
            connection = self._connections.pop(descriptor, None)
            if self._failure is not None and connection is not None:
                self._admission.refusals.add(connection.address, why_refused(self._failure, self._secured))
            self._failure = None
        return True

    def _cut_removed(self) -> None:
        """End connections whose key is not on the ring any more.

        Connections whose key is unknown (subscribers send nothing) end too; admitted ones reconnect at once.
        """
        gone = self._admission.removed()
        if not gone:
            return
        cut = [fd for fd, c in list(self._connections.items()) if c.cookie and (c.key in gone or not c.key)]
        logger.info("keys removed n=%d connections closed=%d", len(gone), len(cut))
        for descriptor in cut:
            self.cut(descriptor)

    def _look(self) -> None:
        now = time.monotonic()
        connections = [(fd, c) for fd, c in list(self._connections.items()) if c.watched]
        first = self._next if self._next < len(connections) else 0
        self._next = first + _MAX_PER_POLL
        for descriptor, connection in connections[first : self._next]:
            allowed = self._bounds.held_bytes + connection.read_bytes + self._idle_bytes_s * (now - connection.since)
            received = _received_bytes(descriptor)
            if received > allowed:
                unread = human_bytes(received - connection.read_bytes)
                self._end_flood(descriptor, connection, now, f"{unread} more than was read")

    def _end_flood(self, descriptor: int, connection: _Connection, now: float, what: str) -> None:
        seconds = now - connection.since
        self._bad_peers.warning("closed a connection from %s: in %.1f s it sent %s", connection.address, seconds, what)
        self._hurry_until = now + SLOWED_S
        self._admission.slow_down(connection.address, now)  # before it can come again
        self.cut(descriptor)


def _option(descriptor: int, level: int, option: int, n_bytes: int) -> bytes:
    """A socket option, of a socket that is libzmq's; empty if there is none."""
    found, size = ctypes.create_string_buffer(n_bytes), ctypes.c_uint32(n_bytes)
    failed = _libc.getsockopt(descriptor, level, option, found, ctypes.byref(size))
    return b"" if failed else found.raw[: size.value]


def _cookie(descriptor: int) -> bytes:
    """The kernel's number of a TCP socket; empty for any other, and where the kernel does not count its bytes."""
    if len(_option(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, 256)) < _RECEIVED_AT + 8:
        return b""
    return _option(descriptor, socket.SOL_SOCKET, _SO_COOKIE, 8)


def _peer_address(descriptor: int) -> str:
    """The IP address of the other end; empty if it has left."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        return ip_of(copy.getpeername()[0])
    return ""


def _round_trip_s(descriptor: int) -> float | None:
    info = _option(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return float(struct.unpack_from("=I", info, _RTT_AT)[0]) / 1e6 if len(info) >= _RTT_AT + 4 else None


def _received_bytes(descriptor: int) -> int:
    """Bytes received over a TCP connection, without those that the kernel still holds."""
    info = _option(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < _RECEIVED_AT + 8:
        return 0
    unread = bytearray(4)
    try:
        fcntl.ioctl(descriptor, termios.FIONREAD, unread)
    except OSError:  # libzmq has closed it meanwhile
        return 0
    return int(struct.unpack_from("=Q", info, _RECEIVED_AT)[0]) - int(struct.unpack("=i", unread)[0])


def _shut_down(descriptor: int, cookie: bytes) -> None:
    """End a connection of libzmq's as if its peer had left; a copy of the descriptor cannot change in between."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        if copy.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8) == cookie:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))  # the peer hears RST at once
            copy.shutdown(socket.SHUT_RDWR)
