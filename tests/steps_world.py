"""A root and its workers in the middle of steps, without sockets: `RootSteps` and `WorkerSteps` over queues of frames,
with a clock that a test sets. A test chooses what is read, lost and repeated, and who computes, when and how long.

Sums carry a bit for each node and the number of their step and stage: a part that is taken twice, too early or of
another step fails an assertion here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

import numpy as np

from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.messages import (
    TO_ROOT,
    TO_WORKER,
    ArrayHead,
    Beacon,
    BeaconAck,
    Bye,
    Candidates,
    Fault,
    Frame,
    Join,
    Message,
    MoreCandidates,
    Partial,
    Ping,
    Step,
)
from dllama_zmq.bus.roster import Member, Roster, State
from dllama_zmq.bus.steps import PING_S, Action, Done, Failed, Part, Publish, RootSteps, Send
from dllama_zmq.bus.worker_steps import StepVoid, WorkerSteps
from dllama_zmq.errors import RemoteError, RootLost, WorkerLost
from dllama_zmq.quants import U8

STEP_S, SILENCE_S = 5.0, 4.0
IDLE, COMPUTING, WAITING = "idle", "computing", "waiting"
COLUMNS = 2

Queue: TypeAlias = deque[tuple[bytes, list[Frame]]]
Program: TypeAlias = Generator[str, Any, None]


def partial_sum(bits: int, step: int, stage: int) -> U8:
    return np.array([[bits, 1000 * step + stage]], np.float32).view(np.uint8)


def bits_of(part: Part, step: int, stage: int) -> int:
    bits, tag = np.frombuffer(part.frames[0], np.float32).tolist()
    assert tag == 1000 * step + stage
    return int(bits)


class Node:
    """What a root and a worker have in common: a step is a program that computes and waits by turns."""

    steps: RootSteps | WorkerSteps

    def __init__(self, world: World) -> None:
        self.world = world
        self.state = IDLE
        self.program: Program | None = None
        self.waits_since = 0.0

    def layers(self, n_batches: int) -> Program:
        """The stages of a step in the order of `run_micro_batches`."""
        begun: deque[int] = deque()
        for stage in range(1, self.world.n_stages * n_batches + 1):
            if len(begun) == n_batches:
                yield from self.finish(begun.popleft())
            yield COMPUTING
            self.start(stage)
            begun.append(stage)
        while begun:
            yield from self.finish(begun.popleft())

    def wait(self) -> Generator[str, Any, list[Part]]:
        self.waits_since = self.world.now
        actions: Sequence[Action] = self.steps.wait(self.world.now)
        while True:
            for action in actions:
                if isinstance(action, Done):
                    assert action is actions[-1]
                    return action.parts
                self.do(action)
            assert self.steps.wake_at > self.world.now, "it wants to be woken at once, for ever"
            arrived = yield WAITING
            actions = self.steps.hear(self.world.now, arrived)

    def go_on(self, arrived: Any = None) -> None:
        assert self.program is not None
        try:
            self.state = self.program.send(arrived if self.state == WAITING else None)
        except (StopIteration, StepVoid, RootLost, WorkerLost, RemoteError) as end:
            self.state, self.program = IDLE, None
            self.end(end)

    def start(self, stage: int) -> None:
        raise NotImplementedError

    def finish(self, stage: int) -> Program:
        raise NotImplementedError

    def do(self, action: Action) -> None:
        raise NotImplementedError

    def hear(self, identity: bytes, frames: list[Frame]) -> None:
        raise NotImplementedError

    def end(self, end: Exception) -> None:
        raise NotImplementedError


class RootNode(Node):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.steps: RootSteps = RootSteps(world.roster, "f32", STEP_S)
        self.inbox: Queue = deque()
        self.ended: Exception | None = None
        self.lost: list[str] = []  # who had no place when it ended
        self.taken: set[tuple[int, int]] = set()  # by whom and for which stage a part of this step has come
        self.said: list[list[Frame]] = []  # published in this step
        self.pinged: dict[bytes, float] = {}
        self.waits_for = 0  # the stage
        self.n_batches = 1

    def step(self, n_more: int) -> Program:
        self.ended, self.taken, self.said = None, set(), []
        arrays = [(ArrayHead("f32", 1, COLUMNS), bytes(4 * COLUMNS)), (ArrayHead("i32", 1, 1), bytes(4))]
        for action in self.steps.begin([(0, 1)], [], arrays):
            self.do(action)
        yield from self.layers(self.n_batches)
        for more in range(1 + n_more):
            for action in self.steps.more([(0, more)]) if more else []:
                self.do(action)
            stage = self.steps.begin_stage()
            self.steps.expect(Candidates)
            parts = yield from self.wait_for(stage)
            assert [(part.node, part.message.stage) for part in parts] == [
                (w.number, stage) for w in self.world.workers
            ]
            yield COMPUTING

    def start(self, stage: int) -> None:
        for action in self.steps.start(partial_sum(1, self.steps.step, stage)):
            self.do(action)

    def finish(self, stage: int) -> Program:
        parts = yield from self.wait_for(stage)
        assert [bits_of(part, self.steps.step, stage) for part in parts] == [2**w.number for w in self.world.workers]
        if not self.steps.pair:
            self.do(self.steps.sum(stage, partial_sum(self.world.all_bits, self.steps.step, stage)))

    def wait_for(self, stage: int) -> Generator[str, Any, list[Part]]:
        self.waits_for = stage
        self.pinged = {worker.identity: self.world.now for worker in self.world.workers}
        return (yield from self.wait())

    def do(self, action: Action) -> None:
        if isinstance(action, Failed):
            raise action.error
        if isinstance(action, Publish):
            self.said.append(action.frames)
            for worker in self.world.workers:
                self.world.send(worker.published, b"", action.frames)
        elif isinstance(action, Send):
            (worker,) = [worker for worker in self.world.workers if worker.identity == action.identity]
            if action.kind == "ping":
                assert self.world.now >= self.pinged[action.identity] + PING_S
                self.pinged[action.identity] = self.world.now
            elif action.kind == "again":
                assert action.frames in self.said[-self.n_batches * (2 if self.steps.pair else 1) :]
            if worker.connected:
                self.world.send(worker.sent, b"", action.frames)
            else:
                for following in self.steps.gone(action.identity):
                    self.do(following)

    def end(self, end: Exception) -> None:
        self.ended = end
        self.lost = [member.name for member in self.world.roster.members if member.state is State.ABSENT]
        if not isinstance(end, StopIteration):
            self.world.roster.new_epoch()

    def hear(self, identity: bytes, frames: list[Frame]) -> None:
        message, arrays = decode(frames, TO_ROOT)
        member = self.world.roster.find(identity)
        if self.state == WAITING:
            here = (self.world.roster.epoch, self.steps.step)
            if (
                member is not None
                and isinstance(message, Partial | Candidates)
                and (message.epoch, message.step) == here
            ):
                self.taken.add((member.node, message.stage))
            self.go_on((identity, message, arrays))
        elif member is not None and isinstance(message, BeaconAck):
            self.world.roster.set_ready(member, message.epoch)
        elif member is not None and isinstance(message, Join):
            self.world.roster.lose(member, "it started again")


class WorkerNode(Node):
    """A worker and its connection. Published messages and those over the connection come in any order."""

    def __init__(self, world: World, member: Member, identity: bytes) -> None:
        super().__init__(world)
        self.name, self.number, self.identity = member.name, member.node, identity
        self.steps: WorkerSteps = WorkerSteps("f32", COLUMNS, SILENCE_S)
        self.connected, self.frozen = True, False
        self.published: Queue = deque()
        self.sent: Queue = deque()  # by the root, over the connection
        self.ran: set[tuple[int, int]] = set()

    def start(self, stage: int) -> None:
        for action in self.steps.start(partial_sum(2**self.number, self.steps.step, stage)):
            self.do(action)

    def finish(self, stage: int) -> Program:
        (part,) = yield from self.wait()
        bits = 1 if self.world.root.steps.pair else self.world.all_bits
        assert bits_of(part, self.steps.step, stage) == bits

    def step(self, n_batches: int) -> Program:
        yield from self.layers(n_batches)
        self.answer()

    def answer(self) -> None:
        for action in self.steps.answer(0.0, 0.0, []):
            self.do(action)

    def do(self, action: Action) -> None:
        if isinstance(action, Failed):
            raise action.error
        assert isinstance(action, Send)
        if self.connected:
            self.world.send(self.world.root.inbox, self.identity, action.frames)

    def say(self, message: Message) -> None:
        if self.connected and not self.frozen:
            self.world.send(self.world.root.inbox, self.identity, encode(message))

    def end(self, end: Exception) -> None:
        if isinstance(end, StepVoid):
            self.act(end.message)
        self.connected = self.connected and not isinstance(end, RootLost)

    def hear(self, identity: bytes, frames: list[Frame]) -> None:
        message, arrays = decode(frames, TO_WORKER)
        if self.state == WAITING:
            self.waits_since = self.world.now
            self.go_on((message, arrays))
        else:
            self.act(message)

    def act(self, message: Message) -> None:
        """On a message while it is idle."""
        if isinstance(message, Beacon):
            self.steps.epoch = message.epoch
            self.say(BeaconAck(message.epoch))
        elif isinstance(message, Bye):
            self.connected = False
        elif isinstance(message, Ping):
            for action in self.steps.answer_ping(message):
                self.do(action)
        elif isinstance(message, MoreCandidates) and self.steps.accepts(message):
            self.answer()
        elif isinstance(message, Step) and self.steps.accepts(message):
            assert (message.epoch, message.step) not in self.ran, "a step is run twice"
            self.ran.add((message.epoch, message.step))
            self.steps.begin(message.step)
            self.program = self.step(self.world.root.n_batches)
            self.go_on()

    def fail(self, n_steps_ago: int) -> None:
        """An exception ends what it does."""
        self.state, self.program = IDLE, None
        self.say(Fault(self.steps.epoch, max(0, self.steps.step - n_steps_ago), "the cat is on the keyboard"))


class World:
    def __init__(self, n_workers: int, n_stages: int) -> None:
        self.now, self.n_stages, self.n_connections = 100.0, n_stages, 0
        self.all_sent: list[tuple[Queue, bytes, list[Frame]]] = []  # no beacons, which nobody repeats late
        self.roster = Roster([f"worker{i}" for i in range(1, n_workers + 1)], 1)
        self.all_bits = 2 ** (n_workers + 1) - 1
        self.workers = [self.join(member) for member in self.roster.members]
        self.root = RootNode(self)
        self.form()

    def send(self, queue: Queue, identity: bytes, frames: list[Frame]) -> None:
        self.all_sent.append((queue, identity, frames))
        queue.append((identity, frames))

    def join(self, member: Member) -> WorkerNode:
        self.n_connections += 1
        identity = b"%d" % self.n_connections
        assert self.roster.join(identity, Join(member.name, "host", 1, "", "", 1, None)) is member
        self.roster.set_loaded(member)
        return WorkerNode(self, member, identity)

    def form(self) -> None:
        """Make the cluster whole: who is lost or gone comes over a new connection, and all hear the new beacon."""
        while not self.roster.ready:
            for i, (worker, member) in enumerate(zip(self.workers, self.roster.members, strict=True)):
                if member.state is State.ABSENT or worker.frozen or not worker.connected:
                    if member.state is not State.ABSENT:
                        self.roster.lose(member, "its connection broke")
                    self.workers[i] = self.join(member)
            for worker in self.workers:
                worker.published.append((b"", encode(Beacon(self.roster.epoch))))
            self.settle()

    def begin_step(self, n_batches: int, n_more: int) -> None:
        self.root.n_batches = n_batches
        self.root.program = self.root.step(n_more)
        self.root.go_on()

    def readable(self) -> list[tuple[Node, Queue]]:
        """Who can read what: a node that computes reads nothing."""
        found: list[tuple[Node, Queue]] = [(self.root, self.root.inbox)]
        for worker in self.workers:
            if worker.connected and not worker.frozen:
                found += [(worker, worker.published), (worker, worker.sent)]
        return [(node, queue) for node, queue in found if queue and node.state != COMPUTING]

    def nodes(self, state: str) -> list[Node]:
        """Who computes, or waits, and is not frozen."""
        nodes: list[Node] = [self.root, *(worker for worker in self.workers if not worker.frozen)]
        return [node for node in nodes if node.state == state]

    def settle(self) -> None:
        """All that was sent is read and all that can be computed is, until only time can help."""
        while (readable := self.readable()) or self.nodes(COMPUTING):
            for node, queue in readable:
                if queue and node.state != COMPUTING:
                    node.hear(*queue.popleft())
            for node in self.nodes(COMPUTING):
                node.go_on()

    def pass_until(self, then: float) -> None:
        self.now = max(self.now, then)
        for node in self.nodes(WAITING):
            if node.state == WAITING and self.now >= node.steps.wake_at:
                node.go_on()
