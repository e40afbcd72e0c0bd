"""The memory of the workers' computers: whether a node has room there, and for how many pages of the KV cache."""

from __future__ import annotations

from collections.abc import Callable

from dllama_zmq.bus.links import host_id
from dllama_zmq.bus.messages import Join
from dllama_zmq.bus.roster import Member, Roster, State
from dllama_zmq.reporting import human_bytes
from dllama_zmq.sharding import KVBudget, node_memory


class Room:
    """What each worker that joins has room for, by what it says of its computer.

    own_pages: pages of the KV cache that the root's own computer has room for. memory: bytes that a node's part of the
    model needs; where None, no worker is too small. held_bytes: the weights that a node has in its memory by now.
    """

    def __init__(
        self,
        roster: Roster,
        budget: KVBudget,
        own_pages: int,
        memory: Callable[[int], int] | None,
        held_bytes: Callable[[int], int],
    ) -> None:
        self._roster = roster
        self._budget = budget
        self._own_pages = own_pages
        self._memory = memory
        self._held_bytes = held_bytes
        self._pages: dict[int, int] = {}  # that a node was told to make room for

    @property
    def n_pages(self) -> int:
        """Pages of the KV cache that every node has room for; a node that has not joined yet counts as the root's."""
        return min([self._own_pages, *self._pages.values()])

    def give_pages(self, place: Member, join: Join) -> int:
        """Pages of the KV cache that the worker's computer has room for, from now on those of its place.

        What other nodes there hold of the model counts as free, for room for it is counted; not what they have in their
        caches by now, so where one of several joins again there may be fewer pages than before.
        """
        self._pages[place.node] = pages = self._pages_for(place, join)
        return pages

    def _pages_for(self, place: Member, join: Join) -> int:
        if (
            place.name in self._roster.reserved or join.free_bytes is None
        ):  # the root's own computer is counted by the root
            return self._own_pages
        there = [
            member.node
            for member in self._roster.members
            if member.state is not State.ABSENT and member.joined is not None and member.joined.host == join.host
        ]
        held = {node: self._held_bytes(node) for node in there}
        if join.host == host_id():
            held[0] = self._budget.plan.weight_bytes(0)
        programs = sum(node_memory(self._budget.plan, node, 0).program for node in held)
        return min(self._own_pages, self._budget.pages(list(held), join.free_bytes + sum(held.values()) + programs))

    def too_small(self, place: Member, join: Join) -> str:
        """Why the worker's computer has no room for the node at `place`; empty where it has."""
        if self._memory is None or join.free_bytes is None:
            return ""
        to_come = 0  # what others on the same computer have been promised and do not hold yet
        for other in self._roster.members:
            same_host = other.joined is not None and other.joined.host == join.host
            if other is not place and other.state is State.LOADING and same_host:
                to_come += max(0, self._memory(other.node) - self._held_bytes(other.node))
        needed, free = self._memory(place.node), max(0, join.free_bytes - to_come)
        if needed <= free:
            return ""
        return (
            f"{join.host_name or 'its computer'} has {human_bytes(free)} of memory free, and this node needs "
            f"{human_bytes(needed)}; free some, use more nodes or a smaller max_seq_len, or `dllama-zmq up --force`"
        )
