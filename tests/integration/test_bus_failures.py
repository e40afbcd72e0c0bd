"""Workers that vanish, fail, answer wrongly or not at all, on real sockets: one clear error each, in time, and the
cluster goes on."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from integration.nodes import (
    FAST_AND_SLOW,
    SOON_S,
    TOKENS,
    Context,
    Start,
    Transport,
    Vanishes,
    a_root,
    a_worker,
    assert_are,
    form,
    inproc,
    logits,
    tcp,
)
from integration.stranger import Again, Exit, Stranger

from dllama_zmq.errors import RemoteError, WorkerLost
from dllama_zmq.formats import ModelFile
from dllama_zmq.kernels import Batch, KernelChoice
from dllama_zmq.quants import F32
from dllama_zmq.sharding import Ask


@pytest.mark.parametrize(
    ("stage", "where", "transport"),
    [(1, "layer 0, attention", inproc), (4, "layer 1, feed-forward", tcp), (5, "logits", inproc)],
)
@FAST_AND_SLOW
def test_a_worker_that_vanishes_in_a_step_is_named_with_its_stage_and_can_be_replaced(
    stage: int,
    where: str,
    transport: Transport,
    kernels: KernelChoice,
    context: Context,
    model: ModelFile,
    expected: F32,
    start: Start,
) -> None:
    places = transport()
    start(Vanishes(context, places.replies[0], at_stage=stage))
    with a_root(context, model, places, kernels=kernels) as root:
        form(root)
        begun = time.monotonic()
        with pytest.raises(WorkerLost, match=rf"^worker1 was lost at step 1, {where}: its connection broke, or "):
            logits(root)
        assert time.monotonic() - begun < SOON_S
        start(a_worker(context, places, watch=transport is tcp))
        form(root)
        assert_are(logits(root), expected, kernels)


class FailsWhenAskedForMore(Stranger):
    """Ends without a word, or fails, instead of sending more candidates of its first step."""

    fault = ""

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        if fields[1:3] != (1, 6):
            super().send_part(kind, *fields, arrays=arrays)
        elif self.fault:
            self.send("fault", *fields[:2], self.fault)
        else:
            raise Exit


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("", WorkerLost, "^worker1 was lost at step 1, logits: its connection broke, or "),
        ("the cat is on the keyboard", RemoteError, "^worker1 failed: the cat is on the keyboard$"),
    ],
)
def test_a_step_that_breaks_off_when_more_is_asked_is_void_and_the_next_one_is_whole(
    fault: str, error: type[Exception], says: str, context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    worker = FailsWhenAskedForMore(context, places.replies[0])
    worker.fault = fault
    start(worker)
    with a_root(context, model, places) as root:
        form(root)
        root.evaluate(Batch.alone(0, 3), TOKENS[:3], {2: Ask(2)})
        with pytest.raises(error, match=says):
            root.more({2: 5})
        assert not root.ready
        if not fault:
            start(a_worker(context, places))
        form(root)
        root.evaluate(Batch.alone(0, 3), TOKENS[:3], {2: Ask(2)})
        [row], _ = root.more({2: 5})
        assert row.ids[:5].tolist() == np.argsort(-expected[2])[:5].tolist()
        assert root.link is not None
        assert any(tally.phase == "void" and tally.kind == "more_candidates" for tally in root.link.meter.tallies())


class Fails(Stranger):
    """Has an exception in its first step."""

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        if self.step == 1:
            raise ValueError("the cat is on the keyboard")
        super().send_part(kind, *fields, arrays=arrays)


def test_a_workers_exception_is_raised_on_the_root_with_its_name_and_the_cluster_continues(
    context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    start(Fails(context, places.replies[0]))
    with a_root(context, model, places) as root:
        form(root)
        with pytest.raises(RemoteError, match=r"^worker1 failed: the cat is on the keyboard$") as caught:
            logits(root)
        assert caught.value.node == "worker1"
        assert not root.ready
        form(root)
        np.testing.assert_array_equal(logits(root), expected)


class AnswersWrongly(Stranger):
    """Sends other arrays than it should in its first step."""

    at_stage = 0
    heads: tuple[list[Any], ...] = ()

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        if self.step == 1 and self.stage == self.at_stage:
            size = {"f32": 4, "f16": 2, "i32": 4, "f64": 8, "u8": 1}
            arrays = tuple(b"\x7f" * (size[t] * rows * columns) for t, rows, columns in self.heads)
            fields = (*fields[:-1], list(self.heads))
        super().send_part(kind, *fields, arrays=arrays)


@pytest.mark.parametrize(
    ("stage", "heads", "says"),
    [
        (
            2,
            [["f32", 3, 64]],
            "its partial sum at step 1, layer 0, feed-forward is an array of 3 x 64 f32; expected 3 x",
        ),
        (1, [["f16", 3, 128]], "an array of 3 x 128 f16; expected 3 x 128 f32"),
        (1, [["u8", 3, 512]], "expected 3 x 128 f32"),
        (1, [["f32", 128, 3]], "expected 3 x 128 f32"),
        (1, [], "its partial sum at step 1, layer 0, attention is "),
        (
            5,
            [["i32", 1, 0], ["f32", 1, 431], ["f64", 3, 2]],
            "its candidates are an array of 1 x 431 f32; expected 1 x 432 f32",
        ),
        (5, [["i32", 1, 0], ["f64", 1, 432], ["f64", 3, 2]], "its candidates are an array"),
        (5, [["i32", 1, 0], ["f32", 1, 432], ["f64", 3, 1]], "its candidates are an array"),
        (5, [], "its candidates are 0 arrays; expected 3"),
    ],
)
def test_a_part_of_another_shape_or_type_is_its_senders_error(
    stage: int, heads: list[list[Any]], says: str, context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    worker = AnswersWrongly(context, places.replies[0])
    worker.at_stage, worker.heads = stage, tuple(heads)
    start(worker)
    with a_root(context, model, places) as root:
        form(root)
        with pytest.raises(RemoteError, match=f"^worker1 failed: .*{says}"):
            logits(root)


def test_candidates_of_foreign_tokens_are_their_senders_error(context: Context, model: ModelFile, start: Start) -> None:
    places = inproc()
    worker = AnswersWrongly(context, places.replies[0])
    worker.at_stage, worker.heads = 5, (["i32", 1, 2], ["f32", 1, 2], ["f64", 1, 2])
    start(worker)
    with a_root(context, model, places) as root:
        form(root)
        with pytest.raises(RemoteError, match="not of its part of the vocabulary"):
            root.evaluate(Batch.alone(0, 3), TOKENS[:3], {2: Ask(2)})


class IsSilent(Stranger):
    """Does not send its part of one stage of its first step."""

    at_stage = 2

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        if not (self.step == 1 and self.stage == self.at_stage):
            super().send_part(kind, *fields, arrays=arrays)


@pytest.mark.parametrize(("stage", "where"), [(2, "layer 0, feed-forward"), (5, "logits")])
@FAST_AND_SLOW
def test_a_silent_worker_is_named_with_the_seconds_and_asked_to_join_again(
    stage: int, where: str, kernels: KernelChoice, context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    worker = IsSilent(context, places.replies[0])
    worker.at_stage = stage
    start(worker)
    with a_root(context, model, places, step_s=0.6, kernels=kernels) as root:
        form(root)
        begun = time.monotonic()
        with pytest.raises(
            WorkerLost, match=rf"^worker1 did not answer at step 1, {where} for \d+\.\d s; .* raise limits\.step_s"
        ):
            logits(root)
        assert time.monotonic() - begun < SOON_S
        form(root)
        assert worker.n_joins == 2
        assert_are(logits(root), expected, kernels)


class Chatters(Stranger):
    """Never answers a stage, but sends other messages until it hears a bye."""

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        while (arrived := self.receive(0.0002)) is None or arrived[0] != "bye":
            self.send("partial", 1, 2, 3, [])
            self.send("beacon_ack", 1)
            self.dealer.send_multipart([b"no message at all"])
        raise Again


@FAST_AND_SLOW
def test_talk_that_never_ends_does_not_outlast_a_deadline(
    kernels: KernelChoice, context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    start(Chatters(context, places.replies[0]))
    with a_root(context, model, places, step_s=0.5, kernels=kernels) as root:
        form(root)
        begun = time.monotonic()
        with pytest.raises(WorkerLost, match=r"^worker1 did not answer at step 1, layer 0, attention for \d+\.\d s"):
            logits(root)
        assert time.monotonic() - begun < SOON_S


class RepeatsItself(Stranger):
    """Sends every part twice, after parts of other epochs, steps, stages and kinds."""

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        epoch, step, stage = fields[:3]
        noise = tuple(b"\x7f" * len(array) for array in arrays)
        for other in [(epoch - 1, step, stage), (epoch + 1, step, stage), (epoch, step - 1, stage), (0, 0, 0)]:
            super().send_part(kind, *other, *fields[3:], arrays=noise)
        for other_stage in (stage - 1, stage + 1):
            if other_stage >= 0:
                super().send_part(kind, epoch, step, other_stage, *fields[3:], arrays=noise)
        if kind == "partial":
            super().send_part("candidates", epoch, step, stage, 0.0, 0.0, [], arrays=())
        else:
            super().send_part("partial", epoch, step, stage, fields[5], arrays=noise)
        self.send("fault", epoch - 1, step, "of an old epoch")
        self.send("fault", epoch, step - 1, "of an old step")
        self.send("resend", epoch, step - 1, stage)
        self.send("beacon_ack", epoch - 1)
        super().send_part(kind, *fields, arrays=arrays)
        super().send_part(kind, *fields, arrays=noise)


@FAST_AND_SLOW
def test_parts_of_other_epochs_steps_stages_and_kinds_are_ignored(
    kernels: KernelChoice, context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    start(RepeatsItself(context, places.replies[0]))
    with a_root(context, model, places, kernels=kernels) as root:
        form(root)
        assert_are(logits(root), expected, kernels)
        assert_are(logits(root), expected, kernels)
