"""Steps of many rows: two micro-batches take turns, and neither waits for sums of the other."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pytest
import zmq
from integration.nodes import (
    FAST_AND_SLOW,
    Context,
    Keeps,
    Relay,
    Relayed,
    Start,
    Vanishes,
    a_root,
    a_worker,
    assert_are,
    count,
    form,
    inproc,
    missed_messages,
    pieces_of,
    plan_of,
)
from integration.raw_root import RawRoot
from integration.stranger import Stranger
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.errors import WorkerLost
from dllama_zmq.formats import ModelFile
from dllama_zmq.kernels import Batch, KernelChoice, pages_for
from dllama_zmq.quants import F32
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.spec import FloatType

SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, seq_len=128, weight_type=FloatType.Q40)
N_ROWS, FIRST, SECOND = 70, 32, 38
TOKENS = np.random.default_rng(5).integers(3, SPEC.vocab_size, N_ROWS + 1).tolist()
N_STAGES = 4 * SPEC.n_layers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.m", SPEC) as file:
        yield file


@pytest.fixture(scope="module")
def expected(model: ModelFile) -> F32:
    """The logits of one node that is given two tokens at a time."""
    root = Root(zmq.Context.instance(), model, RootSettings(kernels="numpy"))
    pairs = range(0, N_ROWS, 2)
    rows = [root.logits(Batch.alone(i, 2), TOKENS[i : i + 2]) for i in pairs]
    return np.concatenate([*rows, root.logits(Batch.alone(N_ROWS, 1), TOKENS[N_ROWS:])])


def logits(root: Root) -> F32:
    """A prompt of two micro-batches, and a token."""
    prompt = root.logits(Batch.alone(0, N_ROWS), TOKENS[:N_ROWS])
    return np.concatenate([prompt, root.logits(Batch.alone(N_ROWS, 1), TOKENS[N_ROWS:])])


@pytest.mark.parametrize("n_nodes", [1, 2, 4])
@pytest.mark.parametrize("kind", ["workers", "strangers"])
@FAST_AND_SLOW
def test_two_micro_batches_give_the_logits_of_two_tokens_at_a_time(
    kind: str, n_nodes: int, kernels: KernelChoice, context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    for _ in range(n_nodes - 1):
        start(a_worker(context, places) if kind == "workers" else Stranger(context, places.replies[0]))
    with a_root(context, model, places, n_workers=n_nodes - 1, kernels=kernels) as root:
        form(root)
        assert_are(logits(root), expected, kernels)


class HearsTheNextFirst(Keeps):
    """Sends its part of the first micro-batch when it has the root's of the second."""

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        if kind == "partial" and self.step == 1 and self.stage % 2 == 1:
            self.hear_sum(self.stage + 1)
        super().send_part(kind, *fields, arrays=arrays)


