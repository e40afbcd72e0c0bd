"""Steps in every order of what can happen to them. What is published is lost, late and repeated, what is sent late and
repeated; nodes compute for as long as they like; workers die, freeze, fail and start again. See `steps_world`.

The rules: whatever becomes of messages, a step ends well, and soon. It fails only if something has happened to a
worker, and names that worker; then it fails in time.
"""

from __future__ import annotations

import math

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from steps_world import COMPUTING, SILENCE_S, STEP_S, WAITING, World

from dllama_zmq.bus.codec import encode
from dllama_zmq.bus.messages import Fault, Join, Partial, Resend
from dllama_zmq.bus.steps import PING_S
from dllama_zmq.errors import RemoteError, WorkerLost

ENOUGH_S = 10 * PING_S
"""More than it takes to get again what was lost."""


class Steps(RuleBasedStateMachine):
    @initialize(n_workers=st.sampled_from([1, 3]), n_stages=st.integers(1, 3), harms=st.booleans())
    def begin(self, n_workers: int, n_stages: int, harms: bool) -> None:
        self.world, self.harms = World(n_workers, n_stages), harms
        self.root = self.world.root
        self.harmed: set[str] = set()  # workers that something has happened to

    # Steps

    @precondition(lambda self: self.root.program is None)
    @rule(n_batches=st.sampled_from([1, 1, 2]), n_more=st.sampled_from([0, 0, 1, 2]))
    def begin_step(self, n_batches: int, n_more: int) -> None:
        if not self.world.roster.ready:
            self.world.form()
            self.harmed.clear()
        self.world.begin_step(n_batches, n_more)

    @precondition(lambda self: self.world.readable())
    @rule(n=st.integers(1, 20), data=st.data())
    def read(self, n: int, data: st.DataObject) -> None:
        for _ in range(n):
            if readable := self.world.readable():
                node, queue = readable[data.draw(st.integers(0, len(readable) - 1))]
                node.hear(*queue.popleft())
                self.check_end()

    @precondition(lambda self: self.world.nodes(COMPUTING))
    @rule(n=st.integers(1, 3), data=st.data())
    def compute(self, n: int, data: st.DataObject) -> None:
        for _ in range(n):
            if computing := self.world.nodes(COMPUTING):
                computing[data.draw(st.integers(0, len(computing) - 1))].go_on()
                self.check_end()

    @rule()
    def run_on(self) -> None:
        """From now on nothing is lost, late or repeated."""
        world, begun, n_waits = self.world, self.world.now, 2 * self.world.n_stages + 3
        while self.root.program is not None:
            world.settle()
            if self.root.program is not None:
                world.pass_until(min(node.steps.wake_at for node in world.nodes(WAITING)))
                assert world.now <= begun + 3 * PING_S * n_waits + (STEP_S if self.harmed else 0.0)
        self.check_end()

    # What becomes of messages

    @precondition(lambda self: any(worker.published for worker in self.world.workers))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        published = [worker.published for worker in self.world.workers if worker.published]
        queue = published[data.draw(st.integers(0, len(published) - 1))]
        del queue[data.draw(st.integers(0, len(queue) - 1))]

    @precondition(lambda self: self.world.all_sent)
    @rule(n_ago=st.integers(0, 40))
    def repeat(self, n_ago: int) -> None:
        queue, *message = self.world.all_sent[-1 - min(n_ago, len(self.world.all_sent) - 1)]
        queue.append(tuple(message))

    @rule(seconds=st.sampled_from([0.01, PING_S, 0.3]))
    def let_pass(self, seconds: float) -> None:
        """No wait comes so near to its end that what is lost cannot come again."""
        ends = [node.waits_since + (STEP_S if node is self.root else SILENCE_S) for node in self.world.nodes(WAITING)]
        if self.world.now + seconds + ENOUGH_S < min(ends, default=math.inf):
            self.world.pass_until(self.world.now + seconds)
            self.check_end()

    # What happens to workers

    @precondition(lambda self: self.harms)
    @rule(what=st.sampled_from(["dies", "freezes", "thaws", "fails", "failed before", "joins again"]), data=st.data())
    def harm(self, what: str, data: st.DataObject) -> None:
        worker = self.world.workers[data.draw(st.integers(0, len(self.world.workers) - 1))]
        self.harmed.add(worker.name)
        if what == "dies":
            worker.connected = False
        elif what in ("freezes", "thaws"):
            worker.frozen = what == "freezes"
        elif what == "joins again":
            worker.say(Join(worker.name, "host", 2, "", "", 1, None))
        else:
            worker.fail(n_steps_ago=what != "fails")

    @precondition(lambda self: self.harms)
    @rule(seconds=st.floats(SILENCE_S / 2, STEP_S))
    def let_pass_long(self, seconds: float) -> None:
        self.harmed.update(worker.name for worker in self.world.workers)
        self.world.pass_until(self.world.now + seconds)
        self.check_end()

    @rule(data=st.data())
    def talk_of_strangers(self, data: st.DataObject) -> None:
        here = self.world.roster.epoch, self.root.steps.step
        said = [Partial(*here, 1, []), Resend(*here, 1), Fault(*here, "oh"), Join("", "there", 1, "", "", 1, None)]
        self.root.inbox.append((b"stranger", encode(data.draw(st.sampled_from(said)))))

    # How steps end

    def check_end(self) -> None:
        end, self.root.ended = self.root.ended, None
        if end is None or isinstance(end, StopIteration):
            return
        if isinstance(end, RemoteError):
            assert end.node in self.harmed
            assert not self.root.lost
            return
        assert isinstance(end, WorkerLost)
        names, says, _ = str(end).partition(" was lost at ")
        if not says:
            names, says, _ = str(end).partition(" did not answer at ")
            assert self.world.now >= self.root.waits_since + STEP_S
            assert names.split(", ") == self.missing()
        assert names.split(", ") == self.root.lost
        assert self.harmed >= set(names.split(", "))

    def missing(self) -> list[str]:
        """Whose part of the stage that the root waits for has not come."""
        return [w.name for w in self.world.workers if (w.number, self.root.waits_for) not in self.root.taken]

    @invariant()
    def waits_end_in_time(self) -> None:
        for node in self.world.nodes(WAITING) if hasattr(self, "world") else ():
            assert self.world.now < node.waits_since + (STEP_S if node is self.root else SILENCE_S)
            if node is self.root:
                assert self.missing(), "all parts have come, and the root still waits"
                assert all(self.world.now < then + PING_S for then in self.root.pinged.values())

    def teardown(self) -> None:
        if hasattr(self, "root"):
            self.run_on()


TestSteps = Steps.TestCase
