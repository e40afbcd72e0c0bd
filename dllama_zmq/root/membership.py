"""Admit workers: give them places, plans and slices, publish beacons; and notice workers that leave between steps."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from dllama_zmq.bus.links import Endpoints, RootLink, host_id
from dllama_zmq.bus.messages import (
    Beacon,
    BeaconAck,
    Bye,
    Credit,
    Enroll,
    Fault,
    Frame,
    Join,
    Loaded,
    Message,
    Need,
    Ping,
    Plan,
    Preparing,
    Refuse,
    Welcome,
)
from dllama_zmq.bus.peers import PeerGone
from dllama_zmq.bus.rate_limited_log import RateLimitedLog
from dllama_zmq.bus.roster import Member, Roster, State
from dllama_zmq.bus.security import enrolled
from dllama_zmq.errors import ProtocolError, WorkerLost
from dllama_zmq.node_config import Limits
from dllama_zmq.root.room import Room
from dllama_zmq.root.weight_stream import WeightStream
from dllama_zmq.sharding import KVBudget

logger = logging.getLogger(__name__)

_FORMING_BEACON_S = 0.1
_IDLE_BEACON_S = 0.5
_MAX_OVERTIME_S = 0.002  # so that a flood of messages does not hold up steps and clients
_SILENT_S = 10.0  # a worker that loads sends Preparing every second
_NOT_LISTENING_S = 1.0  # silence does not count while the root itself does not listen
_PROBE_S = 0.05


class Progress(Struct, frozen=True):
    """The state of one worker, for people: bytes of weights sent, bytes in all, and what it does at present.

    kept_bytes: bytes that it had already. seconds: from joining until its weights were ready, or until now. reason: why
    it is not ready.
    """

    name: str
    state: State
    reason: str
    sent_bytes: int = 0
    kept_bytes: int = 0
    total_bytes: int = 0
    seconds: float = 0.0
    doing: str = ""
    percent: int = 0


class _Stay(Struct):
    """One worker at its place, from its Join on. Times are those of time.monotonic().

    loaded_at: None until it has its weights. preparing: what it said last. has_heard: a beacon.
    """

    stream: WeightStream
    joined_at: float
    heard_at: float
    loaded_at: float | None = None
    preparing: Preparing | None = None
    has_heard: bool = False


class Membership:
    """Handles every message that belongs to no step, and updates the roster."""

    def __init__(
        self,
        link: RootLink,
        endpoints: Endpoints,
        roster: Roster,
        plan: Plan,
        limits: Limits,
        new_stream: Callable[[int], WeightStream],
        budget: KVBudget,
        memory: Callable[[int], int] | None = None,
    ) -> None:
        """plan: with the pages of the root's own computer. memory: bytes that a node's part of the model needs; None:
        no worker is refused for lack of memory.
        """
        self._link = link
        self._endpoints = endpoints
        self._roster = roster
        self._plan = plan
        self._limits = limits
        self._new_stream = new_stream
        self._stays: dict[int, _Stay] = {}  # by node, the present or last one
        self.room = Room(roster, budget, plan.pages, memory, self._held_bytes)
        self._has_been_ready = False
        self._served_at = 0.0
        self._probed_at = 0.0
        self._all_loaded_at = math.inf
        self._refusals = RateLimitedLog(logger)
        self._next_beacon = 0.0

    def wait_ready(self, until: float, on_progress: Callable[[], None]) -> None:
        """Bring every worker to readiness. Raises WorkerLost, naming who is missing, when `until` passes."""
        while not self._roster.ready:
            if time.monotonic() >= until or any(map(self._is_deaf, self._roster.members)):
                raise WorkerLost(self.missing_sentence())
            self.serve_bus(time.monotonic() + _FORMING_BEACON_S)
            on_progress()

    def serve_bus(self, until: float) -> None:
        """Answer messages until time.monotonic() passes `until`, then those received, for _MAX_OVERTIME_S at most."""
        self._count_listening()
        while True:
            self._tick()
            arrived = self._link.receive(min(until, self._next_beacon))
            if arrived is not None:
                self.handle(arrived[0], arrived[1])  # messages to the root outside a step have no arrays
            late_s = time.monotonic() - until
            if late_s >= 0 and (arrived is None or late_s > _MAX_OVERTIME_S):
                return

    def handle(self, identity: bytes, message: Message) -> None:
        """One message that is not part of a step."""
        if isinstance(message, Join):
            self._welcome(identity, message)
            return
        if isinstance(message, Enroll):
            self._reply_unknown(identity, enrolled(self._link.peers.security, self._link.peers.key(identity), message))
            return
        member = self._roster.find(identity)
        if member is None:  # a dropped worker that has not noticed: it must join again
            self._reply_unknown(identity, Bye(True, "this root does not know you"))
            return
        stay = self._stays[member.node]
        stay.heard_at = time.monotonic()
        if isinstance(message, Credit):
            stay.stream.grant(message.pieces)
            self._send_weights(member)
        elif isinstance(message, Need) and member.state is State.LOADING:
            try:
                stay.stream.need(message)
            except ProtocolError as error:
                self._drop(member, f"asks for weights of {error}")
                return
            self._send_weights(member)
        elif isinstance(message, Preparing) and member.state is State.LOADING:
            stay.preparing = message
        elif isinstance(message, Loaded) and member.state is State.LOADING:
            stream = stay.stream
            if message.nbytes != stream.total_bytes or not stream.complete:
                self._drop(member, f"reports {message.nbytes} bytes of weights; its slices have {stream.total_bytes}")
                return
            self._roster.set_loaded(member)
            stay.loaded_at = time.monotonic()
            figures = message.nbytes, stream.sent_bytes, stream.kept_bytes, stay.loaded_at - stay.joined_at
            logger.info("loaded %s bytes=%d sent=%d kept=%d seconds=%.1f", member.name, *figures)
        elif isinstance(message, Fault) and member.state is State.LOADING:
            logger.error("cannot load %s: %s", member.name, message.text)
            stay.stream.distrust()
            self._roster.lose(member, f"could not load: {message.text}")
        elif isinstance(message, BeaconAck):
            stay.has_heard = True
            self._roster.set_ready(member, message.epoch)
            if self._roster.ready:
                self._has_been_ready = True
                logger.info("ready workers=%d epoch=%d", len(self._roster.members), self._roster.epoch)

    def progress(self) -> list[Progress]:
        """Every worker's progress, in node order."""
        return [self._progress_of(member) for member in self._roster.members]

    def _progress_of(self, member: Member) -> Progress:
        row, stay = Progress(member.name, member.state, self._reason(member)), self._stays.get(member.node)
        if stay is None:
            return row
        stream, end = stay.stream, stay.loaded_at or time.monotonic()
        row = replace(
            row,
            sent_bytes=stream.sent_bytes,
            kept_bytes=stream.kept_bytes,
            total_bytes=stream.total_bytes,
            seconds=end - stay.joined_at,
        )
        if stay.preparing is None or member.state is not State.LOADING:
            return row
        return replace(row, doing=stay.preparing.doing, percent=min(100, stay.preparing.percent))

    def missing_sentence(self) -> str:
        """The workers that are not ready, and why; not those that only wait for others."""
        rows = [row for row in self.progress() if row.state is not State.READY]
        awaited = [row for row in rows if row.reason or row.state is not State.LOADED]
        return "; ".join(
            f"{row.name} {row.reason}" if row.reason else f"{row.name} is {row.state.value}" for row in awaited or rows
        )

    def _reason(self, member: Member) -> str:
        if member.state is State.ABSENT:
            return member.lost_reason
        if self._is_deaf(member):
            port = self._endpoints.steps[0]
            return (
                f"has its weights but has heard nothing that the root publishes for {self._limits.ready_s:.0f} s "
                f"(limits.ready_s): can its computer reach {port} (root.ports.steps)?"
            )
        return ""

    def _is_deaf(self, member: Member) -> bool:
        """Whether a worker has heard no beacon for limits.ready_s. Later ones may meet a long stage."""
        waiting = member.state is State.LOADED and not self._stays[member.node].has_heard
        return waiting and time.monotonic() > self._all_loaded_at + self._limits.ready_s

    def _count_listening(self) -> None:
        """Restart the clocks of silent workers if the root itself did not listen for _NOT_LISTENING_S."""
        now = time.monotonic()
        if now - self._served_at > _NOT_LISTENING_S:
            for stay in self._stays.values():
                stay.heard_at = now
            self._all_loaded_at = math.inf
        self._served_at = now

    def probe_peers(self) -> None:
        """Ping every worker, since only sending shows a broken connection; drop workers that take too long to load."""
        now = self._probed_at = time.monotonic()
        for member in self._roster.members:
            if member.state is State.ABSENT:
                continue
            names = self._names_of(member.key)
            if names is not None and member.name not in names:
                self._drop(member, f"has lost its key: it is not that of {member.name} any more")
                continue
            if not self._send(member, Ping(self._roster.epoch, 0, 0)) or member.state is not State.LOADING:
                continue
            stay = self._stays[member.node]
            if now > stay.joined_at + self._limits.load_s:
                self._drop(member, f"did not load within {self._limits.load_s:.0f} s")
            elif now > stay.heard_at + _SILENT_S:
                self._drop(
                    member, f"said nothing for {_SILENT_S:.0f} s while it loaded; it, or its computer, is frozen"
                )

    def _welcome(self, identity: bytes, join: Join) -> None:
        if time.monotonic() > self._probed_at + _PROBE_S:  # a flood of joins must not fill the queues of the workers
            self.probe_peers()  # frees the places of workers that have died
        peers = self._link.peers
        key = peers.key(identity) or self._roster.key_of(join)
        place = self._roster.join(identity, join, peers.address(identity), self.room.too_small, self._names_of(key))
        if isinstance(place, Refuse):
            self._refusals.warning("refused a worker pid=%d: %s", join.pid, place.reason)
            self._reply_unknown(identity, place)
            return
        place.key = key
        if peers.key(identity):
            self._link.meter.sealed.add(place.name)
        else:
            self._link.meter.sealed.discard(place.name)
        steps, replies = self._endpoints.for_worker(join.host == host_id())
        logger.info("joined %s node=%d pid=%d over=%s", place.name, place.node, place.pid, replies)
        now = time.monotonic()
        self._stays[place.node] = _Stay(self._new_stream(place.node), now, now)
        if self._send(place, Welcome(place.node, place.name, steps, replies)):
            self._send(place, msgspec.structs.replace(self._plan, pages=self.room.give_pages(place, join)))

    def _names_of(self, key: str) -> frozenset[str] | None:
        """The names that a worker's key may use; None without one (an open bus, a program of the root's own user)."""
        security = self._link.peers.security
        return security.ring.admits(key, security.role) if key and security is not None else None

    def _reply_unknown(self, identity: bytes, message: Message) -> None:
        with suppress(PeerGone):
            self._link.send(identity, "", message)

    def _send_weights(self, member: Member) -> None:
        """Send offers of slices and the pieces that the worker needs, as far as its credit goes."""
        while True:
            try:
                message = self._stays[member.node].stream.next_message()
            except Exception as error:
                if not self._has_been_ready:
                    raise
                logger.exception("cannot read the weights of %s", member.name)
                self._drop(member, f"cannot be given its weights: {type(error).__name__}: {error}")
                return  # a root that has been ready continues: the file may become readable again
            if message is None:
                return
            try:
                self._link.send(member.identity, member.name, *message)
            except PeerGone:  # its last message may still be unread; the next ping finds that it has gone
                return

    def _held_bytes(self, node: int) -> int:
        """Bytes of weights that a node has in its memory at present, as far as the root knows."""
        stay = self._stays[node]
        if stay.loaded_at is not None:
            return stay.stream.total_bytes
        return stay.preparing.held_bytes if stay.preparing is not None else stay.stream.sent_bytes

    def _send(self, member: Member, message: Message, arrays: list[Frame] | None = None) -> bool:
        try:
            self._link.send(member.identity, member.name, message, arrays or [])
        except PeerGone:
            fault = self._link.last_word(member.identity) if member.state is State.LOADING else None
            if fault is not None:
                self.handle(member.identity, fault)
                return False
            logger.warning("lost %s: its connection broke", member.name)
            self._roster.lose(member, "was lost: its connection broke, or it gave no sign of life for 2 s")
            return False
        return True

    def _drop(self, member: Member, reason: str) -> None:
        """Drop a worker whose connection still works. It gets a Bye, and may join again."""
        logger.warning("gave up %s: it %s", member.name, reason)
        if self._send(member, Bye(True, reason)):
            self._roster.lose(member, reason)

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_beacon:
            return
        self._next_beacon = now + (_IDLE_BEACON_S if self._roster.ready else _FORMING_BEACON_S)
        self.probe_peers()
        for member in self._roster.members:
            if member.state is State.LOADING:
                self._send_weights(member)
        if not self._roster.loaded or self._roster.ready:
            self._all_loaded_at = math.inf
        elif self._all_loaded_at == math.inf:
            self._all_loaded_at = now
        if self._roster.loaded:
            self._link.publish(Beacon(self._roster.epoch))
