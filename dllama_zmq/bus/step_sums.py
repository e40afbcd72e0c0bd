"""Sums of what steps took, as a client is told of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from dllama_zmq.bus.client_messages import Figures
from dllama_zmq.bus.slowest import Slowest, slowest


@dataclass(slots=True)
class StepSums:
    """Sums over steps: tokens, seconds, payload bytes, and by node the seconds that the others waited for it."""

    tokens: int = 0
    wall_s: float = 0.0
    wait_s: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    waited_for_s: dict[str, float] = field(default_factory=dict)

    def add(self, n_tokens: int, figures: Figures | StepSums) -> None:
        """One step of `n_tokens` tokens more, or the sums of several."""
        self.tokens += n_tokens
        self.wall_s += figures.wall_s
        self.wait_s += figures.wait_s
        self.sent_bytes += figures.sent_bytes
        self.received_bytes += figures.received_bytes
        for name, seconds in figures.waited_for_s.items():
            self.waited_for_s[name] = self.waited_for_s.get(name, 0.0) + seconds

    def tokens_per_s(self) -> float:
        """0 where nothing was measured."""
        return self.tokens / self.wall_s if self.wall_s else 0.0

    def slowest(self, n_nodes: int) -> Slowest | None:
        """The node that the others of `n_nodes` waited for; None where no node stands out."""
        return slowest(self.waited_for_s, self.wall_s, n_nodes)
