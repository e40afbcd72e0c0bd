"""What goes wrong between the nodes, on real sockets: one clear error each, in time, and the cluster goes on."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from nodes import (
    BOTH_WAYS,
    FORM_S,
    Context,
    Keeps,
    Relay,
    Relayed,
    Start,
    Thread,
    Transport,
    Vanishes,
    a_root,
    a_worker,
    assert_are,
    form,
    inproc,
    pieces_of,
    plan_of,
    tcp,
    what_is_missed,
)
from raw_root import RawRoot
from stranger import Again, Stranger
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.bus.messages import Beacon
from dllama_zmq.errors import ClusterError, RemoteError, WorkerLost
from dllama_zmq.formats import ModelFile
from dllama_zmq.kernels import KernelChoice
from dllama_zmq.models import Run
from dllama_zmq.quants import F32
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.spec import FloatType
from dllama_zmq.worker import Worker, WorkerSettings

SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q40)  # Q40: the same bits on all node counts
TOKENS = [1, 40, 41, 200, 7]
SOON_S = 10.0  # on a busy machine; the usual step_s, which ends every wait, is 20 s


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.m", SPEC) as file:
        yield file


@pytest.fixture(scope="module")
def expected(model: ModelFile) -> F32:
    """The logits of one node."""
    return logits(Root(zmq.Context.instance(), model, RootSettings(kernels="numpy")))


def logits(root: Root) -> F32:
    """A prompt of three tokens, then two, one by one: steps 1 to 3."""
    rows = [root.logits([Run(0, 0, 3)], TOKENS[:3])]
    return np.concatenate([*rows, *(root.logits([Run(0, i, 1)], [TOKENS[i]]) for i in (3, 4))])


# --- no step before every worker has heard a beacon -------------------------------------------------------------------


class HearsNothing(Stranger):
    """Loads, but never says that it heard a beacon."""

    def send_heard(self, epoch: int) -> None:
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
        root.link.publish(Beacon(0), [], [])
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


# --- what is lost on PUB is asked for and sent again ------------------------------------------------------------------


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
def test_a_worker_that_hears_not_all_that_is_published_gets_it_again(
    kind: str, n_workers: int, passes: tuple[int, ...], n_missed: int, kernels: KernelChoice, context: Context,
    model: ModelFile, expected: F32, start: Start,
) -> None:  # fmt: skip
    at = inproc()
    places = Relayed(at.steps, at.replies, relay=f"{at.steps[0]}-relay")
    relay = Relay(context, places, passes)
    start(relay)
    for _ in range(n_workers):
        start(a_worker(context, places) if kind == "a worker" else Stranger(context, places.replies[0]))
    with a_root(context, model, places, n_workers=n_workers, kernels=kernels) as root:
        form(root)
        assert_are(logits(root), expected, kernels)
        missed = what_is_missed(root)
        relay.cut.set()
        got = root.logits([Run(0, 0, 3)], TOKENS[:3])
        assert_are(got, expected[:3], kernels)
        # A busy machine asks for what is on its way, too; to ask for each lost message alone is 1.8 times as often.
        assert n_missed <= len(missed) < 1.8 * n_missed


class HearsFirst(Keeps):
    """Sends no partial sum before it has the root's."""

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        if kind == "partial":
            self.hear_sum(self.stage)
        super().send_part(kind, *fields, arrays=arrays)


@BOTH_WAYS
def test_the_root_of_a_pair_sends_its_part_without_waiting_for_the_workers(
    kernels: KernelChoice, context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    start(HearsFirst(context, places.replies[0]))
    with a_root(context, model, places, kernels=kernels) as root:
        form(root)
        assert_are(logits(root), expected, kernels)


# --- workers that vanish, fail, answer wrongly or not at all ----------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "where", "transport"),
    [(1, "layer 0, attention", inproc), (4, "layer 1, feed-forward", tcp), (5, "logits", inproc)],
)
@BOTH_WAYS
def test_a_worker_that_vanishes_in_a_step_is_named_with_its_stage_and_can_be_replaced(
    stage: int, where: str, transport: Transport, kernels: KernelChoice, context: Context, model: ModelFile,
    expected: F32, start: Start,
) -> None:  # fmt: skip
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


