"""When measured traffic agrees with the planned one, and the reason that is given where it does not."""

from __future__ import annotations

import pytest
from rich.console import Console

from dllama_zmq.bus.client_messages import KVStatus, NodeStatus, Status, TrafficRow
from dllama_zmq.cli.netstat_figures import measured
from dllama_zmq.cli.netstat_tables import report_tables


def made_up_status(step_messages: int, payload: int, wire: int, n_missed: int = 0) -> Status:
    """A cluster of two nodes that has done 10 steps, for which 10 messages of 1000 bytes (1100 on the wire) are due."""
    row = TrafficRow("worker1", "prediction", "sent", "step", step_messages, payload, wire, 10_000, 11_000)
    nodes = [
        NodeStatus(name, "ready", "", "pi", "", 1, 1, 1, 1, 1, 1, 1, 0, 1, 1.0, "", 0) for name in ("root", "worker1")
    ]
    missed = TrafficRow("worker1", "prediction", "received", "resend", n_missed, 0, 20 * n_missed, 0, 0)
    return Status(
        id=1,
        name="made-up",
        version="0",
        state="ready",
        note="",
        pid=1,
        uptime_s=1.0,
        model="m",
        api="",
        security="local",
        sync="f32",
        kernels="numpy",
        seq_len=8,
        active=0,
        queued=0,
        requests=[],
        kv=KVStatus(64, 8, 0, 0, 0, 0, 0),
        oversubscribed=False,
        steps={"prediction": 10},
        tokens={"prediction": 10},
        sampled={},
        refused={},
        nodes=nodes,
        recent={},
        traffic=[row, missed],
    )


@pytest.mark.parametrize(
    ("messages", "payload", "wire", "agrees", "unfinished"),
    [
        (10, 10_000, 11_110, True, 0),
        (10, 10_000, 11_111, False, 0),
        (10, 10_000, 10_889, False, 0),
        (10, 10_001, 11_000, False, 0),
        (11, 11_000, 12_100, False, 1),
    ],
)
def test_payload_agrees_to_the_byte_and_wire_within_1_percent(
    messages: int, payload: int, wire: int, agrees: bool, unfinished: int
) -> None:
    report = measured(made_up_status(messages, payload, wire))
    assert (report.agrees, report.unfinished_steps) == (agrees, unfinished)


def test_steps_and_messages_that_the_plan_does_not_count_are_given_as_the_reason() -> None:
    report = measured(made_up_status(12, 12_000, 13_200, n_missed=1))
    console = Console(width=120)
    with console.capture() as capture:
        console.print(report_tables(report))
    reason = "measured differs from planned; the plan does not count 2 steps that did not end and 1 message sent again"
    assert reason in capture.get()
