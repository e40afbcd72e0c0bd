"""The root's side of a step as a state machine: whose parts it waits for, what it sends meanwhile, how it ends.

Pure: `RootSteps` is fed the root's own parts, the workers' messages and the time, and returns actions. It owns no
socket, no clock and no arithmetic; those are in `star.py`. `worker_steps.py` is the worker's side. The
rules are those of PROTOCOL.md §7.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import TypeAlias

from msgspec import Struct

from dllama_zmq.bus.codec import encode, kind_of
from dllama_zmq.bus.messages import (
    ArrayHead,
    Bye,
    Candidates,
    Fault,
    Frame,
    Join,
    Message,
    MoreCandidates,
    Partial,
    Ping,
    Resend,
    RowAsk,
    Step,
    Sum,
)
from dllama_zmq.bus.roster import Member, Roster, State
from dllama_zmq.bus.waits import Wait
from dllama_zmq.errors import RemoteError, WorkerLost
from dllama_zmq.quants import U8
from dllama_zmq.spec import Sync

_MAX_KEPT = 64
PING_S = 0.25
"""How often a waiting root pings every worker. A ping finds a broken connection, and shows a worker that has answered
that the root is alive."""

Arrived: TypeAlias = tuple[bytes, Message, list[Frame]]
"""A message and the identity that it came from, a worker's or an unknown one."""


class Part(Struct, frozen=True):
    """The message of one node for one stage: its partial sum, its candidates or, from the root, the sum."""

    node: int
    name: str
    message: Partial | Candidates | Sum
    frames: Sequence[Frame]


class Publish(Struct, frozen=True):
    """An action: send these frames to every worker. kind: the rows of the meter."""

    kind: str
    frames: list[Frame]


class Send(Struct, frozen=True):
    """An action: send these frames to one peer. name, kind: the row of the meter."""

    identity: bytes
    name: str
    kind: str
    frames: list[Frame]


class Done(Struct, frozen=True):
    """An action that ends the wait: all parts are here, in node order."""

    parts: list[Part]


class Failed(Struct, frozen=True):
    """An action that ends the wait: the step is void, and why. No action follows it."""

    error: Exception


Action: TypeAlias = Publish | Send | Done | Failed


class Gather:
    """Collects one part from each node for one stage; ignores late parts and those of another stage or kind."""

    def __init__(
        self, kind: type[Partial | Candidates], epoch: int, step: int, stage: int, nodes: Collection[int]
    ) -> None:
        self.kind, self.stage = kind, stage
        self._key = (epoch, step, stage)
        self.missing = set(nodes)
        self._parts: dict[int, Part] = {}
        self.last = ""
        """The name of the node whose part came last; empty before the first part."""

    def offer(self, member: Member, message: Partial | Candidates, frames: Sequence[Frame]) -> bool:
        """Take a part if it is one of this stage and not yet here; say whether it was taken."""
        here = isinstance(message, self.kind) and (message.epoch, message.step, message.stage) == self._key
        if not here or member.node not in self.missing:
            return False
        self.missing.remove(member.node)
        self._parts[member.node] = Part(member.node, member.name, message, frames)
        self.last = member.name
        return True

    def in_node_order(self) -> list[Part]:
        """All parts in node order, the order of addition, whatever the order of arrival."""
        return [self._parts[node] for node in sorted(self._parts)]