@FAST_AND_SLOW
def test_the_root_of_a_pair_computes_the_second_while_the_sums_of_the_first_travel(
    kernels: KernelChoice, context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    start(HearsTheNextFirst(context, places.replies[0]))
    with a_root(context, model, places, kernels=kernels) as root:
        form(root)
        assert_are(logits(root), expected, kernels)


class LetsTheOthersGoAhead(Stranger):
    """Sends a part of the first micro-batch when another worker has sent its part of the second."""

    def __init__(self, context: Context, root: str, sent: list[threading.Event]) -> None:
        super().__init__(context, root, "worker2")
        self._sent = sent

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        if kind == "partial" and self.step == 1 and self.stage % 2 == 1:
            assert self._sent[self.stage + 1].wait(20.0), "no worker goes ahead"
        super().send_part(kind, *fields, arrays=arrays)


class TellsWhatItSent(Stranger):
    def __init__(self, context: Context, root: str, sent: list[threading.Event]) -> None:
        super().__init__(context, root, "worker1")
        self._sent = sent

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        super().send_part(kind, *fields, arrays=arrays)
        if kind == "partial":
            self._sent[self.stage].set()


def test_the_root_keeps_the_part_of_a_worker_that_is_a_micro_batch_ahead_of_another(
    context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    sent = [threading.Event() for _ in range(N_STAGES + 1)]
    start(TellsWhatItSent(context, places.replies[0], sent))
    start(LetsTheOthersGoAhead(context, places.replies[0], sent))
    start(a_worker(context, places, "worker3"))
    with a_root(context, model, places, step_s=10.0, n_workers=3) as root:
        form(root)
        assert_are(logits(root), expected, "numpy")
        assert count(root, "resend") == 0


@FAST_AND_SLOW
def test_a_worker_computes_the_second_while_the_sums_of_the_first_travel(
    kernels: KernelChoice, context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    start(a_worker(context, places, spin_s=0.0 if kernels == "numpy" else 1e-3))
    with RawRoot(context, places.replies[0], places.steps[0]) as root:
        root.take_in(plan_of(SPEC, kernels=kernels, kv="f16", step_s=20.0), pieces_of(model))
        x, ids = bytes(4 * SPEC.dim * N_ROWS), np.arange(pages_for(N_ROWS), dtype="<i4")
        heads = [["f32", N_ROWS, SPEC.dim], ["i32", 1, len(ids)]]
        root.publish("step", 1, 1, [[0, N_ROWS]], [], heads, arrays=(x, ids.tobytes()))
        for stage in range(1, N_STAGES, 2):
            first, second = (root.hear("partial") for _ in range(2))
            for heard, at, n_rows in ((first, stage, FIRST), (second, stage + 1, SECOND)):
                head = [["f32", n_rows, SPEC.dim]]
                assert heard[1] == [1, 1, at, head]
            for heard in (first, second):
                root.publish("sum", *heard[1], arrays=tuple(heard[2]))
        assert root.hear("candidates")[1][:3] == [1, 1, N_STAGES + 1]


@pytest.mark.parametrize("kind", ["worker", "stranger"])
@pytest.mark.parametrize(
    ("n_workers", "passes", "n_missed"),
    [
        # Of x and 8 sums: with what a worker asks for comes what the other micro-batch lacks. Of two nodes the root
        # is a sum of each ahead.
        (1, (), 3),
        (3, (), 3 * 5),
        (1, (0, 2, 4, 6, 8), 2),
        (3, (0, 3, 4, 7, 8), 3 * 2),
    ],
)
def test_messages_of_two_micro_batches_that_a_worker_does_not_hear_are_sent_again(
    kind: str,
    n_workers: int,
    passes: Collection[int],
    n_missed: int,
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
        start(a_worker(context, places) if kind == "worker" else Stranger(context, places.replies[0]))
    with a_root(context, model, places, n_workers=n_workers) as root:
        form(root)
        missed = missed_messages(root)
        relay.cut.set()
        got = root.logits(Batch.alone(0, N_ROWS), TOKENS[:N_ROWS])
        assert_are(got, expected[:N_ROWS], "numpy")
        # A busy machine asks for what is on its way, too; to ask for each lost message alone is 1.8 times as often.
        assert n_missed <= len(missed) < 1.8 * n_missed
        assert count(root, "again") > 0


@pytest.mark.parametrize(
    ("stage", "where"), [(2, "layer 0, attention"), (3, "layer 0, feed-forward"), (6, "layer 1, attention")]
)
def test_the_layer_is_named_in_which_a_worker_vanishes_in_either_micro_batch(
    stage: int, where: str, context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    start(Vanishes(context, places.replies[0], at_stage=stage))
    with a_root(context, model, places) as root:
        form(root)
        with pytest.raises(WorkerLost, match=rf"^worker1 was lost at step 1, {re.escape(where)}: "):
            logits(root)
        start(a_worker(context, places))
        form(root)
        assert_are(logits(root), expected, "numpy")
