"""A worker and a root that talks nonsense: the worker allocates nothing, says what is wrong and joins again."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgpack
import numpy as np
import pytest
from integration.nodes import SPEC, Context, Start, a_worker, inproc, pieces_of, plan_of
from integration.raw_root import RawRoot

from dllama_zmq.formats import ModelFile

plan_fields = partial(plan_of, SPEC)

ABSURD = {
    "a width beyond all bounds": plan_fields({"dim": 1 << 40}),
    "weights of petabytes": plan_fields({"dim": 1 << 20, "hidden_dim": 1 << 22, "n_layers": 4096}),
    "keys of petabytes": plan_fields(pages=1 << 31),
    "a negative width": plan_fields({"dim": -128}),
    "no heads": plan_fields({"n_heads": 0}),
    "three nodes": plan_fields(nodes=3),
    "more nodes than heads": plan_fields(nodes=16),
    "another architecture": plan_fields({"arch": "perceptron"}),
    "a weight type that is none": plan_fields({"weight_type": 9}),
    "a width that is no number": plan_fields({"dim": "wide"}),
    "no pages": plan_fields(pages=0),
    "rotation by nothing": plan_fields({"rope": {"theta": float("nan")}}),
    "an empty model": [{}, *plan_fields()[1:]],
}


def test_an_absurd_plan_is_refused_without_allocating_and_the_worker_joins_again(
    context: Context, start: Start
) -> None:
    places = inproc()
    with RawRoot(context, places.replies[0], places.steps[0]) as root:
        tracemalloc.start()
        for number in range(len(ABSURD)):
            start(a_worker(context, places, f"w{number}"))
        given: dict[bytes, str] = {}  # what each identity has been asked for; a worker has another when it joins again
        faults, again = {}, set()
        until = time.monotonic() + 60
        while len(again) < len(ABSURD):
            assert time.monotonic() < until, f"no word of {set(ABSURD) - again}"
            if not root.router.poll(100):
                continue
            identity, header, *_ = root.router.recv_multipart()
            _, kind, *fields = msgpack.unpackb(header)
            if kind == "fault":
                faults[given[identity]] = fields[2]
            elif kind == "join" and identity not in given:
                absurdity = list(ABSURD)[int(fields[0][1:])]
                if absurdity in faults:
                    again.add(absurdity)
                    continue
                given[identity] = absurdity
                root.say(identity, "welcome", 1, "worker1", *reversed(root.addresses))
                root.say(identity, "plan", *ABSURD[absurdity])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 << 20
    assert all("a plan" in text for text in faults.values()), faults
    assert "use more nodes" in faults["weights of petabytes"]
    assert "split over 1, 2 or 4 nodes" in faults["three nodes"]


def test_addresses_that_are_none_in_a_welcome_send_the_worker_back_to_its_root(context: Context, start: Start) -> None:
    places = inproc()
    start(a_worker(context, places))
    with RawRoot(context, places.replies[0], places.steps[0]) as root:
        for steps, replies in [("nowhere", places.replies[0]), (places.steps[0], "nowhere")]:
            identity, _, _ = root.hear("join")
            root.say(identity, "welcome", 1, "worker1", steps, replies)
        root.hear("join")


X, PAGE = ["f32", 1, SPEC.dim], ["i32", 1, 1]


def step_of(
    number: int,
    spans: list[list[int]],
    ids: Sequence[int] = (0,),
    asks: Sequence[list[Any]] = (),
    heads: Sequence[list[Any]] = (X, PAGE),
) -> tuple[list[Any], list[bytes]]:
    """The fields and the frames of a step of one row; of these all but the page ids are zeros."""
    sizes = {"f32": 4, "f16": 2, "i32": 4, "u8": 1}
    frames = [bytes(sizes[of] * rows * columns) for of, rows, columns in heads]
    frames[1:2] = [np.array(ids, "<i4").tobytes()] if frames[1:2] else []
    heads = [*heads[:1], ["i32", 1, len(ids)], *heads[2:]] if len(heads) > 1 else heads
    return [1, number, spans, list(asks), list(heads)], frames


def publish_step(root: RawRoot, fields: list[Any], frames: list[bytes], epoch: int = 1) -> None:
    root.publish("step", epoch, *fields[1:], arrays=tuple(frames))


def ask_fields(row: int, n_listed: int = 0, masked: bool = False) -> list[Any]:
    return [row, 1, 0.0, False, n_listed, masked]


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (step_of(1, [[0, 1]], [1]), "pages [1]; this node has 1 pages"),
        (step_of(1, [[0, 1]], [-1]), "pages [-1]; this node has 1 pages"),
        (step_of(1, [[64, 1]], [0, 1]), "pages [0 1]; this node has 1 pages"),
        (step_of(1, [[64, 1]]), "an array of 1 x 1 i32; expected 1 x 2 i32"),
        (step_of(1, [[0, 1]], [0, 0]), "an array of 1 x 2 i32; expected 1 x 1 i32"),
        (step_of(1, [[1 << 31, 1]]), "an array of 1 x 1 i32; expected 1 x 33554433 i32"),
        (step_of(1, [[0, 2]]), "do not cover its 1 rows"),
        (step_of(1, [[0, 0], [0, 1]]), "do not cover its 1 rows"),
        (step_of(1, [[0, 1]], asks=[ask_fields(1)]), r"a step of 1 rows that asks for rows [1]"),
        (step_of(1, [[0, 1]], asks=[ask_fields(0), ask_fields(0)]), "asks for rows [0, 0]; expected ascending"),
        (step_of(1, [[0, 1]], asks=[ask_fields(0, 2)]), "a step with 0 more arrays for 2 listed ids and 0 masks"),
        (step_of(1, [[0, 1]], asks=[ask_fields(0, masked=True)]), "a step with 0 more arrays for 0 listed ids and 1"),
        (step_of(1, [[0, 1]], heads=[X, PAGE, PAGE]), "a step with 1 more arrays for 0 listed"),
        (
            step_of(1, [[0, 1]], asks=[ask_fields(0, 2)], heads=[X, PAGE, ["i32", 1, 2]]),
            "lists ids for row 0 that do not ascend",  # 0 and 0
        ),
        (
            step_of(1, [[0, 1]], asks=[ask_fields(0, 0, True)], heads=[X, PAGE, ["u8", 1, 2]]),
            f"expected 1 x {(SPEC.vocab_size + 7) // 8} u8",
        ),
        (step_of(1, [[0, 1]], heads=[["f32", 1, 64], PAGE]), "expected 1 x 128 f32"),
        (step_of(1, [[0, 1]], heads=[["f16", 1, 128], PAGE]), "expected 1 x 128 f32"),
        (step_of(1, [[0, 1]], heads=[X]), "a step without x or page ids"),
    ],
)
def test_a_step_that_cannot_be_is_answered_with_a_fault_and_the_next_one_is_run(
    step: tuple[list[Any], list[bytes]], says: str, context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    start(a_worker(context, places))
    with RawRoot(context, places.replies[0], places.steps[0]) as root:
        root.take_in(plan_fields(), pieces_of(model))
        publish_step(root, *step)
        _, fault, _ = root.hear("fault")
        assert fault[:2] == [1, 1]
        assert says in fault[2]
        publish_step(root, *step_of(2, [[0, 1]]))
        for stage in range(1, 5):
            _, part, [frame] = root.hear("partial")
            assert part == [1, 2, stage, [["f32", 1, SPEC.dim]]]
            root.publish("sum", 1, 2, stage, [["f32", 1, SPEC.dim]], arrays=(frame,))
        _, end, _ = root.hear("candidates")
        assert end[:3] == [1, 2, 5]


def test_a_broken_delivery_makes_the_worker_join_again(context: Context, model: ModelFile, start: Start) -> None:
    places = inproc()
    pieces = pieces_of(model)
    start(a_worker(context, places))
    with RawRoot(context, places.replies[0], places.steps[0]) as root:
        identity, _, _ = root.hear("join")
        root.say(identity, "welcome", 1, "worker1", *reversed(root.addresses))
        root.say(identity, "plan", *plan_fields())
        root.hear("credit")
        root.offer(identity, pieces)
        fields, data = pieces[1]
        root.say(identity, "weights", *fields, arrays=(data,))
        _, fault, _ = root.hear("fault")
        assert fault[2].startswith("weights of layers.0.attention.k from byte 0; expected layers.0.attention.q")
        root.take_in(plan_fields(), pieces)


def test_a_new_epoch_or_a_greeting_in_a_step_makes_it_void(context: Context, model: ModelFile, start: Start) -> None:
    places = inproc()
    start(a_worker(context, places))
    with RawRoot(context, places.replies[0], places.steps[0]) as root:
        identity = root.take_in(plan_fields(), pieces_of(model))
        publish_step(root, *step_of(1, [[0, 1]]))
        root.hear("partial")
        root.publish("beacon", 2)
        assert root.hear("beacon_ack")[1] == [2]
        publish_step(root, *step_of(2, [[0, 1]]), epoch=2)
        root.hear("partial")
        root.say(identity, "welcome", 1, "worker1", *reversed(root.addresses))
        root.hear("join")