class Fails(Stranger):
    """Has an exception in its first step."""

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        if self.step == 1:
            raise ValueError("the cat is on the keyboard")
        super().send_part(kind, *fields, arrays=arrays)


def test_a_workers_exception_is_raised_on_the_root_with_its_name_and_the_cluster_goes_on(
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
        (5, [["f32", 3, 143]], "its candidates are an array of 3 x 143 f32; expected 3 x 144 f32"),
        (5, [["f64", 3, 144]], "its candidates are an array"),
        (5, [], "its candidates are "),
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
    worker.at_stage, worker.heads = 5, (["i32", 1, 2], ["f32", 1, 2], ["f64", 1, 1])
    start(worker)
    with a_root(context, model, places) as root:
        form(root)
        with pytest.raises(RemoteError, match="not of its part of the vocabulary"):
            root.evaluate([Run(0, 0, 3)], TOKENS[:3], [(2, 0.0)], k=2)


class IsSilent(Stranger):
    """Does not send its part of one stage of its first step."""

    at_stage = 2

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        if not (self.step == 1 and self.stage == self.at_stage):
            super().send_part(kind, *fields, arrays=arrays)


@pytest.mark.parametrize(("stage", "where"), [(2, "layer 0, feed-forward"), (5, "logits")])
@BOTH_WAYS
def test_a_silent_worker_is_named_with_the_seconds_and_told_to_join_again(
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
    """Never answers a stage, and does not stop talking of other things until it is told to leave."""

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        while (arrived := self.receive(0.0002)) is None or arrived[0] != "bye":
            self.send("partial", 1, 2, 3, [])
            self.send("heard", 1)
            self.dealer.send_multipart([b"no message at all"])
        raise Again


@BOTH_WAYS
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
        self.send("missed", epoch, step - 1, stage)
        self.send("heard", epoch - 1)
        super().send_part(kind, *fields, arrays=arrays)
        super().send_part(kind, *fields, arrays=noise)


@BOTH_WAYS
def test_parts_of_other_epochs_steps_stages_and_kinds_are_ignored(
    kernels: KernelChoice, context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    start(RepeatsItself(context, places.replies[0]))
    with a_root(context, model, places, kernels=kernels) as root:
        form(root)
        assert_are(logits(root), expected, kernels)
        assert_are(logits(root), expected, kernels)


# --- joining and joining again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("says_bye", [True, False], ids=["it says bye", "it is gone at once"])
def test_a_worker_survives_its_roots_restart(
    says_bye: bool, context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = tcp()
    start(a_worker(context, places, watch=True))
    for last in (False, True):
        roots_context: Context = zmq.Context()
        with a_root(roots_context, model, places, stay=not last) as root:
            form(root)
            np.testing.assert_array_equal(logits(root), expected)
            if not (says_bye or last):
                root.roster.lose(root.roster.members[0], "so that it is told nothing")
        roots_context.term()


def test_every_worker_hears_the_last_word_of_a_root_that_leaves(context: Context, model: ModelFile) -> None:
    for _ in range(8):  # one of two was cut off before it had read the bye
        places = tcp()
        worker = a_worker(context, places, watch=True)
        thread = Thread(worker.run, worker.stop)
        roots_context: Context = zmq.Context()
        with a_root(roots_context, model, places) as root:
            form(root)
        roots_context.term()
        thread.join()


def test_a_worker_that_starts_first_waits_for_its_root(
    context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = tcp()
    waits = threading.Event()
    settings = WorkerSettings(places.replies[0], spin_s=0.0)
    start(Worker(context, settings, on_state=lambda state: waits.set()))
    assert waits.wait(20)
    with a_root(context, model, places) as root:
        form(root)
        np.testing.assert_array_equal(logits(root), expected)


def test_a_second_worker_of_a_name_is_refused_and_told_why_until_the_first_is_gone(
    context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    first, second = (Stranger(context, places.replies[0], "worker1") for _ in range(2))
    with a_root(context, model, places) as root:
        start(first)
        form(root)
        start(second)
        pump_until(root, lambda: second.refused != "")
        assert second.refused == "worker1 is already here (process 1)"
        np.testing.assert_array_equal(logits(root), expected)
        first.stop()
        pump_until(root, lambda: root.roster.members[0].identity == second.identity)
        form(root)
        np.testing.assert_array_equal(logits(root), expected)


def pump_until(root: Root, happened: Callable[[], bool]) -> None:
    until = time.monotonic() + FORM_S
    while not happened():
        assert time.monotonic() < until
        root.pump(time.monotonic() + 0.05)


def test_a_worker_of_a_foreign_name_ends_and_says_which_names_there_are(
    context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    thread = start(a_worker(context, places, "impostor"))
    thread.expected = True
    with a_root(context, model, places) as root:
        pump_until(root, lambda: thread.error != [])
    [error] = thread.error
    assert isinstance(error, ClusterError)
    assert "no worker of this cluster is called 'impostor'; its workers are worker1" in str(error)


# --- a worker and a root that talks nonsense --------------------------------------------------------------------------


plan_fields = partial(plan_of, SPEC)

ABSURD = {
    "a width beyond all bounds": plan_fields({"dim": 1 << 40}),
    "weights of petabytes": plan_fields({"dim": 1 << 20, "hidden_dim": 1 << 22, "n_layers": 4096}),
    "keys of petabytes": plan_fields({"seq_len": 1 << 24}, seq_len=1 << 24, slots=1 << 31),
    "a negative width": plan_fields({"dim": -128}),
    "no heads": plan_fields({"n_heads": 0}),
    "three nodes": plan_fields(nodes=3),
    "more nodes than heads": plan_fields(nodes=16),
    "another architecture": plan_fields({"arch": "perceptron"}),
    "a weight type that is none": plan_fields({"weight_type": 9}),
    "a width that is no number": plan_fields({"dim": "wide"}),
    "positions beyond the model's": plan_fields(seq_len=65),
    "no slots": plan_fields(slots=0),
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


def step_fields(number: int, runs: list[list[int]], rows: int = 1, wanted: Sequence[list[Any]] = ()) -> list[Any]:
    return [1, number, runs, list(wanted), 1, [["f32", rows, SPEC.dim]]]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (step_fields(1, [[1, 0, 1]]), "this node has 1 slots of 64 positions"),
        (step_fields(1, [[0, 64, 1]]), "this node has 1 slots of 64 positions"),
        (step_fields(1, [[0, 1 << 31, 1]]), "this node has 1 slots of 64 positions"),
        (step_fields(1, [[0, 0, 2]]), "do not cover its 1 rows"),
        (step_fields(1, [[0, 0, 0], [0, 0, 1]]), "do not cover its 1 rows"),
        (step_fields(1, [[0, 0, 1]], wanted=[[1, 0.0]]), "a step of 1 rows that wants"),
        ([*step_fields(1, [[0, 0, 1]])[:-1], [["f32", 1, 64]]], "expected 1 x 128 f32"),
        ([*step_fields(1, [[0, 0, 1]])[:-1], [["f16", 1, 128]]], "expected 1 x 128 f32"),
        ([*step_fields(1, [[0, 0, 1]])[:-1], []], "a step with 0 arrays"),
    ],
)
def test_a_step_that_cannot_be_is_answered_with_a_fault_and_the_next_one_is_run(
    fields: list[Any], says: str, context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    start(a_worker(context, places))
    with RawRoot(context, places.replies[0], places.steps[0]) as root:
        root.take_in(plan_fields(), pieces_of(model))
        sizes = {"f32": 4, "f16": 2}
        root.publish("step", *fields, arrays=tuple(bytes(sizes[t] * rows * n) for t, rows, n in fields[-1]))
        _, fault, _ = root.hear("fault")
        assert fault[:2] == [1, 1]
        assert says in fault[2]
        root.publish("step", *step_fields(2, [[0, 0, 1]]), arrays=(bytes(4 * SPEC.dim),))
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
        root.publish("step", *step_fields(1, [[0, 0, 1]]), arrays=(bytes(4 * SPEC.dim),))
        root.hear("partial")
        root.publish("beacon", 2)
        assert root.hear("heard")[1] == [2]
        root.publish("step", 2, *step_fields(2, [[0, 0, 1]])[1:], arrays=(bytes(4 * SPEC.dim),))
        root.hear("partial")
        root.say(identity, "welcome", 1, "worker1", *reversed(root.addresses))
        root.hear("join")
