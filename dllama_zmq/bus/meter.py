"""Counts what crosses the bus: messages, payload bytes and wire bytes by node, direction, kind and phase.

Payload is array frames. Wire is payload, headers and ZMTP framing (rfc.zeromq.org/spec/23): 2 bytes before a frame of
up to 255 bytes, 9 before a longer one. What TCP/IP adds beneath is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dllama_zmq.bus.messages import Frame

Direction = Literal["sent", "received"]
Phase = Literal["idle", "prompt", "prediction"]


@dataclass(slots=True)
class Tally:
    """One row of the meter."""

    node: str
    direction: Direction
    kind: str
    phase: Phase
    messages: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0


def wire_bytes(frames: Sequence[Frame]) -> int:
    """Bytes of a multipart message with ZMTP framing."""
    total = 0
    for frame in frames:
        size = len(frame)
        total += size + (2 if size < 256 else 9)
    return total


class Meter:
    """One node's counts, as that node sees them. `phase` says what the traffic is for."""

    def __init__(self) -> None:
        self.phase: Phase = "idle"
        self._tallies: dict[tuple[str, Direction, str, Phase], Tally] = {}

    def count(self, nodes: Iterable[str], direction: Direction, kind: str, frames: Sequence[Frame]) -> None:
        """One message to (or from) each of `nodes`."""
        wire = wire_bytes(frames)
        payload = sum(len(frame) for frame in frames[1:])
        for node in nodes:
            key = (node, direction, kind, self.phase)
            tally = self._tallies.get(key)
            if tally is None:
                tally = self._tallies[key] = Tally(*key)
            tally.messages += 1
            tally.payload_bytes += payload
            tally.wire_bytes += wire

    def tallies(self) -> list[Tally]:
        """Every row, in the order in which each first appeared."""
        return list(self._tallies.values())

    def payload(self, direction: Direction) -> int:
        """Payload bytes so far, all nodes, kinds and phases together."""
        return sum(tally.payload_bytes for tally in self._tallies.values() if tally.direction == direction)
