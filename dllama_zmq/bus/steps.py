"""A step as the root sees it: whose parts it waits for, what it says meanwhile, and how it ends.

Pure: `RootSteps` is fed what the root contributes, what workers say and what time it is, and returns what is to be
done. It owns no socket, no clock and no arithmetic; those are in `star.py`. `worker_steps.py` is the worker's side. The
rules are those of PROTOCOL.md §7.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dllama_zmq.bus.codec import encode, kind_of
from dllama_zmq.bus.messages import (
    ArrayHead,
    Bye,
    Candidates,
    Fault,
    Frame,
    Join,
    Message,
    Missed,
    More,
    Partial,
    Ping,
    RowAsk,
    Step,
    Sum,
)
from dllama_zmq.bus.roster import Member, Roster, State
from dllama_zmq.bus.slowest import Wait
from dllama_zmq.errors import RemoteError, WorkerLost
from dllama_zmq.quants import U8
from dllama_zmq.spec import Sync

_MOST_KEPT = 64
PING_S = 0.25
"""How often a waiting root knocks at every worker: a broken connection is known after this time, and those who have
answered hear that the root lives."""

Arrived: TypeAlias = tuple[bytes, Message, list[Frame]]
"""A message from the identity of a worker, or of a stranger."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one node says to one stage: its partial sum, its candidates or, to a worker, the sum."""

    node: int
    name: str
    message: Partial | Candidates | Sum
    frames: Sequence[Frame]


@dataclass(frozen=True, slots=True)
class Publish:
    """To do: send these frames to every worker. names, kind: what they are metered under."""

    names: Sequence[str]
    kind: str
    frames: list[Frame]


@dataclass(frozen=True, slots=True)
class Send:
    """To do: send these frames to one peer. name, kind: what they are metered under."""

    identity: bytes
    name: str
    kind: str
    frames: list[Frame]


@dataclass(frozen=True, slots=True)
class Done:
    """What was waited for is here, in node order."""

    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Failed:
    """The step is void, and this is why. Nothing follows it."""

    error: Exception


Action: TypeAlias = Publish | Send | Done | Failed


