"""Which node the others wait for. Pure: knows seconds by node, no clock and no socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dllama_zmq.bus.client_messages import NodeStatus, Status
from dllama_zmq.bus.session import ROOT

MIN_SHARE_OF_TIME = 0.1
"""Waiting that takes less of the steps' time than this is nobody's fault: a message needs its time on any link."""
MIN_LEAD = 1.5
"""One node is named if it causes this many times the waiting of an average node: equal nodes are last equally often."""


@dataclass(frozen=True, slots=True)
class Slowest:
    """The node that the others wait for, and its share of all waiting, 0 to 1."""

    name: str
    share: float


def slowest(waited_for_s: Mapping[str, float], wall_s: float, n_nodes: int) -> Slowest | None:
    """The node that causes most of the waiting, or None where no node stands out.

    waited_for_s: seconds that each node made the others wait, nodes without any left out. wall_s: of all steps.
    """
    total_s = sum(waited_for_s.values())
    if total_s <= MIN_SHARE_OF_TIME * wall_s:
        return None
    name = max(waited_for_s, key=waited_for_s.__getitem__)
    share = waited_for_s[name] / total_s
    return Slowest(name, share) if share * n_nodes >= MIN_LEAD else None


def waited_for_root_s(compute_s: Mapping[str, float]) -> float:
    """Seconds of a step that the workers waited for the root: what it computes beyond the slowest of them."""
    workers_s = [seconds for name, seconds in compute_s.items() if name != ROOT]
    return max(0.0, compute_s[ROOT] - max(workers_s)) if workers_s else 0.0


def slowest_of(status: Status, phase: str) -> Slowest | None:
    """The node of a running cluster that the others waited for in the steps of `phase`."""
    root = status.nodes[0]
    wall_s = root.compute_s.get(phase, 0.0) + root.wait_s.get(phase, 0.0)
    return slowest({node.name: node.waited_for_s.get(phase, 0.0) for node in status.nodes}, wall_s, len(status.nodes))


def excess_ms_per_token(status: Status, node: NodeStatus, phase: str) -> tuple[float, float]:
    """Milliseconds per token that the others waited for `node`: for its computing, and for its link."""
    n_tokens = max(1, status.tokens.get(phase, 0))
    waited_s, link_s = node.waited_for_s.get(phase, 0.0), node.link_s.get(phase, 0.0)
    return (waited_s - link_s) / n_tokens * 1e3, link_s / n_tokens * 1e3
