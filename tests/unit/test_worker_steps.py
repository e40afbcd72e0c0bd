"""A worker's rules of a step, one by one, with a clock that the test sets: what it does at which message and when."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest

from dllama_zmq.bus.codec import decode
from dllama_zmq.bus.messages import (
    TO_ROOT,
    ArrayHead,
    Beacon,
    Bye,
    Message,
    MoreCandidates,
    Ping,
    Resend,
    Step,
    Sum,
    Welcome,
)
from dllama_zmq.bus.roster import ROOT
from dllama_zmq.bus.steps import Action, Done, Failed, Part, Send
from dllama_zmq.bus.worker_steps import StepVoid, WorkerSteps
from dllama_zmq.errors import RootLost

OWN = np.zeros((1, 8), np.uint8)
HEAD = ArrayHead("f32", 1, 2)
SILENCE_S = 3.0


def sent_to_root(actions: Sequence[Action]) -> list[Message]:
    """The messages that the root gets."""
    assert all(isinstance(action, Send) for action in actions)
    return [decode(action.frames, TO_ROOT)[0] for action in actions if isinstance(action, Send)]


def worker(epoch: int = 7, step: int = 3, n_stages: int = 2) -> WorkerSteps:
    steps = WorkerSteps("f32", 2, SILENCE_S)
    steps.epoch = epoch
    steps.begin(step)
    for _ in range(n_stages):
        steps.start(OWN)
    return steps


def a_step(epoch: int, step: int) -> Step:
    return Step(epoch, step, [(0, 1)], [], [])


@pytest.mark.parametrize(
    ("message", "accepted"),
    [
        (a_step(7, 4), True),
        (a_step(7, 9), True),
        (a_step(7, 3), False),
        (a_step(7, 2), False),
        (a_step(6, 4), False),
        (a_step(8, 4), False),
        (MoreCandidates(7, 3, 3, [(0, 5)]), True),
        (MoreCandidates(7, 3, 2, [(0, 5)]), False),
        (MoreCandidates(7, 3, 4, [(0, 5)]), False),
        (MoreCandidates(7, 4, 3, [(0, 5)]), False),
        (MoreCandidates(6, 3, 3, [(0, 5)]), False),
    ],
)
def test_an_idle_worker_acts_on_the_next_step_and_the_next_more_candidates(
    message: Step | MoreCandidates, accepted: bool
) -> None:
    assert worker().accepts(message) is accepted


@pytest.mark.parametrize(
    ("pings", "missed"),
    [
        ([(7, 3, 3)], []),  # what it is about may be on its way
        ([(7, 3, 3)] * 3, [(7, 3, 3)] * 2),
        ([(7, 4, 1)] * 2, [(7, 4, 1)]),
        ([(7, 3, 3), (7, 3, 4), (7, 3, 3)], []),
        ([(7, 3, 2)] * 2, []),  # it has sent that part
        ([(7, 2, 9)] * 2, []),
        ([(6, 3, 3)] * 2, []),
        ([(8, 3, 3)] * 2, []),
    ],
)
def test_a_worker_asks_for_what_it_is_believed_to_have_when_it_is_asked_twice(
    pings: list[tuple[int, int, int]], missed: list[tuple[int, int, int]]
) -> None:
    idle, waiting = worker(), worker()
    waiting.wait(0.0)
    asked = [sent_to_root(idle.answer_ping(Ping(*ping))) for ping in pings]
    assert list(chain.from_iterable(asked)) == [Resend(*numbers) for numbers in missed]
    assert [sent_to_root(waiting.hear(0.0, (Ping(*ping), []))) for ping in pings] == asked


def test_a_worker_leaves_a_root_that_says_nothing_and_any_word_will_do() -> None:
    steps = worker()
    steps.wait(10.0)
    for now in (12.9, 15.8):
        assert steps.hear(now, (Beacon(7), [])) == []
    assert steps.wake_at == 15.8 + SILENCE_S
    assert steps.hear(18.7) == []
    (failed,) = steps.hear(18.8)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, RootLost)
    assert "no word from the root for 3 s in step 3" in str(failed.error)


@pytest.mark.parametrize(
    ("message", "void"),
    [
        (Beacon(8), True),
        (Beacon(6), True),
        (Beacon(7), False),
        (Bye(True, ""), True),
        (Bye(False, ""), True),
        (Welcome(1, "worker1", "", ""), True),
        (a_step(7, 4), False),
        (a_step(8, 1), False),
        (MoreCandidates(7, 3, 3, [(0, 5)]), False),
        (Sum(7, 3, 2, []), False),
        (Sum(6, 3, 1, []), False),
        (Sum(7, 2, 1, []), False),
    ],
)
def test_another_epoch_and_a_farewell_end_a_step_and_what_is_late_does_not(message: Message, void: bool) -> None:
    steps = worker()
    steps.wait(0.0)
    actions = steps.hear(0.0, (message, []))
    assert bool(actions) is void
    if void:
        assert isinstance(actions[0], Failed)
        assert isinstance(actions[0].error, StepVoid)
        assert actions[0].error.message is message


def test_a_worker_takes_the_sums_of_its_stages_in_their_order_and_counts_its_wait() -> None:
    steps = worker()
    assert steps.wait(10.0) == []
    first, second = Sum(7, 3, 1, [HEAD]), Sum(7, 3, 2, [HEAD])
    assert steps.hear(10.5, (second, [b"early"])) == []
    assert steps.hear(11.0, (first, [b"first"])) == [Done([Part(0, ROOT, first, [b"first"])])]
    assert steps.wait(12.0, (second, [b"second"])) == [Done([Part(0, ROOT, second, [b"second"])])]
    assert steps.wait_s == pytest.approx(1.0)


def test_after_a_step_that_was_broken_off_a_worker_waits_for_the_first_sum_of_the_next() -> None:
    steps, first = worker(), Sum(7, 4, 1, [HEAD])
    steps.wait(10.0, (Sum(7, 3, 1, [HEAD]), [b"of before"]))
    steps.wait(10.0)
    steps.begin(4)
    steps.start(OWN)
    assert steps.wait(11.0, (first, [b"first"])) == [Done([Part(0, ROOT, first, [b"first"])])]