class Gather:
    """The parts of one stage, by node: takes each once, ignores what is late or of another stage or kind."""

    def __init__(
        self, kind: type[Partial | Candidates], epoch: int, step: int, stage: int, nodes: Collection[int]
    ) -> None:
        self.kind, self.stage = kind, stage
        self._key = (epoch, step, stage)
        self.missing = set(nodes)
        self._parts: dict[int, Part] = {}
        self.last = ""
        """The name of the node whose part was taken last; empty before there is one."""

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
        """All parts; the order of adding them, whatever order they arrived in."""
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
        """step_s: how long the parts of a stage may be waited for."""
        self._roster, self._sync, self._step_s = roster, sync, step_s
        self._names = [member.name for member in roster.members]
        self._nodes = [member.node for member in roster.members]
        self.pair = len(self._nodes) == 1
        """Two nodes: each adds the other's partial sum, and nobody publishes the sum of both."""
        self.step = self.stage = 0
        self._columns = 0  # of the partial sums of this step
        self._open: deque[Gather] = deque()  # begun and not ended; the first is the one waited for
        self._n_batches = 1  # of this step
        self._said: deque[list[Frame]] = deque(maxlen=4)  # published last, in this step
        self._since = self._waited_s = self._deadline = self._next_ping = 0.0
        self._out_of_turn: dict[bytes, Message] = {}
        self._forget_waits()

    # What the root does

    def begin(
        self, spans: list[tuple[int, int]], asks: Sequence[RowAsk], arrays: Sequence[tuple[ArrayHead, Frame]]
    ) -> list[Action]:
        """A step begins; `arrays` are those of its message, x (T, D) first.

        Fails, and says nothing, while a worker has not heard this epoch's beacon.
        """
        if not self._roster.ready:
            away = [f"{m.name} is {m.state.value}" for m in self._roster.members if m.state is not State.READY]
            return [Failed(WorkerLost(f"no step can begin: {', '.join(away)}"))]
        self.step += 1
        self._forget_waits()
        self.stage, self._n_batches, self._columns = 0, 1, arrays[0][0].columns
        self._open.clear()
        self._said.clear()
        heads, frames = [head for head, _ in arrays], [frame for _, frame in arrays]
        return [self._publish(Step(self._roster.epoch, self.step, spans, list(asks), heads), frames)]

    def begin_stage(self) -> int:
        """The number of the stage that begins."""
        self.stage += 1
        return self.stage

    def expect(self, kind: type[Partial | Candidates], nodes: Collection[int] | None = None) -> None:
        """Parts of this stage are to come, from every worker or from `nodes`."""
        self._open.append(Gather(kind, self._roster.epoch, self.step, self.stage, nodes or self._nodes))
        self._n_batches = max(self._n_batches, len(self._open))

    def start(self, own: U8) -> list[Action]:
        """The next stage begins; `own` (T, bytes of a row) is the root's partial sum."""
        self.begin_stage()
        self.expect(Partial)
        return [self.sum(self.stage, own)] if self.pair else []

    def sum(self, stage: int, body: U8) -> Publish:
        """Say what the workers go on with; of a pair: the root's partial sum."""
        head = ArrayHead(self._sync, len(body), self._columns)
        return self._publish(Sum(self._roster.epoch, self.step, stage, [head]), [body.data.cast("B")])

    def said(self, frames: list[Frame]) -> None:
        """This was published, and may be asked for again."""
        self._said.append(frames)

    def more(self, again: Sequence[tuple[int, int]]) -> list[Action]:
        """Candidates do not suffice: ask for the best k of each (row, k), to be expected as the next stage."""
        self._forget_waits()
        return [self._publish(More(self._roster.epoch, self.step, self.stage + 1, list(again)))]

    def count_wait(self, name: str, seconds: float, n_bytes: int) -> None:
        """The root has waited `seconds` for messages of `n_bytes` together, and that of worker `name` came last."""
        self.wait_s += seconds
        self.waits[name].add(seconds, n_bytes)

    def out_of_turn(self) -> dict[bytes, Message]:
        """The last that each peer said since the last call that is no part of a step."""
        kept, self._out_of_turn = self._out_of_turn, {}
        return kept

    def place(self, kind: type[Message], stage: int) -> str:
        """Where in the model a stage is, for people."""
        if kind is Candidates:
            return f"step {self.step}, logits"
        layer, feed_forward = divmod((stage - 1) // self._n_batches, 2)
        return f"step {self.step}, layer {layer}, {'feed-forward' if feed_forward else 'attention'}"

    # What happens while it waits

    def wait(self, now: float, arrived: Arrived | None = None, waited_s: float = 0.0) -> list[Action]:
        """From now on the parts of the stage that was begun first are waited for.

        arrived: a message that is here. waited_s: for how long they have been waited for already.
        """
        self._since, self._waited_s = now, waited_s
        self._deadline, self._next_ping = now + self._step_s, now + PING_S
        return self.hear(now, arrived)

    @property
    def wake_at(self) -> float:
        """When to call `hear` at the latest."""
        return min(self._next_ping, self._deadline)

    def hear(self, now: float, arrived: Arrived | None = None) -> list[Action]:
        """What follows from a message, if one came, and from the time; a flood of messages outlasts no deadline."""
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
            return [*actions, *self._late(gather, now - self._since)]
        if now >= self._next_ping:
            self._next_ping = now + PING_S
            ping = encode(Ping(self._roster.epoch, self.step, gather.stage))
            return [*actions, *(Send(m.identity, m.name, "ping", ping) for m in self._roster.members)]
        return actions

    def gone(self, identity: bytes) -> list[Action]:
        """Sending to this peer failed: there is no connection."""
        member = self._roster.find(identity)
        if member is None:  # it was given up before
            return []
        return [self._lost(member, "its connection broke, or it gave no sign of life for 2 s")]

    def _take(self, identity: bytes, message: Message, frames: list[Frame]) -> list[Action]:
        member = self._roster.find(identity)
        here = (self._roster.epoch, self.step)
        if member is None:
            if isinstance(message, Join):
                self._keep(identity, message)
        elif isinstance(message, Partial | Candidates):
            any(gather.offer(member, message, frames) for gather in self._open)  # a worker may be a stage ahead
        elif isinstance(message, Fault):
            if (message.epoch, message.step) == here:
                return [Failed(RemoteError(member.name, message.text))]
        elif isinstance(message, Missed):
            if (message.epoch, message.step, message.stage) == (*here, self._open[0].stage):
                return self._say_again(member)
        else:
            self._keep(identity, message)
            if isinstance(message, Join):
                return [self._lost(member, "it started again")]
        return []

    def _keep(self, identity: bytes, message: Message) -> None:
        """Keep a message until the step has ended. One that is dropped comes again: a worker repeats its join."""
        if identity in self._out_of_turn or len(self._out_of_turn) < _MOST_KEPT:
            self._out_of_turn[identity] = message

    def _say_again(self, member: Member) -> list[Action]:
        """What a worker may lack that has not sent its part: the last message, or with two micro-batches the last two.

        With two nodes twice as many, for there the root goes on without the worker's answer.
        """
        last = list(self._said)[-self._n_batches * (2 if self.pair else 1) :]
        return [Send(member.identity, member.name, "again", frames) for frames in last]

    def _publish(self, message: Message, arrays: Sequence[Frame] = ()) -> Publish:
        frames = encode(message, arrays)
        self.said(frames)
        return Publish(self._names, kind_of(message), frames)

    def _lost(self, member: Member, reason: str) -> Failed:
        gather = self._open[0]
        self._roster.lose(member, f"was lost: {reason}")
        return Failed(WorkerLost(f"{member.name} was lost at {self.place(gather.kind, gather.stage)}: {reason}"))

    def _late(self, gather: Gather, seconds: float) -> list[Action]:
        """Give up whoever has not answered. Should it be alive after all, it must know that it has to join again."""
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
