"""The root's and a worker's ends of the bus: sockets that send and receive checked messages, each metered.

Frames that are no valid message are dropped here with a line in the log, so they never reach the code above.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

import zmq
from msgspec import Struct
from msgspec.structs import replace

from dllama_zmq.bus import sockets
from dllama_zmq.bus.addresses import without_host
from dllama_zmq.bus.codec import decode, encode, kind_of
from dllama_zmq.bus.messages import TO_ROOT, TO_WORKER, Bye, Fault, Frame, Join, Message, Ping, wire_name
from dllama_zmq.bus.meter import Meter
from dllama_zmq.bus.peers import PeerGone, Peers, bind_guarded, close_guarded
from dllama_zmq.bus.rate_limited_log import RateLimitedLog
from dllama_zmq.bus.roster import Roster
from dllama_zmq.bus.security import Peer, Server
from dllama_zmq.errors import ProtocolError, RootLost

logger = logging.getLogger(__name__)

_LAST_WORD_MS = 1000  # a busy computer may leave a process out for longer than 200
_BYE = wire_name(Bye.__name__)
_READ_AHEAD_S = 0.01  # a flood of others' messages must not hold up the root


class Endpoints(Struct, frozen=True):
    """Where the root listens. Each list may hold tcp, ipc and inproc addresses; `local_*` are for the same host.

    security: the keys that may connect from other computers; None: any peer may.
    """

    steps: Sequence[str]
    replies: Sequence[str]
    local_steps: str = ""
    local_replies: str = ""
    security: Server | None = None

    def for_worker(self, same_host: bool) -> tuple[str, str]:
        """The addresses of steps and replies for a worker on this host, or on another.

        A TCP address is given without its host: the root may listen on 0.0.0.0, and the worker knows a way to it.
        """
        return (
            self.local_steps if same_host and self.local_steps else without_host(self.steps[0]),
            self.local_replies if same_host and self.local_replies else without_host(self.replies[0]),
        )


class RootLink:
    """PUB and ROUTER of the root. spin_s: seconds that a wait spins before it blocks. roster: for the meter."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoints: Endpoints, spin_s: float, roster: Roster
    ) -> None:
        self.meter = Meter()
        self._roster, self._names = roster, [member.name for member in roster.members]
        self.spin_s = spin_s
        self._bad_peers = RateLimitedLog(logger)
        self._leaving: set[bytes] = set()
        self._unread: deque[tuple[bytes, Message, list[Frame]]] = deque()  # that `last_word` has passed over
        security = endpoints.security
        hears = None if security is None else replace(security, admits_tokens=False)
        steps = [*endpoints.steps, *filter(None, [endpoints.local_steps])]
        replies = [*endpoints.replies, *filter(None, [endpoints.local_replies])]
        self.steps, self._guard = bind_guarded(context, zmq.PUB, steps, sockets.STEPS, hears)
        try:
            self.peers = Peers(
                context, replies, sockets.REPLIES, lambda identity: roster.find(identity) is not None, security
            )
        except BaseException:
            close_guarded(self.steps, self._guard)
            raise
        self.replies = self.peers.socket

    def publish(self, message: Message) -> None:
        """Send to every worker."""
        self.publish_frames(kind_of(message), encode(message))

    def publish_frames(self, kind: str, frames: Sequence[Frame]) -> None:
        """Send encoded frames to every worker."""
        self.steps.send_multipart(frames)
        self.meter.count(self._names, "sent", kind, frames)

    def send(self, identity: bytes, name: str, message: Message, arrays: Sequence[Frame] = ()) -> None:
        """Send to one worker. Raises PeerGone."""
        self.send_frames(identity, name, kind_of(message), encode(message, arrays))

    def send_frames(self, identity: bytes, name: str, kind: str, frames: Sequence[Frame]) -> None:
        """Send encoded frames to one worker; not metered if `name` is empty. Raises PeerGone."""
        self.peers.send(identity, frames)
        if name:
            self.meter.count([name], "sent", kind, frames)
            if kind == _BYE:  # unknown peers are not waited for at the end
                self._leaving.add(identity)

    def receive(self, until: float) -> tuple[bytes, Message, list[Frame]] | None:
        """The next message and the identity it came from, or None when time.monotonic() passes `until`."""
        if self._unread:
            return self._unread.popleft()
        while True:
            frames = self.peers.receive(until, self.spin_s)
            if frames is None:
                return None
            arrived = self.read(frames)
            if arrived is not None:
                return arrived
            if time.monotonic() >= until:  # a flood of such messages must not outlast a deadline
                return None

    def last_word(self, identity: bytes) -> Fault | None:
        """The Fault that a worker sent before it left, for sending to it may fail before that is read.

        Not in a step: that reads the socket without `receive`.
        """
        until = time.monotonic() + _READ_AHEAD_S
        while time.monotonic() < until and (frames := self.peers.receive_now()) is not None:
            if (arrived := self.read(frames)) is not None:
                self._unread.append(arrived)
        for arrived in self._unread:
            if arrived[0] == identity and isinstance(arrived[1], Fault):
                self._unread.remove(arrived)
                return arrived[1]
        return None

    def read(self, frames: Sequence[Frame]) -> tuple[bytes, Message, list[Frame]] | None:
        """Decode frames from `replies`; returns the identity and the message, or None if they are no valid message."""
        identity = bytes(frames[0])
        try:
            message, arrays = decode(frames[1:], TO_ROOT)
        except ProtocolError as error:
            self._bad_peers.warning("dropped a message from %r: %s", identity, error)
            return None
        if isinstance(message, Join):
            self._leaving.discard(identity)
        member = self._roster.find(identity)
        if member is not None:
            self.meter.count([member.name], "received", kind_of(message), frames[1:])
        return identity, message, arrays

    def close(self) -> None:
        """Close both sockets once all workers that were sent Bye have gone or joined again, or a short wait is over.

        A worker whose connection breaks loses what it has not read (that is ZMQ_IMMEDIATE's doing): the Bye too.
        """
        until = time.monotonic() + _LAST_WORD_MS / 1000
        knock = encode(Ping(0, 0, 0))
        while self._leaving and time.monotonic() < until:
            self.receive(time.monotonic() + 0.002)
            for identity in list(self._leaving):
                try:
                    self.peers.send(identity, knock)
                except PeerGone:
                    self._leaving.discard(identity)
        close_guarded(self.steps, self._guard)
        self.peers.close(_LAST_WORD_MS)

    def refused(self) -> dict[str, int]:
        """The number of refused handshakes on both sockets, by the peer's address."""
        of_steps = {} if self._guard is None else self._guard.refused()
        return dict(Counter(of_steps) + Counter(self.peers.refused()))


