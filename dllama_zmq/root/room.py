"""Decide whether a worker's computer has memory for a node, and for how many pages of the KV cache."""

from __future__ import annotations

from collections.abc import Callable

from dllama_zmq.bus.links import host_id
from dllama_zmq.bus.messages import Join
from dllama_zmq.bus.roster import Member, Roster, State
from dllama_zmq.reporting import human_bytes
from dllama_zmq.sharding import KVBudget, node_memory


class Room:
    """Decides by the memory that a joining worker reports of its computer.

    own_pages: pages of the KV cache that the root's own computer has room for. memory: bytes that a node's part of the
    model needs; None: no worker is too small. held_bytes: bytes of weights that a node has in its memory at present.
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
        self._pages: dict[int, int] = {}  # by node, what its Plan message said

    @property
    def n_pages(self) -> int:
        """Pages of the KV cache that every node has room for; a node that has not joined yet counts as the root's."""
        return min([self._own_pages, *self._pages.values()])

    def give_pages(self, place: Member, join: Join) -> int:
        """Choose how many pages of the KV cache the worker gets, and note it for its place.

        Weights that other nodes of the same computer hold count as free, because their needs are subtracted in full.
        The filled part of their caches does not, so a worker that joins again may get fewer pages than before.
        """
        pages = self._own_pages  # the root counts the memory of its own computer
        if place.name not in self._roster.reserved and join.free_bytes is not None:
            held = {member.node: self._held_bytes(member.node) for member in self._there(join)}
            if join.host == host_id():
                held[0] = self._budget.plan.weight_bytes(0)
            programs = sum(node_memory(self._budget.plan, node, 0).program for node in held)
            free_bytes = join.free_bytes + sum(held.values()) + programs
            pages = min(pages, self._budget.pages(list(held), free_bytes))
        self._pages[place.node] = pages
        return pages

    def too_small(self, place: Member, join: Join) -> str:
        """Why the worker's computer has too little memory for the node at `place`; empty if it has enough."""
        if self._memory is None or join.free_bytes is None:
            return ""
        to_come = 0  # what other nodes of the same computer still need
        for other in self._there(join):
            if other is not place and other.state is State.LOADING:
                to_come += max(0, self._memory(other.node) - self._held_bytes(other.node))
        needed, free = self._memory(place.node), max(0, join.free_bytes - to_come)
        if needed <= free:
            return ""
        return (
            f"{join.host_name or 'its computer'} has {human_bytes(free)} of memory free, and this node needs "
            f"{human_bytes(needed)}; free some, use more nodes or a smaller max_seq_len, or `dllama-zmq up --force`"
        )

    def _there(self, join: Join) -> list[Member]:
        """The workers that are on the same computer now."""
        present = [member for member in self._roster.members if member.state is not State.ABSENT]
        return [member for member in present if member.joined is not None and member.joined.host == join.host]
