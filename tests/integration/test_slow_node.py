"""The root knows which node the others wait for, and whether its computing, a pause or its messages are slow."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from integration.nodes import FAST_AND_SLOW, Context, Start, a_root, a_worker, form, inproc, tcp
from integration.stranger import Stranger
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.bus.client_messages import NodeTimes, PhaseTimes, Status, StepStats
from dllama_zmq.cli.slow_nodes import slowness
from dllama_zmq.formats import ModelFile
from dllama_zmq.kernels import Batch, KernelChoice
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.recent import RECENT_S
from dllama_zmq.root.report import ClusterFacts, cluster_status
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sharding import Ask
from dllama_zmq.spec import FloatType

SLOW_S = 0.02  # much more than a part of this model takes
N_STEPS = 15
SPAN_S = 0.2

Kind = Literal["computing", "paused", "messages"]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[ModelFile]:
    numbers = {"dim": 128, "hidden_dim": 256, "n_heads": 8, "n_kv_heads": 8}
    spec = tiny_spec(**numbers, n_layers=1, weight_type=FloatType.Q40)  # three parts: each is SLOW_S of a step
    with write_tiny_model(tmp_path / "m.m", spec) as model:
        yield model


class Slow(Stranger):
    """Takes SLOW_S longer than it needs for each part while `slow`: on a core, without one, or after computing."""

    def __init__(self, context: Context, root: str, name: str, kind: Kind) -> None:
        super().__init__(context, root, name)
        self.slow = True
        self._kind = kind

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...] = ()) -> None:
        if self.slow and self._kind == "computing":
            until = time.thread_time() + SLOW_S
            while time.thread_time() < until:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2000)  # lets the other nodes have the interpreter
        elif self.slow:
            time.sleep(SLOW_S)  # this is the load, not a wait for something to happen
        if self.slow and self._kind == "messages":
            self.wait_s += SLOW_S
        super().send_part(kind, *fields, arrays=arrays)


def run_steps(root: Root, n_steps: int = N_STEPS) -> list[StepStats]:
    """Steps of one token; the figures of each."""
    root.set_phase("prediction")
    return [root.evaluate(Batch.alone(i, 1), [i + 5], {0: Ask(1)})[1] for i in range(n_steps)]


def status_of(root: Root) -> Status:
    return cluster_status(ClusterFacts("test", "", ""), Engine(root, 1))


def recent(root: Root) -> PhaseTimes:
    return status_of(root).recent["prediction"]


def parts(node: NodeTimes) -> dict[Kind, float]:
    """Why the others waited for a node, in seconds."""
    computing_s = node.waited_for_s - node.paused_s - node.messages_s
    return {"computing": computing_s, "paused": node.paused_s, "messages": node.messages_s}


def steps_until(root: Root, happened: Callable[[PhaseTimes], bool]) -> int:
    """Steps until what they took is such, which must be soon: after some spans of steps, each of at least 20.

    Returns how many it took.
    """
    took_s, n_steps = 0.0, 0
    while not happened(recent(root)):
        assert took_s < 12 * SPAN_S or n_steps < 100, recent(root)
        took_s += sum(figures.wall_s for figures in run_steps(root))
        n_steps += N_STEPS
    return n_steps


@FAST_AND_SLOW
@pytest.mark.parametrize(("kind", "n_workers"), [("computing", 1), ("computing", 3), ("paused", 1), ("messages", 3)])
def test_a_slow_worker_is_named_with_what_is_slow(
    context: Context, start: Start, model: ModelFile, kernels: KernelChoice, kind: Kind, n_workers: int
) -> None:
    places = inproc()
    with a_root(context, model, places, n_workers=n_workers, kernels=kernels) as root:
        slow = f"worker{n_workers}"
        start(Slow(context, places.replies[0], slow, kind))
        for i in range(1, n_workers):
            start(a_worker(context, places, f"worker{i}"))
        form(root)
        figures = run_steps(root)
        # More than these only where the computer's own pauses of single steps hide what all of them have in common.
        n_steps = N_STEPS + steps_until(root, lambda now: now.slowest == slow)
        status = status_of(root)
    found = status.recent["prediction"]
    assert (found.slowest, found.share > 0.5) == (slow, True), found
    assert found.steps == n_steps or found.wall_s > RECENT_S, found
    last = Counter(max(one.waited_for_s, key=one.waited_for_s.__getitem__, default="") for one in figures)
    assert last[slow] > N_STEPS / 2, last  # in a single step another may be paused for longer
    parts_s, added_s = parts(found.nodes[slow]), found.steps * (2 * model.spec.n_layers + 1) * SLOW_S
    if parts_s["paused"] < added_s or kind == "paused":  # else the computer paused it for longer
        assert parts_s[kind] > 0.5 * added_s, found  # the root computes meanwhile, and that is not waiting
        assert kind == "computing" or parts_s["computing"] < 0.5 * added_s, found
    of_workers_s = sum(one.waited_for_s for name, one in found.nodes.items() if name != "root")
    assert of_workers_s <= found.nodes["root"].wait_s, "each wait of the root counts for one worker"
    # A pause of this computer may outweigh what the test has slowed down.
    does = {"computing": "computes longer", "paused": "waits for a core", "messages": "sends late"}
    most = max(parts_s, key=parts_s.__getitem__)
    assert any(line.startswith(f"slowest: {slow} {does[most]}") for line in slowness(status))


@FAST_AND_SLOW
def test_neither_of_two_nodes_with_a_slow_link_is_named_and_both_wait_for_messages(
    context: Context, start: Start, model: ModelFile, kernels: KernelChoice
) -> None:
    places = inproc()
    with a_root(context, model, places, kernels=kernels) as root:
        start(Slow(context, places.replies[0], "worker1", "messages"))
        form(root)
        run_steps(root)
        status = status_of(root)
    found, added_s = status.recent["prediction"], N_STEPS * 2 * model.spec.n_layers * SLOW_S
    assert found.slowest == ""
    assert min(parts(node)["messages"] for node in found.nodes.values()) > 0.5 * added_s, found
    assert slowness(status)[0].startswith("no node is slower than the others")


def test_a_worker_that_recovers_is_named_no_more_and_one_that_becomes_slow_is(
    context: Context, start: Start, model: ModelFile
) -> None:
    places = inproc()
    with a_root(context, model, places, n_workers=3, recent_s=SPAN_S) as root:
        workers = [Slow(context, places.replies[0], f"worker{i}", "messages") for i in (1, 2)]
        workers[1].slow = False
        for worker in (*workers, a_worker(context, places, "worker3")):
            start(worker)
        form(root)
        run_steps(root, 4 * N_STEPS)
        assert recent(root).slowest == "worker1"
        workers[0].slow = False
        steps_until(root, lambda now: now.slowest != "worker1")
        workers[1].slow = True
        steps_until(root, lambda now: now.slowest == "worker2")


@pytest.mark.parametrize("oversubscribed", [False, True])
def test_where_threads_outnumber_cores_a_node_that_waits_leaves_its_core_to_the_others(
    context: Context, model: ModelFile, oversubscribed: bool
) -> None:
    settings = RootSettings(names=["worker1"], kernels="numpy", oversubscribed=oversubscribed)
    root = Root(context, model, settings, inproc())
    try:
        assert root.link is not None
        assert (root.link.spin_s == 0.0) is oversubscribed
    finally:
        root.close("the test is over")


def test_where_threads_outnumber_cores_no_node_of_this_computer_is_named(
    context: Context, start: Start, model: ModelFile
) -> None:
    places = inproc()
    with a_root(context, model, places, oversubscribed=True) as root:
        start(Slow(context, places.replies[0], "worker1", "paused"))
        form(root)
        figures = run_steps(root)
        status = status_of(root)
    found = status.recent["prediction"]
    assert found.nodes["root"].wait_s > 0.5 * N_STEPS * SLOW_S
    assert (found.slowest, status.oversubscribed) == ("", True)
    assert all(one.waited_for_s == {} for one in figures)
    (line,) = slowness(status)
    assert line.startswith("This computer has fewer cores than threads")


def test_a_process_that_is_stopped_now_and_then_is_named_and_not_for_its_computing(
    context: Context, model: ModelFile
) -> None:
    places, stop_s = tcp(), 0.3  # more than a busy machine adds to a step
    command = [sys.executable, "-m", "dllama_zmq", "worker", "--root", places.replies[0], "-t", "1"]
    with (
        a_root(context, model, places) as root,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker,
    ):
        try:
            form(root)
            root.set_phase("prediction")
            for i in range(N_STEPS):
                worker.send_signal(signal.SIGSTOP)
                goes_on = threading.Timer(stop_s, worker.send_signal, [signal.SIGCONT])
                goes_on.start()
                root.evaluate(Batch.alone(i, 1), [i + 5], {0: Ask(1)})
                goes_on.join()
            found = recent(root)
        finally:
            worker.kill()
    node = found.nodes["worker1"]
    assert (found.slowest, found.share > 0.5) == ("worker1", True), found
    assert node.waited_for_s > 0.5 * N_STEPS * stop_s, found
    assert node.paused_s + node.messages_s > 0.8 * node.waited_for_s, found
