"""A bound ROUTER with bounds on each peer that is not a node of the cluster; any peer can be disconnected."""

from __future__ import annotations

import fcntl
import sys
import termios
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar, cast

import zmq
from zmq.constants import SocketOption

from dllama_zmq.bus import sockets
from dllama_zmq.bus.addresses import ip_of
from dllama_zmq.bus.guard import Guard
from dllama_zmq.bus.messages import Frame
from dllama_zmq.bus.meter import wire_bytes
from dllama_zmq.bus.security import SEAL_BYTES, Server

T = TypeVar("T")
_MAX_REMEMBERED = 4096
_MAX_DROPPED = 8192  # at once, some 20 ms
_OVER_IPC = "localhost:"


class PeerGone(Exception):
    """Sending failed: no connection has this identity, or its queue is full."""


class PeerBehind(PeerGone):
    """The peer's queue is full. Over TCP it has been disconnected; over ipc it has lost a message, and may read on."""


class _Connection(NamedTuple):
    """A peer's connection: descriptor of libzmq (-1: none), address, and public key (empty without CURVE)."""

    descriptor: int = -1
    address: str = ""
    key: str = ""


_NOBODY = _Connection()


class Peers:
    """The peers at a ROUTER.

    is_known: whether an identity is that of a node of the cluster, whose messages are not bounded.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoints: Sequence[str],
        bounds: sockets.Bounds,
        is_known: Callable[[bytes], bool] = lambda identity: False,
        security: Server | None = None,
    ) -> None:
        """Raises BusError if an endpoint cannot be bound."""
        self._is_known = is_known
        self._in_all = bounds.in_all
        self.security = security
        self._connections: OrderedDict[bytes, _Connection] = OrderedDict()
        self.socket, self._guard = bind_guarded(context, zmq.ROUTER, endpoints, bounds, security)

    def receive(self, until: float, spin_s: float) -> list[Frame] | None:
        """The next message, its first frame the identity; None when time.monotonic() passes `until`."""
        return sockets.receive(self.socket, until, spin_s, self._take)

    def receive_now(self) -> list[Frame] | None:
        """The next message if it is already here."""
        return self._take(self.socket)

    def send(self, identity: bytes, frames: Sequence[Frame]) -> None:
        """Send to one peer. Raises PeerGone; a peer whose queue is full is disconnected."""
        try:
            self.socket.send_multipart([identity, *frames], zmq.NOBLOCK)
        except zmq.Again:
            self.cut(identity)
            raise PeerBehind from None
        except zmq.ZMQError:
            raise PeerGone from None

    def cut(self, identity: bytes) -> None:
        """Disconnect a peer, if it is connected by TCP."""
        connection = self._connections.pop(identity, _NOBODY)
        if self._guard is not None:
            self._guard.cut(connection.descriptor)

    def address(self, identity: bytes) -> str:
        """The address of a peer: an IP address, `localhost:UID:GID:PID` over ipc, empty if unknown."""
        found = self._of(identity).address
        return ip_of(found) or found

    def key(self, identity: bytes) -> str:
        """The public key of a peer that has sent a message; empty without CURVE."""
        return self._of(identity).key

    def refused(self) -> dict[str, int]:
        """See `Guard.refused`."""
        return {} if self._guard is None else self._guard.refused()

    def round_trip_s(self, identity: bytes) -> float | None:
        """The kernel's estimate of the round trip to a peer; None if it has none, as over ipc."""
        return None if self._guard is None else self._guard.round_trip_s(self._of(identity).descriptor)

    def unread_bytes(self, identity: bytes) -> int:
        """Bytes sent to a peer that the kernel still holds: not read, or not acknowledged; 0 if unknown.

        They do not become fewer while libzmq has more to send.
        """
        descriptor = self._of(identity).descriptor
        try:
            found = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)) if descriptor >= 0 else bytes(4)
        except OSError:
            return 0
        return int.from_bytes(found, sys.byteorder)

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket; sent messages have `linger_ms` to leave."""
        close_guarded(self.socket, self._guard, linger_ms)

    def _of(self, identity: bytes) -> _Connection:
        return self._connections.get(identity, _NOBODY)

    def _take(self, socket: zmq.Socket[bytes]) -> list[Frame] | None:
        for _ in range(_MAX_DROPPED):
            try:
                first = socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            identity = first.bytes
            frames: list[Frame] = [identity, *socket.recv_multipart()] if first.more else [identity]
            if self._admits(first, identity, frames):
                return frames
        return None

    def _admits(self, first: zmq.Frame, identity: bytes, frames: Sequence[Frame]) -> bool:
        """Whether to read a message; not if it is left from an unknown peer that has been disconnected."""
        known = self._is_known(identity)
        if known and self._guard is None:
            return True
        descriptor, address = _of(first, zmq.SRCFD, -1), _of(first, "Peer-Address", "")
        if self._guard is not None and known:
            self._guard.trust(descriptor)
        elif self._guard is not None:
            wanted = self._guard.took(descriptor, wire_bytes(frames[1:], sealed=self.security is not None))
            if self._in_all and not wanted and not address.startswith(_OVER_IPC):
                return False
        key = ""
        if self.security is not None and self._guard is not None:
            key = _of(first, "User-Id", "")
            self._guard.is_of(descriptor, key)
        self._connections[identity] = _Connection(descriptor, address, key)
        if len(self._connections) > _MAX_REMEMBERED:
            self._connections.popitem(last=False)
        return True


def bind_guarded(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    endpoints: Sequence[str],
    bounds: sockets.Bounds,
    security: Server | None = None,
) -> tuple[zmq.Socket[bytes], Guard | None]:
    """Bind a socket to every endpoint; with a Guard if one of them is TCP, since only this user reaches the others.

    security: whose keys may connect from other computers; None: anybody may. Raises BusError if an endpoint cannot
    be bound.
    """
    socket, guard = sockets.bounded(context, kind, bounds), None
    try:
        if any(endpoint.startswith("tcp://") for endpoint in endpoints):
            guard = Guard(socket, bounds, security)
        secured = [endpoint for endpoint in endpoints if security is not None and security.secures(endpoint)]
        sockets.bind(socket, [endpoint for endpoint in endpoints if endpoint not in secured])
        if secured and security is not None:  # a listener has the options that its socket had when it was bound
            security.apply(socket)
            socket.set(SocketOption.MAXMSGSIZE, bounds.frame_bytes + SEAL_BYTES)
            sockets.bind(socket, secured)
    except BaseException:
        close_guarded(socket, guard)
        raise
    return socket, guard


def close_guarded(socket: zmq.Socket[bytes], guard: Guard | None, linger_ms: int = 0) -> None:
    """Close a socket of `bind_guarded` and its guard; sent messages have `linger_ms` to leave."""
    if guard is not None:
        guard.close()
    socket.close(linger=linger_ms)


def _of(frame: zmq.Frame, what: int | str, otherwise: T) -> T:
    try:
        return cast(T, frame.get(what))
    except (zmq.ZMQError, KeyError):  # inproc has neither
        return otherwise