class RootSteps:
    """The root's side of all steps, one at a time.

    `begin`, then for each stage `start` and `wait`, or `begin_stage` where its parts came another way; at the end
    `expect(Candidates)` and `wait`. While it waits, feed `hear` with each message, and call it at `wake_at` at the
    latest. Done or Failed ends the wait.

    wait_s: seconds that the root has waited for the others since the step began, or since it asked for more. waits: the
    same by worker; each wait counts for the worker whose answer ended it.
    """

    def __init__(self, roster: Roster, sync: Sync, step_s: float) -> None:
        """step_s: deadline for the parts of a stage, in seconds."""
        self._roster, self._sync, self._step_s = roster, sync, step_s
        self._names = [member.name for member in roster.members]
        self._nodes = [member.node for member in roster.members]
        self.pair = len(self._nodes) == 1
        """Two nodes: each adds the other's partial sum, and nobody publishes the sum of both."""
        self.step = self.stage = 0
        self._columns = 0  # of the partial sums of this step
        self._open: deque[Gather] = deque()  # open stages, oldest first; the first is the one waited for
        self._n_batches = 1  # of this step
        self._published: deque[list[Frame]] = deque(maxlen=4)  # published last, in this step
        self._since = self._waited_s = self._deadline = self._next_ping = 0.0
        self._out_of_turn: dict[bytes, Message] = {}
        self._forget_waits()

    # calls of the root

    def begin(
        self, spans: list[tuple[int, int]], asks: Sequence[RowAsk], arrays: Sequence[tuple[ArrayHead, Frame]]
    ) -> list[Action]:
        """Begin a step. arrays: those of its Step message, x (T, D) first.

        Fails, and sends nothing, while a worker has not heard the beacon of this epoch.
        """
        if not self._roster.ready:
            away = [f"{m.name} is {m.state.value}" for m in self._roster.members if m.state is not State.READY]
            return [Failed(WorkerLost(f"no step can begin: {', '.join(away)}"))]
        self.step += 1
        self._forget_waits()
        self.stage, self._n_batches, self._columns = 0, 1, arrays[0][0].columns
        self._open.clear()
        self._published.clear()
        heads, frames = [head for head, _ in arrays], [frame for _, frame in arrays]
        return [self._publish(Step(self._roster.epoch, self.step, spans, list(asks), heads), frames)]

    def begin_stage(self) -> int:
        """Begin a stage; returns its number."""
        self.stage += 1
        return self.stage

    def expect(self, kind: type[Partial | Candidates], nodes: Collection[int] | None = None) -> None:
        """Expect parts of this stage from every worker, or from `nodes`."""
        self._open.append(Gather(kind, self._roster.epoch, self.step, self.stage, nodes or self._nodes))
        self._n_batches = max(self._n_batches, len(self._open))

    def start(self, own: U8) -> list[Action]:
        """Begin the next stage. own: the root's partial sum (T, bytes of a row)."""
        self.begin_stage()
        self.expect(Partial)
        return [self.sum(self.stage, own)] if self.pair else []

    def sum(self, stage: int, body: U8) -> Publish:
        """Publish the result of a stage; with two nodes the root's partial sum, to which the worker adds its own."""
        head = ArrayHead(self._sync, len(body), self._columns)
        return self._publish(Sum(self._roster.epoch, self.step, stage, [head]), [body.data.cast("B")])

    def note_published(self, frames: list[Frame]) -> None:
        """Note published frames, which a worker may ask for again."""
        self._published.append(frames)

    def more(self, again: Sequence[tuple[int, int]]) -> list[Action]:
        """Ask for the best k candidates of each (row, k); the answers are expected as the next stage."""
        self._forget_waits()
        return [self._publish(MoreCandidates(self._roster.epoch, self.step, self.stage + 1, list(again)))]

    def count_wait(self, name: str, seconds: float, n_bytes: int) -> None:
        """Count a wait of `seconds` for messages of `n_bytes` in all, of which that of worker `name` came last."""
        self.wait_s += seconds
        self.waits[name].add(seconds, n_bytes)

    def out_of_turn(self) -> dict[bytes, Message]:
        """The last message of each peer since the last call that belongs to no step."""
        kept, self._out_of_turn = self._out_of_turn, {}
        return kept

    def place(self, kind: type[Message], stage: int) -> str:
        """Where in the model a stage is, for people."""
        if kind is Candidates:
            return f"step {self.step}, logits"
        layer, feed_forward = divmod((stage - 1) // self._n_batches, 2)
        return f"step {self.step}, layer {layer}, {'feed-forward' if feed_forward else 'attention'}"

    # calls while it waits

    def wait(self, now: float, arrived: Arrived | None = None, waited_s: float = 0.0) -> list[Action]:
        """Start waiting for the parts of the oldest open stage.

        arrived: a message received already. waited_s: seconds waited already.
        """
        self._since, self._waited_s = now, waited_s
        self._deadline, self._next_ping = now + self._step_s, now + PING_S
        return self.hear(now, arrived)

    @property
    def wake_at(self) -> float:
        """Latest time for the next call of `hear`."""
        return min(self._next_ping, self._deadline)

    def hear(self, now: float, arrived: Arrived | None = None) -> list[Action]:
        """The actions that follow from a message, if one came, and from the time. A flood of messages extends no
        deadline."""
        actions = [] if arrived is None else self._take(*arrived)
        if actions and isinstance(actions[-1], Failed):
            return actions
        gather = self._open[0]
        if not gather.missing:
            self._open.popleft()
            parts = gather.in_node_order()
            n_bytes = sum(len(frame) for part in parts for frame in part.frames)
            self.count_wait(gather.last, self._waited_s + now - self._since, n_bytes)
            return [Done(parts)]
        if now >= self._deadline:
            return [*actions, *self._lose_silent(gather, now - self._since)]
        if now >= self._next_ping:
            self._next_ping = now + PING_S
            ping = encode(Ping(self._roster.epoch, self.step, gather.stage))
            return [*actions, *(Send(m.identity, m.name, "ping", ping) for m in self._roster.members)]
        return actions

    def gone(self, identity: bytes) -> list[Action]:
        """The actions that follow when sending to this peer failed."""
        member = self._roster.find(identity)
        if member is None:  # lost already
            return []
        return [self._lost(member, "its connection broke, or it gave no sign of life for 2 s")]

    def _take(self, identity: bytes, message: Message, frames: list[Frame]) -> list[Action]:
        member = self._roster.find(identity)
        here = (self._roster.epoch, self.step)
        if member is None:
            if isinstance(message, Join):
                self._keep_for_later(identity, message)
        elif isinstance(message, Partial | Candidates):
            any(gather.offer(member, message, frames) for gather in self._open)  # a worker may be a stage ahead
        elif isinstance(message, Fault):
            if (message.epoch, message.step) == here:
                return [Failed(RemoteError(member.name, message.text))]
        elif isinstance(message, Resend):
            if (message.epoch, message.step, message.stage) == (*here, self._open[0].stage):
                return self._resend(member)
        else:
            self._keep_for_later(identity, message)
            if isinstance(message, Join):
                return [self._lost(member, "it started again")]
        return []

    def _keep_for_later(self, identity: bytes, message: Message) -> None:
        """Keep a message until the step has ended. A dropped one is repeated: workers repeat their joins."""
        if identity in self._out_of_turn or len(self._out_of_turn) < _MAX_KEPT:
            self._out_of_turn[identity] = message

    def _resend(self, member: Member) -> list[Action]:
        """Resend what a silent worker may have missed: the last message, or with two micro-batches the last two.

        With two nodes twice as many, because there the root may be one stage ahead of the worker.
        """
        last = list(self._published)[-self._n_batches * (2 if self.pair else 1) :]
        return [Send(member.identity, member.name, "again", frames) for frames in last]

    def _publish(self, message: Message, arrays: Sequence[Frame] = ()) -> Publish:
        frames = encode(message, arrays)
        self.note_published(frames)
        return Publish(kind_of(message), frames)

    def _lost(self, member: Member, reason: str) -> Failed:
        gather = self._open[0]
        self._roster.lose(member, f"was lost: {reason}")
        return Failed(WorkerLost(f"{member.name} was lost at {self.place(gather.kind, gather.stage)}: {reason}"))

    def _lose_silent(self, gather: Gather, seconds: float) -> list[Action]:
        """Lose the workers that missed the deadline. The Bye tells one that is still alive to join again."""
        late = [self._roster.members[node - 1] for node in sorted(gather.missing)]
        actions: list[Action] = []
        for member in late:
            reason = f"did not answer for {seconds:.1f} s"
            bye = encode(Bye(True, f"{member.name} {reason}"))
            actions.append(Send(member.identity, member.name, "bye", bye))
            self._roster.lose(member, reason)
        sentence = (
            f"{', '.join(member.name for member in late)} did not answer at {self.place(gather.kind, gather.stage)} "
            f"for {seconds:.1f} s; if that machine is only slow, raise limits.step_s in cluster.yaml"
        )
        return [*actions, Failed(WorkerLost(sentence))]

    def _forget_waits(self) -> None:
        self.wait_s = 0.0
        self.waits = {name: Wait() for name in self._names}