class WorkerLink:
    """DEALER and SUB of a worker. Both directions from the root are read as one stream of messages."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        root: str,
        identity: bytes,
        spin_s: float,
        watch: bool = True,
        security: Peer | None = None,
    ) -> None:
        self._context, self._security = context, security
        self.spin_s = spin_s
        self._bad_peers = RateLimitedLog(logger)
        self.monitor: sockets.Monitor | None = None

        def watched(socket: zmq.Socket[bytes]) -> None:
            if watch:  # inproc has no such events
                self.monitor = sockets.Monitor(socket, root, security)

        self.replies = sockets.connect(context, zmq.DEALER, root, identity, security, watched)
        self.steps: zmq.Socket[bytes] | None = None
        self._poller = self._new_poller()

    def subscribe(self, endpoint: str) -> None:
        """Subscribe to `endpoint`, in place of an earlier subscription."""
        if self.steps is not None:
            self.steps.close()
        self.steps = sockets.connect(self._context, zmq.SUB, endpoint, security=self._security)
        self._poller = self._new_poller()

    def send(self, message: Message, arrays: Sequence[Frame] = ()) -> bool:
        """Send to the root. False if there is no connection: the message is lost."""
        return self.send_frames(encode(message, arrays))

    def send_frames(self, frames: Sequence[Frame]) -> bool:
        """Send encoded frames to the root, as `send` does."""
        try:
            self.replies.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self, until: float, spins: bool = True) -> tuple[Message, list[Frame]] | None:
        """The next message, or None when time.monotonic() passes `until`. Raises RootLost if the connection broke.

        spins: whether the wait spins before it blocks, as between messages of a step.
        """
        while True:
            frames = sockets.spin(self.steps, self.spin_s) if spins and self.steps is not None else None
            if frames is None:
                frames = self._wait(until)
            if frames is None:
                return None
            arrived = self.read(frames)
            if arrived is not None:
                return arrived
            if time.monotonic() >= until:
                return None

    def read(self, frames: Sequence[Frame]) -> tuple[Message, list[Frame]] | None:
        """Decode frames from the root; None if they are no valid message."""
        try:
            return decode(frames, TO_WORKER)
        except ProtocolError as error:
            self._bad_peers.warning("dropped a message from the root: %s", error)
            return None

    def close(self) -> None:
        """Close both sockets; a last Fault has a moment to leave."""
        if self.monitor is not None:
            self.monitor.close()
        self.replies.close(linger=_LAST_WORD_MS)
        if self.steps is not None:
            self.steps.close()

    def _wait(self, until: float) -> list[Frame] | None:
        """Block for the first message on either socket."""
        while True:
            wait_s = until - time.monotonic()
            ready = dict(self._poller.poll(max(0, round(wait_s * 1000))))
            changed = self.monitor is not None and self.monitor.events in ready
            for socket in (self.steps, self.replies):  # a ping must not overtake what it asks about
                if socket is not None and (changed or socket in ready):  # changed: a last Bye may have come meanwhile
                    frames = sockets.receive_now(socket)
                    if frames is not None:
                        return frames
            if changed and self.monitor is not None:
                self.monitor.read()
                if self.monitor.lost:
                    self.monitor.lost = False  # a root that starts meanwhile is reached over the same link
                    raise RootLost("the connection to the root broke")
            if wait_s <= 0:
                return None

    def _new_poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        watched = [self.replies, self.steps, self.monitor.events if self.monitor is not None else None]
        for socket in watched:
            if socket is not None:
                poller.register(socket, zmq.POLLIN)
        return poller


def host_id() -> str:
    """A text that is equal for processes that share a running kernel, its network and its files, so that they can use
    ipc.

    Containers and network namespaces of one machine count as hosts of their own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}/{os.stat('/proc/self/ns/mnt').st_ino}"
    except OSError:
        return os.uname().nodename
