"""Seconds of the last steps, so that a node that became slow shows soon and a recovered one no longer does. Pure."""

from __future__ import annotations

from msgspec import Struct, field

from dllama_zmq.bus.client_messages import NodeTimes, PhaseTimes
from dllama_zmq.bus.slowest import slowest

RECENT_S = 10.0
"""The figures are those of the last 10 s of steps at least, and of the last 20 s at most."""
_MIN_STEPS = 20
"""The figures cover at least 20 steps: fewer say little."""


class _Steps(Struct):
    """Sums over some steps."""

    steps: int = 0
    tokens: int = 0
    wall_s: float = 0.0
    squares: float = 0.0
    nodes: dict[str, NodeTimes] = field(default_factory=dict)

    def add(self, other: _Steps) -> None:
        """Add other steps. Keeps no reference to them."""
        self.steps += other.steps
        self.tokens += other.tokens
        self.wall_s += other.wall_s
        self.squares += other.squares
        for name, times in other.nodes.items():
            self.nodes.setdefault(name, NodeTimes()).add(times)


class Recent:
    """The last steps of one phase. Time between steps does not count: it says nothing about a node.

    Steps are summed up in two parts, the present one and the one before it. When the present one has `span_s` seconds,
    the older one is dropped and a new one begins.
    """

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._before, self._now = _Steps(), _Steps()

    def add(self, n_tokens: int, wall_s: float, nodes: dict[str, NodeTimes]) -> None:
        """One step is done."""
        if self._now.wall_s >= self._span_s and self._now.steps >= _MIN_STEPS:
            self._before, self._now = self._now, _Steps()
        squares = sum(times.waited_for_s * times.waited_for_s for times in nodes.values())
        self._now.add(_Steps(1, n_tokens, wall_s, squares, nodes))

    def times(self) -> PhaseTimes:
        """Both parts together."""
        both = _Steps()
        both.add(self._before)
        both.add(self._now)
        waited_for_s = {name: times.waited_for_s for name, times in both.nodes.items()}
        name, share = slowest(waited_for_s, both.squares, both.wall_s, len(both.nodes)) or ("", 0.0)
        return PhaseTimes(both.steps, both.tokens, both.wall_s, name, share, both.nodes)
