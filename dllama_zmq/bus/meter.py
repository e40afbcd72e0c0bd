"""Count messages, payload bytes and wire bytes on the bus by node, direction, kind and phase.

Payload is array frames. Wire is payload, headers and ZMTP framing (rfc.zeromq.org/spec/23): 2 bytes before a frame of
up to 255 bytes, 9 before a longer one. Where a node's connection has CURVE, each frame has 33 bytes more. Handshakes,
ZMTP's heartbeats and what TCP/IP adds beneath are not counted (PROTOCOL.md §3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct

from dllama_zmq.bus.messages import Frame
from dllama_zmq.bus.security import SEAL_BYTES

Direction = Literal["sent", "received"]
Phase = Literal["idle", "prompt", "mixed", "prediction", "void"]


class Tally(Struct):
    """One row of the meter."""

    node: str
    direction: Direction
    kind: str
    phase: Phase
    messages: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0
    sealed: bool = False

    def add_array(self, header_bytes: int, array_bytes: int) -> None:
        """Count a message of a header and one array."""
        self.add(array_bytes, frame_bytes(header_bytes, self.sealed) + frame_bytes(array_bytes, self.sealed))

    def add(self, payload_bytes: int, wire_bytes: int) -> None:
        """Count a message."""
        self.messages += 1
        self.payload_bytes += payload_bytes
        self.wire_bytes += wire_bytes


_Key: TypeAlias = tuple[str, Direction, str, Phase]


def wire_bytes(frames: Sequence[Frame], sealed: bool = False) -> int:
    """Bytes of a multipart message with ZMTP framing; sealed: over a connection with CURVE."""
    return sum(frame_bytes(len(frame), sealed) for frame in frames)


def frame_bytes(size: int, sealed: bool = False) -> int:
    """Bytes of a frame of `size` bytes with ZMTP framing; sealed: over a connection with CURVE."""
    size += SEAL_BYTES if sealed else 0
    return size + (2 if size < 256 else 9)


class Meter:
    """The counts of one node. phase: what the traffic is for; void: failed steps."""

    def __init__(self) -> None:
        self.phase: Phase = "idle"
        self.sealed: set[str] = set()
        """The nodes whose connections have CURVE, now."""
        self._tallies: dict[_Key, Tally] = {}

    def count(self, nodes: Iterable[str], direction: Direction, kind: str, frames: Sequence[Frame]) -> None:
        """Count a message to (or from) each of `nodes`."""
        payload = sum(len(frame) for frame in frames[1:])
        for node in nodes:
            tally = self.tally(node, direction, kind)
            tally.add(payload, wire_bytes(frames, tally.sealed))

    def tally(self, node: str, direction: Direction, kind: str) -> Tally:
        """The row of the present phase for such messages. A caller that counts many of them keeps it."""
        return self._tally((node, direction, kind, self.phase))

    def snapshot(self) -> dict[_Key, tuple[int, int, int]]:
        """The present counts of the phase, for `move_since`."""
        tallies = self._tallies.items()
        return {key: (t.messages, t.payload_bytes, t.wire_bytes) for key, t in tallies if key[3] == self.phase}

    def move_since(self, before: dict[_Key, tuple[int, int, int]], phase: Phase) -> None:
        """Move what the present phase has counted since `before` to `phase`."""
        for key, tally in list(self._tallies.items()):
            if key[3] != self.phase:
                continue
            messages, payload, wire = before.get(key, (0, 0, 0))
            other = self._tally((key[0], key[1], key[2], phase))
            other.messages += tally.messages - messages
            other.payload_bytes += tally.payload_bytes - payload
            other.wire_bytes += tally.wire_bytes - wire
            tally.messages, tally.payload_bytes, tally.wire_bytes = messages, payload, wire

    def tallies(self) -> list[Tally]:
        """All rows that are not empty, in the order of their first message."""
        return [tally for tally in self._tallies.values() if tally.messages]

    def payload(self, direction: Direction) -> int:
        """Payload bytes so far, all nodes, kinds and phases together."""
        return sum(tally.payload_bytes for tally in self._tallies.values() if tally.direction == direction)

    def _tally(self, key: _Key) -> Tally:
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(*key)
        tally.sealed = key[0] in self.sealed
        return tally
