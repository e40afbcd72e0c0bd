"""No step before every worker hears; what is lost on PUB is asked for and sent again."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from integration.nodes import (
    FAST_AND_SLOW,
    SOON_S,
    TOKENS,
    Context,
    Keeps,
    Relay,
    Relayed,
    Start,
    a_root,
    a_worker,
    assert_are,
    form,
    inproc,
    logits,
    missed_messages,
)
from integration.stranger import Stranger

from dllama_zmq.bus.messages import Beacon
from dllama_zmq.errors import WorkerLost
from dllama_zmq.formats import ModelFile
from dllama_zmq.kernels import Batch, KernelChoice
from dllama_zmq.quants import F32


class HearsNothing(Stranger):
    """Loads, but never says that it heard a beacon."""

    def send_beacon_ack(self, epoch: int) -> None:
        pass


def test_no_step_is_published_before_every_worker_has_heard_a_beacon(
    context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    listener = context.socket(zmq.SUB)
    listener.set(zmq.SUBSCRIBE, b"")
    start(HearsNothing(context, places.replies[0]))
    with a_root(context, model, places) as root:
        listener.connect(places.steps[0])
        begun = time.monotonic()
        with pytest.raises(WorkerLost, match=r"^worker1 is loaded$"):
            form(root, 1.0)
        assert 1.0 <= time.monotonic() - begun < SOON_S
        with pytest.raises(WorkerLost, match="no step can begin: worker1 is loaded"):
            logits(root)
        assert root.link is not None
        root.link.publish(Beacon(0))
        kinds = []
        while (fields := next_of(listener)) != ["beacon", 0]:
            kinds.append(fields[0])
        assert set(kinds) == {"beacon"}
    listener.close(linger=0)


def next_of(listener: zmq.Socket[bytes]) -> list[Any]:
    assert listener.poll(20_000), "nothing was published"
    fields: list[Any] = msgpack.unpackb(listener.recv_multipart()[0])
    return fields[1:]


def test_a_step_that_would_begin_while_a_worker_joins_anew_is_refused_at_once(
    context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    start(a_worker(context, places))
    with a_root(context, model, places) as root:
        form(root)
        root.roster.lose(root.roster.members[0], "was unplugged")
        with pytest.raises(WorkerLost, match="no step can begin: worker1 is absent"):
            logits(root)
        start(a_worker(context, places))
        form(root)
        np.testing.assert_array_equal(logits(root), expected)


@pytest.mark.parametrize(
    ("kind", "n_workers", "passes", "n_missed", "kernels"),
    [
        # x, and the sums of 4 stages; of two nodes the root is one sum ahead, and two messages go out at once
        ("a worker", 1, (), 3, "numpy"),
        ("a stranger", 1, (), 3, "numpy"),
        ("a worker", 3, (), 15, "numpy"),
        ("a stranger", 3, (), 15, "numpy"),
        ("a worker", 1, (0, 2, 4), 2, "numpy"),
        ("a worker", 1, (1, 3), 3, "numpy"),
        ("a worker", 3, (0, 2, 4), 6, "numpy"),
        ("a worker", 1, (0, 2, 4), 2, "simd"),
        ("a worker", 3, (), 15, "simd"),
    ],
)
def test_a_lost_broadcast_is_sent_again(
    kind: str,
    n_workers: int,
    passes: tuple[int, ...],
    n_missed: int,
    kernels: KernelChoice,
    context: Context,
    model: ModelFile,
    expected: F32,
    start: Start,
) -> None:
    at = inproc()
    places = Relayed(at.steps, at.replies, relay=f"{at.steps[0]}-relay")
    relay = Relay(context, places, passes)
    start(relay)
    for _ in range(n_workers):
        start(a_worker(context, places) if kind == "a worker" else Stranger(context, places.replies[0]))
    with a_root(context, model, places, n_workers=n_workers, kernels=kernels) as root:
        form(root)
        assert_are(logits(root), expected, kernels)
        missed = missed_messages(root)
        relay.cut.set()
        got = root.logits(Batch.alone(0, 3), TOKENS[:3])
        assert_are(got, expected[:3], kernels)
        # A busy machine asks for what is on its way, too; to ask for each lost message alone is 1.8 times as often.
        assert n_missed <= len(missed) < 1.8 * n_missed


class HearsFirst(Keeps):
    """Sends no partial sum before it has the root's."""

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        if kind == "partial":
            self.hear_sum(self.stage)
        super().send_part(kind, *fields, arrays=arrays)


@FAST_AND_SLOW
def test_the_root_of_a_pair_sends_its_part_without_waiting_for_the_workers(
    kernels: KernelChoice, context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    start(HearsFirst(context, places.replies[0]))
    with a_root(context, model, places, kernels=kernels) as root:
        form(root)
        assert_are(logits(root), expected, kernels)
