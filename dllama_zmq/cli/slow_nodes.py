"""Sentences about the node that the others wait for."""

from __future__ import annotations

from dllama_zmq.bus.client_messages import PhaseTimes, Status
from dllama_zmq.bus.slowest import MIN_GAIN, MIN_STEPS

_PAUSED = "paused: its program did not run (other programs, little memory, a stop)"
_MESSAGES = "messages: they came late (its network, or it was paused while it waited)"
_DOES = {
    "computing": "computes longer than the others",
    "paused": "waits for a core",
    "messages": "sends late",
}
_OVERSUBSCRIBED = "This computer has fewer cores than threads: chance decides which node is last."


def slowness(found: Status) -> list[str]:
    """For each phase in which the others wait for one node: the node, the wait per token, and the reasons."""
    lines, several = [], len(found.nodes) > 1
    for phase, times in found.recent.items():
        if times.slowest:
            lines += _slowest(phase, times, found)
        elif several and not found.oversubscribed:
            lines += _network(phase, times)
    if lines:
        return [*lines, _PAUSED, _MESSAGES]
    return [_OVERSUBSCRIBED] if found.oversubscribed and several and found.recent else []


def legend(oversubscribed: bool) -> list[str]:
    """The legend of the table of waiting."""
    words = ["others wait s: for this node, beyond what a wired network takes; of these", _PAUSED, _MESSAGES]
    return [*words, "the rest: it computed longer", *([_OVERSUBSCRIBED] if oversubscribed else [])]


def _slowest(phase: str, times: PhaseTimes, found: Status) -> list[str]:
    node = times.nodes[times.slowest]
    of_token = 1e3 / max(1, times.tokens)
    computing_s = max(0.0, node.waited_for_s - node.paused_s - node.messages_s)
    reasons = ((computing_s, "computing"), (node.paused_s, "paused"), (node.messages_s, "messages"))
    _, most = max(reasons)
    what = f"{_DOES[most]}{_round_trips(times.slowest, found) if most == 'messages' else ''}"
    return [
        f"slowest: {times.slowest} {what}, in the last {times.steps} steps of {phase} ({times.wall_s:.0f} s)",
        f"  the others wait {node.waited_for_s * of_token:.1f} ms a token for it: "
        + ", ".join(f"{seconds * of_token:.1f} {reason}" for seconds, reason in reasons),
    ]


def _round_trips(slowest: str, found: Status) -> str:
    """The round trip to the slowest node and the longest to the others, if the kernels know both."""
    trips_s = {node.name: node.round_trip_s for node in found.nodes if node.round_trip_s is not None}
    others_s = [trip_s for name, trip_s in trips_s.items() if name != slowest]
    if slowest not in trips_s or not others_s:
        return ""
    return f" (round trip {trips_s[slowest] * 1e3:.1f} ms, of the others at most {max(others_s) * 1e3:.1f} ms)"


def _network(phase: str, times: PhaseTimes) -> list[str]:
    """The sentence for a phase in which no node is slower than the others, but all wait for messages."""
    messages_s = max(node.messages_s for node in times.nodes.values())
    if messages_s <= MIN_GAIN * times.wall_s or times.steps < MIN_STEPS:
        return []
    of_token = messages_s / max(1, times.tokens) * 1e3
    return [
        f"no node is slower than the others in the last {times.steps} steps of {phase}; "
        f"messages take {of_token:.1f} ms a token"
    ]
