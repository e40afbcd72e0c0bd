"""What a step took, as the root saw it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds and payload bytes of a step, as the root saw it; waiting is for partial sums and candidates.

    waited_for_s: for each node that came last at some stage, the seconds that it made the others wait.
    """

    wall_s: float
    wait_s: float
    sent_bytes: int
    received_bytes: int
    waited_for_s: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Timing) -> Timing:
        return Timing(
            self.wall_s + other.wall_s,
            self.wait_s + other.wait_s,
            self.sent_bytes + other.sent_bytes,
            self.received_bytes + other.received_bytes,
            _sums(self.waited_for_s, other.waited_for_s),
        )

    def __sub__(self, other: Timing) -> Timing:
        return Timing(
            self.wall_s - other.wall_s,
            self.wait_s - other.wait_s,
            self.sent_bytes - other.sent_bytes,
            self.received_bytes - other.received_bytes,
            _sums(self.waited_for_s, {name: -seconds for name, seconds in other.waited_for_s.items()}),
        )


def _sums(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in one | other}
