"""Measure the link to each worker between two steps: round trip, bytes/s in both directions, clock difference."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable

from dllama_zmq.bus.links import RootLink
from dllama_zmq.bus.messages import MAX_PROBE_BYTES, ArrayHead, Message, Probe, Probed
from dllama_zmq.bus.peers import PeerGone
from dllama_zmq.bus.roster import Member, State
from dllama_zmq.bus.text_messages import LinkStatus
from dllama_zmq.root.root import Root

_WARM_UP, _ROUND_TRIPS = 2, 20
_FIRST_BYTES, _FACTOR = 64 << 10, 4
_LONG_ENOUGH_S = 0.1
"""Of the transfer that counts. The next one would take _FACTOR times as long: within libzmq's heartbeats."""
_LINK_S = 3.0
"""For all probes of a link; steps wait meanwhile."""
_numbers = itertools.count(1)  # counted over the root's life, so that a late answer does not answer a later probe


class LinkSpeeds:
    """Measures one link at each call of `next`, so that steps can run between two links."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._left: deque[Member] = deque()
        self._found: list[LinkStatus] = []
        self.unfinished = False

    def begin(self) -> None:
        """Measure all links, from the first on."""
        self._left, self._found = deque(self._root.roster.members), []
        self.unfinished = True

    def next(self) -> list[LinkStatus] | None:
        """Measure the next link; all of them after the last. Takes 3 s at most."""
        root = self._root
        if self._left and root.link is not None and root.membership is not None:
            root.set_phase("idle")
            self._found.append(measure_link(root.link, self._left.popleft(), root.membership.handle))
        if self._left:
            return None
        self.unfinished = False
        return self._found


def measure_link(link: RootLink, member: Member, handle: Callable[[bytes, Message], None]) -> LinkStatus:
    """Measure the link to one worker, as far as it answers. handle: receives other messages that arrive meanwhile."""
    if member.state not in (State.LOADED, State.READY):
        return LinkStatus(member.name, note=f"it is {member.state.value}")
    probes = _Probes(link, member, handle)
    trips: list[tuple[float, int]] = []
    rates: list[float | None] = [None, None]
    note = ""
    try:
        for _ in range(_WARM_UP):
            probes.ask()
        while len(trips) < _ROUND_TRIPS:
            trips.append(probes.ask())
        for direction in (0, 1):
            n_bytes, took_s = _FIRST_BYTES, 0.0
            while took_s < _LONG_ENOUGH_S and n_bytes <= MAX_PROBE_BYTES:
                took_s = probes.ask(*((n_bytes, 0), (0, n_bytes))[direction])[0] - _median_s(trips)
                rates[direction] = n_bytes / max(took_s, 1e-6)
                n_bytes *= _FACTOR
    except TimeoutError:
        note = f"it did not answer everything within {_LINK_S:.0f} s"
    except PeerGone:
        note = "its connection broke"
    if not trips:
        return LinkStatus(member.name, note=note)
    return LinkStatus(
        member.name,
        round_trip_s=_median_s(trips),
        to_bytes_per_s=rates[0],
        from_bytes_per_s=rates[1],
        clock_s=min(trips)[1] / 1e6,
        note=note,
    )


def _median_s(trips: list[tuple[float, int]]) -> float:
    return statistics.median([took_s for took_s, _ in trips])


class _Probes:
    """Probes to one worker, one after the other."""

    def __init__(self, link: RootLink, member: Member, handle: Callable[[bytes, Message], None]) -> None:
        self._link, self._name, self._identity = link, member.name, member.identity
        self._handle = handle
        self._until = time.monotonic() + _LINK_S

    def ask(self, n_bytes: int = 0, answer_bytes: int = 0) -> tuple[float, int]:
        """Seconds until the answer, and the us by which the worker's clock is ahead. Raises TimeoutError, PeerGone."""
        number = next(_numbers)
        heads = [ArrayHead("u8", 1, n_bytes)] if n_bytes else []
        clock_us, start = time.time_ns() // 1000, time.perf_counter()
        probe = Probe(number, answer_bytes, heads)
        self._link.send(self._identity, self._name, probe, [bytes(head.nbytes) for head in heads])
        while True:
            arrived = self._link.receive(self._until)
            if arrived is None:
                raise TimeoutError
            identity, message, _ = arrived
            if identity != self._identity or not isinstance(message, Probed):
                self._handle(identity, message)
            elif message.number == number:
                took_s = time.perf_counter() - start
                return took_s, message.clock_us - clock_us - round(took_s * 5e5)
