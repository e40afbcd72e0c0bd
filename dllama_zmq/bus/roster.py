"""The workers of the cluster and the state of each.

Pure: it is fed messages; it owns no socket, no clock and no weights.

    ABSENT ── Join ──► LOADING ── Loaded ──► LOADED ── BeaconAck(epoch) ──► READY
      ▲                                        ▲                          │
      └──────────── lost, or Join again ───────┴────── a new epoch ◄──────┘
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence

from msgspec import Struct, field

from dllama_zmq.bus.messages import Join, Refuse

ROOT = "root"
"""The name of node 0."""


class State(enum.Enum):
    """The state of a worker; the values are shown to people."""

    ABSENT = "absent"
    LOADING = "loading"
    LOADED = "loaded"
    READY = "ready"


class Member(Struct):
    """One place in the cluster. Node 0 is the root, so workers count from 1.

    addresses: IP addresses of the host that the place is for; empty: any. address: the IP address of the present
    worker. joined: the Join of the present or last worker. key: the public key that it came with, or "".
    """

    node: int
    name: str
    identity: bytes = b""
    state: State = State.ABSENT
    addresses: frozenset[str] = frozenset()
    address: str = ""
    joined: Join | None = None
    key: str = ""
    lost_reason: str = field(default="has not joined yet")

    @property
    def pid(self) -> int:
        """The process id of the worker; 0 if none has joined."""
        return self.joined.pid if self.joined is not None else 0


class Roster:
    """The workers of a cluster, and its epoch: a number that rises when messages of earlier steps become invalid."""

    def __init__(
        self,
        names: Sequence[str],
        first_epoch: int,
        reserved: Collection[str] = (),
        addresses: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        """`reserved` places are only for workers that ask for them by name. addresses: by name, see Member."""
        self.reserved = frozenset(reserved)
        self._processes: dict[str, int] = {}
        by_name = addresses or {}
        self.members = [
            Member(node, name, addresses=by_name.get(name, frozenset())) for node, name in enumerate(names, start=1)
        ]
        self.epoch = first_epoch

    @property
    def ready(self) -> bool:
        """Whether every worker has its weights and has heard the beacon of this epoch."""
        return all(member.state is State.READY for member in self.members)

    @property
    def loaded(self) -> bool:
        """Whether every worker has its weights."""
        return all(member.state in (State.LOADED, State.READY) for member in self.members)

    def find(self, identity: bytes) -> Member | None:
        """The member behind a ROUTER identity."""
        return next((m for m in self.members if m.identity == identity and m.state is not State.ABSENT), None)

    def key_of(self, join: Join) -> str:
        """The public key that the same process came with before; "" for none.

        A worker on the root's computer has no key where it stays, on ipc, but asks for its place over TCP.
        """
        came = ((m.joined.host, m.joined.pid, m.key) for m in self.members if m.joined is not None)
        return next((key for host, pid, key in came if (host, pid) == (join.host, join.pid)), "")

    def join(
        self,
        identity: bytes,
        join: Join,
        address: str = "",
        obstacle: Callable[[Member, Join], str] = lambda place, join: "",
        may_be: Collection[str] | None = None,
    ) -> Member | Refuse:
        """Give the worker a place, the named one if it names one; a Refuse if there is none.

        address: where it speaks from, as `Peers.address` has it. A reserved place is for this computer's processes, and
        for the one that was started for it; the kernel vouches for the numbers of those that come over ipc.

        A refusal of a taken name is not final: its holder may be dead without the root knowing yet.
        obstacle: why the worker cannot have that place, in words for people; empty if it can.
        may_be: the names that its key may use; None: it has no key, and may use any.
        """
        names = [member.name for member in self.members]
        if join.name and join.name not in names:
            return Refuse(
                f"no worker of this cluster is called {join.name!r}; its workers are {', '.join(names)}", retry=False
            )
        own = names if may_be is None else [name for name in names if name in may_be]
        if join.name not in ("", *own):
            with_it = f"with its key it may be {', '.join(own)}" if own else "its key is that of no worker"
            return Refuse(f"its key is not that of {join.name!r}; {with_it}", retry=False)
        place = self.find(identity) or next((m for m in self.members if m.name == join.name), None)
        if place is None:
            place = self._free_place(address, own)
        elif place.state is not State.ABSENT and place.identity != identity:
            return Refuse(f"{place.name} is already here (process {place.pid})", retry=True)
        if place is not None and not self._may_have(place, join.pid, address):
            return Refuse(f"{place.name} is started by the root itself, on its own computer", retry=False)
        if place is None:
            which = "of this cluster" if may_be is None else "that its key may have"
            return Refuse(f"all places {which} are taken: {', '.join(own)}", retry=may_be is None or bool(own))
        if reason := obstacle(place, join):
            place.lost_reason = f"is not there: {reason}"
            return Refuse(reason, retry=False)
        place.identity, place.joined, place.state = identity, join, State.LOADING
        place.address = address
        self.new_epoch()
        return place

    def _free_place(self, address: str, names: Collection[str]) -> Member | None:
        """One of `names` for a worker without a name: the place of its address, else one of no address, else any."""
        free = [m for m in self.members if m.state is State.ABSENT and m.name in names and m.name not in self.reserved]
        here = [m for m in free if address in m.addresses]
        return next(iter(here or [m for m in free if not m.addresses] or free), None)

    def _may_have(self, place: Member, pid: int, address: str) -> bool:
        if place.name not in self.reserved and place.name not in self._processes:
            return True
        here, _, of_kernel = address.rpartition(":")
        if address and not (here.startswith("localhost:") and of_kernel == str(pid)):
            return False
        return self._processes.get(place.name, pid) == pid

    def reserve(self, name: str, pid: int) -> None:
        """Reserve the place `name` for the process `pid`, which the root has started."""
        self._processes[name] = pid

    def has(self, name: str, pid: int | None = None) -> bool:
        """Whether the place `name` is taken, by the process `pid` if given."""
        return any(m.name == name and pid in (None, m.pid) and m.state is not State.ABSENT for m in self.members)

    def explain_absence(self, name: str, reason: str) -> None:
        """Set the reason why `name` is absent, if it is."""
        for member in self.members:
            if member.name == name and member.state is State.ABSENT:
                member.lost_reason = reason

    def set_loaded(self, member: Member) -> None:
        """Note that the member has its weights."""
        member.state = State.LOADED

    def set_ready(self, member: Member, epoch: int) -> None:
        """Note that the member heard a beacon; only that of this epoch makes it ready."""
        if epoch == self.epoch and member.state is State.LOADED:
            member.state = State.READY

    def lose(self, member: Member, reason: str) -> None:
        """Free the place of a lost member, and begin a new epoch."""
        member.state, member.lost_reason, member.identity = State.ABSENT, reason, b""
        self.new_epoch()

    def new_epoch(self) -> None:
        """Begin a new epoch: steps so far are void, and every loaded worker must hear the new beacon before the next
        step."""
        self.epoch += 1
        for member in self.members:
            if member.state is State.READY:
                member.state = State.LOADED
