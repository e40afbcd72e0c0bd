"""The root's rules of a step, one by one, with a clock that the test sets: what it does at which message and when.

`test_step_rules.py` plays root and workers in every order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest

from dllama_zmq.bus.codec import decode
from dllama_zmq.bus.messages import (
    TO_ROOT,
    TO_WORKER,
    ArrayHead,
    BeaconAck,
    Bye,
    Candidates,
    Fault,
    Join,
    Message,
    Partial,
    Ping,
    Resend,
    Step,
    Sum,
)
from dllama_zmq.bus.roster import ROOT, Member, Roster, State
from dllama_zmq.bus.steps import PING_S, Action, Done, Failed, Gather, Publish, RootSteps, Send
from dllama_zmq.errors import RemoteError, WorkerLost

OWN = np.zeros((1, 8), np.uint8)
HEAD = ArrayHead("f32", 1, 2)
STEP_S = 3.0
MEMBERS = [Member(node, f"worker{node}", b"%d" % node) for node in range(4)]
HERE = (7, 3, 2)  # epoch, step, stage


def partial(epoch: int = 7, step: int = 3, stage: int = 2) -> Partial:
    return Partial(epoch, step, stage, [HEAD])


# --- the parts of a stage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations([1, 2, 3])))
def test_parts_are_in_node_order_whatever_order_they_arrive_in(order: tuple[int, ...]) -> None:
    gather = Gather(Partial, *HERE, nodes=[1, 2, 3])
    for node in order:
        assert gather.offer(MEMBERS[node], partial(), [bytes([node])])
    assert not gather.missing
    assert [(part.node, part.frames) for part in gather.in_node_order()] == [(n, [bytes([n])]) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (1, partial(epoch=6)),
        (1, partial(epoch=8)),
        (1, partial(step=2)),
        (1, partial(step=4)),
        (1, partial(stage=1)),
        (1, partial(stage=3)),
        (3, partial()),
        (0, partial()),
        (1, Candidates(*HERE, 0.0, 0.0, 0.0, [])),
    ],
)
def test_late_early_and_foreign_parts_are_ignored(node: int, message: Partial | Candidates) -> None:
    gather = Gather(Partial, *HERE, nodes=[1, 2])
    assert not gather.offer(MEMBERS[node], message, [])
    assert gather.missing == {1, 2}


def test_a_part_that_comes_twice_counts_once_and_the_first_one_stays() -> None:
    gather = Gather(Partial, *HERE, nodes=[1, 2])
    assert gather.offer(MEMBERS[1], partial(), [b"first"])
    assert not gather.offer(MEMBERS[1], partial(), [b"second"])
    assert gather.missing == {2}
    assert [part.frames for part in gather.in_node_order()] == [[b"first"]]


# --- the root ---------------------------------------------------------------------------------------------------------


class Root:
    """A root in its first step. The name of a worker is its identity too."""

    def __init__(self, n_workers: int) -> None:
        self.names = [f"worker{node}" for node in range(1, n_workers + 1)]
        self.roster = Roster(self.names, 0)
        for name in self.names:
            self.roster.join(name.encode(), Join(name, "host", 1, "", "", 1, None))
        for member in self.roster.members:
            self.roster.set_loaded(member)
            self.roster.set_ready(member, self.roster.epoch)
        self.epoch = self.roster.epoch
        self.steps = RootSteps(self.roster, "f32", STEP_S)
        self.begun = self.steps.begin([(0, 1)], [], [(HEAD, OWN.tobytes())])

    def wait_for(self, stage: int, n_batches: int, now: float) -> None:
        """Answer all stages before it."""
        for begun in range(1, stage + n_batches):
            self.steps.start(OWN)
            ended = begun - n_batches + 1
            self.steps.wait(now)
            if n_batches <= begun < stage + n_batches - 1:
                answers = [self.steps.hear(now, self.part(name, ended)) for name in self.names]
                assert isinstance(answers[-1][-1], Done)
                if not self.steps.pair:
                    self.steps.sum(ended, OWN)

    def part(self, name: str, stage: int = 1) -> tuple[bytes, Message, list[bytes]]:
        return name.encode(), Partial(self.epoch, self.steps.step, stage, [HEAD]), [OWN.tobytes()]


def sent(actions: Sequence[Action]) -> list[tuple[str, str, Message]]:
    """The messages sent: to whom (everybody is *), under which metered name, what."""
    found = []
    for action in actions:
        assert isinstance(action, Send | Publish)
        name = action.name if isinstance(action, Send) else "*"
        found.append((name, action.kind, decode(action.frames, TO_ROOT if name == ROOT else TO_WORKER)[0]))
    return found


def test_a_step_begins_with_a_message_to_all_and_not_before_all_have_heard_the_beacon() -> None:
    root = Root(3)
    assert [(name, kind, type(message)) for name, kind, message in sent(root.begun)] == [("*", "step", Step)]
    root.roster.new_epoch()
    (failed,) = root.steps.begin([(0, 1)], [], [(HEAD, OWN.tobytes())])
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, WorkerLost)
    assert "no step can begin: worker1 is loaded, worker2 is loaded" in str(failed.error)


@pytest.mark.parametrize(("n_workers", "kinds"), [(1, ["sum"]), (3, [])])
def test_with_two_nodes_the_root_publishes_its_part_at_once(n_workers: int, kinds: list[str]) -> None:
    assert [kind for _, kind, _ in sent(Root(n_workers).steps.start(OWN))] == kinds


def test_a_waiting_root_pings_every_worker_every_quarter_of_a_second_with_the_stage() -> None:
    root = Root(3)
    root.steps.start(OWN)
    assert root.steps.wait(10.0) == []
    for n in (1, 2, 3):
        then = 10.0 + n * PING_S
        assert root.steps.wake_at == then
        assert root.steps.hear(then - 0.01, root.part("worker2")) == []
        ping = Ping(root.epoch, 1, 1)
        assert sent(root.steps.hear(then)) == [(name, "ping", ping) for name in root.names]


@pytest.mark.parametrize(
    ("n_batches", "stage", "where"),
    [
        (1, 1, "layer 0, attention"),
        (1, 4, "layer 1, feed-forward"),
        (2, 2, "layer 0, attention"),
        (2, 5, "layer 1, attention"),
    ],
)
def test_a_worker_that_does_not_answer_in_time_is_named_given_up_and_sent_a_bye(
    n_batches: int, stage: int, where: str
) -> None:
    root = Root(3)
    root.wait_for(stage, n_batches, 10.0)
    root.steps.hear(10.1, root.part("worker2", stage))
    root.steps.hear(12.9)
    *byes, failed = root.steps.hear(13.5, (b"worker3", BeaconAck(1), []))  # a message, as it may be one of a flood
    assert [(name, kind) for name, kind, _ in sent(byes)] == [("worker1", "bye"), ("worker3", "bye")]
    assert sent(byes)[0][2] == Bye(True, "worker1 did not answer for 3.5 s")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, WorkerLost)
    assert f"worker1, worker3 did not answer at step 1, {where} for 3.5 s; " in str(failed.error)
    assert [member.state for member in root.roster.members] == [State.ABSENT, State.LOADED, State.ABSENT]
    assert root.roster.epoch > root.epoch
    assert root.steps.gone(b"worker1") == [], "it was given up before its connection was seen to be broken"


@pytest.mark.parametrize(
    ("n_workers", "n_batches", "again"),
    [
        (3, 1, [("sum", 2)]),  # it may lack the last sum
        (3, 2, [("sum", 3), ("sum", 4)]),  # or those of both micro-batches
        (1, 1, [("sum", 2), ("sum", 3)]),  # of two nodes the root's own part of this stage is one more
        (1, 2, [("sum", 3), ("sum", 4), ("sum", 5), ("sum", 6)]),
    ],
)
def test_who_lacks_what_its_part_needs_gets_what_was_said_last(
    n_workers: int, n_batches: int, again: list[tuple[str, int]]
) -> None:
    root, waits_for = Root(n_workers), 2 * n_batches + 1
    root.wait_for(waits_for, n_batches, 0.0)
    assert root.steps.hear(0.0, (b"worker1", Resend(root.epoch, 1, waits_for + 1), [])) == []
    assert root.steps.hear(0.0, (b"worker1", Resend(root.epoch, 2, waits_for), [])) == []
    said = root.steps.hear(0.0, (b"worker1", Resend(root.epoch, 1, waits_for), []))
    assert all(action.name == "worker1" and action.kind == "again" for action in said)  # type: ignore[union-attr]
    messages = [message for _, _, message in sent(said)]
    assert [("sum", message.stage) for message in messages if isinstance(message, Sum)] == again


@pytest.mark.parametrize(
    ("of_epoch", "of_step", "ends"), [(0, 0, True), (-1, 0, False), (1, 0, False), (0, -1, False), (0, 1, False)]
)
def test_a_fault_of_this_step_ends_it_under_the_workers_name(of_epoch: int, of_step: int, ends: bool) -> None:
    root = Root(3)
    root.steps.start(OWN)
    root.steps.wait(0.0)
    actions = root.steps.hear(0.0, (b"worker2", Fault(root.epoch + of_epoch, 1 + of_step, "the cat"), []))
    assert bool(actions) is ends
    if ends:
        assert isinstance(actions[0], Failed)
        assert isinstance(actions[0].error, RemoteError)
        assert str(actions[0].error) == "worker2 failed: the cat"


def test_a_fault_at_the_deadline_gives_up_nobody() -> None:
    root = Root(3)
    root.steps.start(OWN)
    root.steps.wait(0.0)
    (failed,) = root.steps.hear(STEP_S, (b"worker2", Fault(root.epoch, 1, "the cat"), []))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, RemoteError)
    assert all(member.state is State.READY for member in root.roster.members)


@pytest.mark.parametrize("how", ["gone", "joins"])
def test_a_worker_without_a_connection_or_that_joins_again_is_lost_with_the_stage(how: str) -> None:
    root = Root(3)
    root.steps.begin_stage()
    root.steps.expect(Candidates)
    root.steps.wait(0.0)
    join = Join("worker2", "host", 1, "", "", 1, None)
    (failed,) = root.steps.gone(b"worker2") if how == "gone" else root.steps.hear(0.0, (b"worker2", join, []))
    assert isinstance(failed, Failed)
    assert str(failed.error).startswith("worker2 was lost at step 1, logits: ")
    assert root.roster.members[1].state is State.ABSENT
    assert root.steps.out_of_turn() == ({b"worker2": join} if how == "joins" else {})


def test_a_wait_counts_for_whose_part_came_last_with_what_was_waited_before() -> None:
    root = Root(3)
    root.steps.begin_stage()
    root.steps.expect(Partial, [1, 3])
    root.steps.wait(10.0, waited_s=0.5)
    root.steps.hear(10.1, root.part("worker3"))
    assert root.steps.hear(10.2, root.part("worker2")) == []
    (done,) = root.steps.hear(10.4, root.part("worker1"))
    assert isinstance(done, Done)
    assert [part.name for part in done.parts] == ["worker1", "worker3"]
    assert root.steps.wait_s == root.steps.waits["worker1"].seconds == pytest.approx(0.9)
    root.steps.more([(0, 5)])
    assert (root.steps.wait_s, root.steps.waits["worker1"].seconds) == (0.0, 0.0)


def test_messages_out_of_turn_are_kept_until_they_are_asked_for_and_no_flood_of_them() -> None:
    root = Root(3)
    root.steps.start(OWN)
    root.steps.wait(0.0)
    joins = [Join("", "host", pid, "", "", 1, None) for pid in range(1000)]
    for join in joins:
        assert root.steps.hear(0.0, (b"stranger%d" % join.pid, join, [])) == []
    root.steps.hear(0.0, (b"stranger0", joins[1], []))
    root.steps.hear(0.0, (b"unknown", BeaconAck(1), []))
    kept = root.steps.out_of_turn()
    assert list(kept.items()) == [(b"stranger%d" % pid, joins[pid or 1]) for pid in range(64)]
    assert root.steps.out_of_turn() == {}
