"""The node that the others wait for is named; where no node stands out, or chance may have done it, none is."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from dllama_zmq.bus.client_messages import NodeTimes, StepStats
from dllama_zmq.bus.slowest import Slowest, Spent, StepSums, slowest, times_of_step
from dllama_zmq.bus.waits import Wait

N_STEPS = 100


def found(steps: Sequence[Mapping[str, float]], step_s: float, n_nodes: int) -> Slowest | None:
    """Of steps of `step_s` seconds, in each of which the others wait so long for these nodes."""
    sums = StepSums()
    for waited_for_s in steps:
        sums.add(1, StepStats(step_s, 0.0, 0, 0, dict(waited_for_s)))
    return sums.slowest(n_nodes)


@pytest.mark.parametrize(
    ("waited_for_s", "n_nodes", "expected"),
    [
        ({"pi2": 0.5, "pi3": 6.0, "pi4": 0.5}, 4, Slowest("pi3", 6 / 7)),
        ({"root": 3.0, "pi2": 0.5}, 2, Slowest("root", 3 / 3.5)),
        ({"pi2": 3.0}, 2, Slowest("pi2", 1.0)),
        ({"pi2": 2.1, "pi3": 2.0, "pi4": 2.0}, 4, None),
        ({"pi2": 0.9}, 2, None),
        ({"root": 3.0, "pi2": 2.5}, 2, None),
        ({"root": 0.0}, 1, None),
        ({}, 2, None),
    ],
    ids=[
        "a worker",
        "the root",
        "of two",
        "equal nodes",
        "9% of the time",
        "5% more than the other",
        "one node",
        "nothing measured",
    ],
)
def test_a_node_is_named_where_steps_would_be_a_tenth_shorter_without_it(
    waited_for_s: dict[str, float], n_nodes: int, expected: Slowest | None
) -> None:
    assert slowest(waited_for_s, squares=0.0, wall_s=10.0, n_nodes=n_nodes) == expected


def test_one_hiccup_is_chance_however_long_and_nine_are_not() -> None:
    steps = [{"pi3": 0.0} for _ in range(N_STEPS)]
    for i in range(9):
        assert found(steps, 0.1, 4) is None, f"{i} stops of 2 s in {N_STEPS} steps"
        steps[10 * i] = {"pi3": 2.0}
    assert found(steps, 0.1, 4) == Slowest("pi3", 1.0)


def test_a_node_that_is_late_in_every_step_is_named_after_nine() -> None:
    steps = [{"pi3": 0.05}] * 9
    assert found(steps[:8], 0.1, 4) is None
    assert found(steps, 0.1, 4) == Slowest("pi3", 1.0)


@pytest.mark.parametrize("n_nodes", [2, 4, 8])
@pytest.mark.parametrize("n_steps", [5, 20, N_STEPS])
@pytest.mark.parametrize("jitter", [0.2, 1.0, 5.0])
def test_equal_nodes_are_hardly_ever_named_whatever_the_noise(n_nodes: int, n_steps: int, jitter: float) -> None:
    """Each takes 1 and an exponentially distributed while, as where other programs run: long tails, no favourite."""
    rng = random.Random(1)
    n_named, n_windows = 0, 400
    for _ in range(n_windows):
        steps, wall_s = [], 0.0
        for _ in range(n_steps):
            took = [1.0 + rng.expovariate(1 / jitter) for _ in range(n_nodes)]
            last = max(range(n_nodes), key=took.__getitem__)
            wall_s += took[last]
            steps.append({str(last): took[last] - sum(took) / n_nodes})
        n_named += found(steps, wall_s / n_steps, n_nodes) is not None
    assert n_named <= 0.01 * n_windows


@pytest.mark.parametrize("jitter", [0.2, 0.5])
def test_a_node_half_as_fast_is_named_in_spite_of_noise(jitter: float) -> None:
    rng = random.Random(2)
    n_named, n_windows = 0, 200
    for _ in range(n_windows):
        steps, wall_s = [], 0.0
        for _ in range(N_STEPS):
            took = [speed + rng.expovariate(1 / jitter) for speed in (1.0, 1.0, 2.0, 1.0)]
            last = max(range(4), key=took.__getitem__)
            wall_s += took[last]
            steps.append({str(last): took[last] - sorted(took)[-2]})
        one = found(steps, wall_s / N_STEPS, 4)
        n_named += one is not None and one.name == "2"
    assert n_named >= 0.95 * n_windows


# --- one step -----------------------------------------------------------------------------------------------------


def waits(seconds: float, n_bytes: int = 0) -> Wait:
    wait = Wait()
    wait.add(seconds, n_bytes)
    return wait


def test_workers_wait_for_a_root_that_computes_longer_than_each_of_them() -> None:
    spent = {"root": Spent(3.0, 0.5, 0.0), "pi2": Spent(1.0, 0.0, 2.0), "pi3": Spent(2.5, 0.0, 0.5)}
    times = times_of_step(spent, {"pi2": Wait(), "pi3": Wait()})
    assert times["root"] == NodeTimes(3.0, 0.0, 0.5, 0.5, 0.0)
    assert times["pi2"].waited_for_s == times["pi3"].waited_for_s == 0.0
    spent["root"] = Spent(2.0, 0.0, 0.5)
    assert times_of_step(spent, {"pi2": Wait(), "pi3": Wait()})["root"].waited_for_s == 0.0


@pytest.mark.parametrize(
    ("pi2", "waited_s", "expected"),
    [
        (Spent(3.0, 0.0, 0.0), 2.0, (2.0, 0.0, 0.0)),
        (Spent(3.0, 1.5, 0.0), 2.0, (2.0, 1.5, 0.0)),
        (Spent(3.0, 2.5, 0.0), 2.0, (2.0, 2.0, 0.0)),
        (Spent(1.0, 0.0, 2.0), 2.0002, (2.0, 0.0, 2.0)),
        (Spent(2.0, 0.0, 1.0), 2.0002, (2.0, 0.0, 1.0)),
        (Spent(1.0, 0.9, 0.0), 0.0002, (0.0, 0.0, 0.0)),
    ],
    ids=["computing", "half paused", "paused", "messages", "half computing", "not waited for"],
)
def test_the_wait_for_a_worker_is_its_computing_or_its_pause_or_its_messages(
    pi2: Spent, waited_s: float, expected: tuple[float, float, float]
) -> None:
    spent = {"root": Spent(1.0, 0.0, waited_s), "pi2": pi2, "pi3": Spent(1.0, 0.0, 0.0)}
    times = times_of_step(spent, {"pi2": waits(waited_s), "pi3": Wait()})["pi2"]
    assert (times.waited_for_s, times.paused_s, times.messages_s) == pytest.approx(expected)
    assert (times.compute_s, times.wait_s) == (pi2.compute_s, pi2.wait_s)


def test_two_nodes_that_wait_alike_for_messages_are_waited_for_alike() -> None:
    """Whose the slow link is cannot be known; a worker that was late by itself has not waited."""
    alike = times_of_step({"root": Spent(1.0, 0.0, 2.0), "pi2": Spent(1.0, 0.0, 2.0)}, {"pi2": waits(2.0)})
    assert alike["root"].messages_s == alike["pi2"].messages_s == pytest.approx(2.0 - 0.0002)
    late = times_of_step({"root": Spent(1.0, 0.0, 2.0), "pi2": Spent(1.0, 0.0, 0.0)}, {"pi2": waits(2.0)})
    assert (late["root"].waited_for_s, late["pi2"].messages_s) == pytest.approx((0.0, 2.0 - 0.0002))
    slow = times_of_step({"root": Spent(3.0, 0.5, 0.0), "pi2": Spent(1.0, 0.0, 2.0)}, {"pi2": waits(0.0)})
    assert slow["root"] == NodeTimes(3.0, 0.0, 2.0, 0.5, 0.0)


def test_the_time_of_messages_on_a_wired_network_counts_for_no_node() -> None:
    spent = {"root": Spent(1.0, 0.0, 0.05), "pi2": Spent(1.0, 0.0, 0.05)}
    small, large = waits(0.05), waits(0.05, n_bytes=10_000_000)
    assert times_of_step(spent, {"pi2": small})["pi2"].waited_for_s == pytest.approx(0.05 - 0.0002)
    assert times_of_step(spent, {"pi2": large})["pi2"].waited_for_s == 0.0
