"""Sums of the figures of steps, for clients. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dllama_zmq.bus.client_messages import NO_STEPS, StepStats
from dllama_zmq.bus.slowest import Slowest, slowest


@dataclass(slots=True)
class StepSums:
    """Steps together: their tokens and figures. squares: see `slowest`."""

    tokens: int = 0
    figures: StepStats = NO_STEPS
    squares: float = 0.0

    def add(self, n_tokens: int, figures: StepStats) -> None:
        """One step of `n_tokens` tokens more."""
        self.tokens += n_tokens
        self.figures += figures
        self.squares += sum(seconds * seconds for seconds in figures.waited_for_s.values())

    def __add__(self, other: StepSums) -> StepSums:
        return StepSums(self.tokens + other.tokens, self.figures + other.figures, self.squares + other.squares)

    def tokens_per_s(self) -> float:
        """0 if nothing was measured."""
        return self.tokens / self.figures.wall_s if self.figures.wall_s else 0.0

    def slowest(self, n_nodes: int) -> Slowest | None:
        """The node that the others of `n_nodes` waited for; None if no node stands out."""
        return slowest(self.figures.waited_for_s, self.squares, self.figures.wall_s, n_nodes)
