"""What `up` says where there is no terminal: one line for a worker that is quick, and never nothing for long."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dllama_zmq.bus.client_messages import NodeStatus, Status
from dllama_zmq.cli.show import UpProgress

MB = 1 << 20


def node(name: str, state: str, sent_bytes: int = 0, reason: str = "has not joined yet", seconds: float = 0.4):
    reason = reason if state == "absent" else ""
    return NodeStatus(name, state, reason, 1, 4 * MB, 0, sent_bytes, 4 * MB, seconds, {}, {}, {}, {})


def status(*workers: NodeStatus) -> Status:
    nodes = [node("root", "ready"), *workers]
    return Status(1, "small", "0", "forming", "", 1, 0.0, "m", "f32", "simd", 64, 0, 0, {}, {}, {}, nodes, [])


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that are said of workers as they are at times."""

    def lines(*steps: tuple[float, list[NodeStatus]]) -> list[str]:
        now = 0.0
        with UpProgress(clock=lambda: now) as progress:
            for at, workers in steps:
                now = at
                progress.show(status(*workers))
        return capsys.readouterr().err.splitlines()

    return lines


def test_a_worker_that_loads_within_a_second_takes_one_line(told):
    states = ["absent", "loading", "loading", "loaded", "ready", "ready"]
    steps = [(0.2 * i, [node("worker1", state, min(i, 2) * 2 * MB)]) for i, state in enumerate(states)]
    assert told(*steps) == ["worker1: ready, 4.0 MB of weights in 0.4 s"]


def test_while_workers_load_something_is_said_of_them_all_before_two_seconds_pass(told):
    workers = [node("a", "ready", 4 * MB), node("b", "loading", MB), node("c", "loading", 4 * MB), node("d", "absent")]
    said = told(*((0.1 * i, workers) for i in range(60)))  # up to 5.9 s
    line = "b: receiving weights, 1.0 MB of 4.0 MB; c: getting ready; d: has not joined yet"
    assert said == ["a: ready, 4.0 MB of weights in 0.4 s", line, line, line]


def test_of_many_workers_some_are_named_and_the_others_counted(told):
    (line,) = told((1.5, [node(f"w{i}", "absent") for i in range(7)]))
    assert line == "w0: has not joined yet; w1: has not joined yet; w2: has not joined yet; and 4 more"


def test_a_worker_that_is_lost_is_told_at_once(told):
    lost = node("worker1", "absent", reason="was lost: its connection broke")
    assert told((0.0, [node("worker1", "loading")]), (0.1, [lost]), (0.2, [lost])) == [
        "worker1: was lost: its connection broke"
    ]
