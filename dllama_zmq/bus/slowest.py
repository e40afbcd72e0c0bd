"""Sums of steps, and the node that the others wait for in them, and why. Pure: knows no clock and no socket."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from dllama_zmq.bus.client_messages import NO_STEPS, NodeTimes, StepStats
from dllama_zmq.bus.roster import ROOT
from dllama_zmq.bus.waits import Wait

MIN_GAIN = 0.1
"""A node is named if steps would be shorter by this share were it like the others: less is not worth looking for."""
MIN_DEVIATIONS = 3.0
"""And if chance seldom does it: equal nodes differ that much in 1 of 700 windows, and one pause alone never does."""
MIN_STEPS = round(MIN_DEVIATIONS**2)
"""Fewest steps in which a node can be named: see `slowest`."""


class Slowest(NamedTuple):
    """The node that the others wait for, and its share of all waiting, 0 to 1."""

    name: str
    share: float


def slowest(waited_for_s: Mapping[str, float], squares: float, wall_s: float, n_nodes: int) -> Slowest | None:
    """The node that causes more waiting than the others; None if no node stands out.

    waited_for_s: seconds that each node made the others wait, nodes without any left out. squares: of these seconds in
    each step, the sum over steps and nodes. wall_s: of all steps.

    Where each step is as likely to wait for one node as for another, the excess of one has a variance of at most
    `squares`. Where one node is `w` late in each of n steps, its excess is n w and the root of `squares` is sqrt(n) w:
    it takes 9 steps, and so does a node that is stopped now and then: 9 stops.
    """
    if n_nodes < 2 or not waited_for_s:
        return None
    total_s = sum(waited_for_s.values())
    name = max(waited_for_s, key=waited_for_s.__getitem__)
    excess_s = waited_for_s[name] - (total_s - waited_for_s[name]) / (n_nodes - 1)
    if excess_s <= MIN_GAIN * wall_s or excess_s < MIN_DEVIATIONS * math.sqrt(squares) * (1 - 1e-9):
        return None
    return Slowest(name, waited_for_s[name] / total_s)


class StepSums(Struct):
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


class Spent(NamedTuple):
    """One node's seconds in one step: computing, the part of that without a core to run on, and waiting."""

    compute_s: float
    paused_s: float
    wait_s: float


def times_of_step(spent: Mapping[str, Spent], waits: Mapping[str, Wait]) -> dict[str, NodeTimes]:
    """The seconds of each node in one step, and how long the others waited for it. waits: the root's, by worker.

    A worker that computes longer than the root makes it wait for the difference. The rest of the root's wait, beyond a
    message's usual time, is due to the messages. Workers wait for a root that computes longer than each of them.

    Two nodes send each other their parts at the same time, so each waits for the other's messages. A slow link makes
    both wait alike, and neither can be blamed: the worker's wait counts for the root as the root's does for the worker.
    """
    root = spent[ROOT]
    workers = {name: one for name, one in spent.items() if name != ROOT}
    times = {ROOT: _times(root, max(0.0, root.compute_s - max(one.compute_s for one in workers.values())), 0.0)}
    for name, one in workers.items():
        wait = waits[name]
        longer_s = min(wait.seconds, max(0.0, one.compute_s - root.compute_s))
        times[name] = _times(one, longer_s, max(0.0, wait.seconds - longer_s - wait.usual_s))
        if len(workers) == 1:
            longer_s = min(one.wait_s, max(0.0, root.compute_s - one.compute_s))
            times[ROOT] = _times(root, longer_s, max(0.0, one.wait_s - longer_s - wait.usual_s))
    return times


def _times(spent: Spent, longer_s: float, messages_s: float) -> NodeTimes:
    paused_s = min(longer_s, spent.paused_s)
    return NodeTimes(spent.compute_s, spent.wait_s, longer_s + messages_s, paused_s, messages_s)
