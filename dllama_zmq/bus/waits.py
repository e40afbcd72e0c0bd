"""The root's waits for its workers. Pure: knows no clock and no socket, and not what clients are told of waits."""

from __future__ import annotations

from msgspec import Struct

_MESSAGE_S = 0.2e-3
"""A message on a wired network, in and out of both processes: nobody's fault."""
_BYTES_PER_S = 1.25e8
"""And its bytes: gigabit Ethernet."""


class Wait(Struct):
    """The root's waits for one worker in one step: seconds in all, and what messages of that size usually take."""

    seconds: float = 0.0
    usual_s: float = 0.0

    def add(self, seconds: float, n_bytes: int) -> None:
        """Add a wait, which messages of `n_bytes` in all ended."""
        self.seconds += seconds
        self.usual_s += _MESSAGE_S + n_bytes / _BYTES_PER_S
