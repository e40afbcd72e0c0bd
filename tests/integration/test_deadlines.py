"""Waits that could have had no end: each ends in an error that says what was waited for, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import zmq
from integration.nodes import (
    SPEC,
    Context,
    Relayed,
    Start,
    a_root,
    a_worker,
    form,
    inproc,
    pieces_of,
    plan_of,
    pump_until,
    tcp,
)
from integration.raw_root import RawRoot
from integration.stranger import Stranger
from msgspec.structs import replace
from tiny import tiny_spec, tiny_tensors, write_tiny_model

import dllama_zmq
from dllama_zmq.bus import sockets
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.bus.messages import Join, Refuse
from dllama_zmq.bus.roster import Roster, State
from dllama_zmq.errors import ClusterDefect, FormatError, WorkerLost
from dllama_zmq.formats import ModelFile, write_m
from dllama_zmq.formats.random_model import random_tensors
from dllama_zmq.kernels import Batch
from dllama_zmq.node_config import Limits
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.membership import _SILENT_S
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sampling import Sampling
from dllama_zmq.spec import FloatType
from dllama_zmq.worker import Worker, WorkerSettings

SOON_S = 20.0  # on a busy machine


def test_a_row_of_which_no_token_can_be_chosen_is_an_error_and_not_asked_for_again(model: ModelFile) -> None:
    engine = Engine(Root(zmq.Context.instance(), model, RootSettings(kernels="numpy")), max_sequences=1)
    sequence = engine.add([1], Sampling(), n_ids=0)
    [(failed, error)] = engine.step().failed
    assert failed is sequence
    assert isinstance(error, ClusterDefect)
    assert "no token could be chosen" in str(error)
    assert not engine.busy


# --- load() with several nodes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["layers.1.ffn.up", "layers.0.attention.o"])
def test_a_file_that_cannot_be_loaded_is_an_error_on_several_nodes_as_on_one(broken: str, tmp_path: Path) -> None:
    spec = replace(SPEC, weight_type=FloatType.F32)

    def tensors() -> Iterator[tuple[str, BlockMatrix]]:
        for name, matrix in tiny_tensors(spec):
            values = matrix.dequantize()
            if name == broken:
                values[-1, -1] = np.nan
            yield name, BlockMatrix.from_array(values, FloatType.F32)

    write_m(tmp_path / "broken.m", spec, tensors())
    threads = threading.active_count()
    for nodes in (1, 2, 4):
        begun = time.monotonic()
        with pytest.raises(FormatError, match=broken):
            dllama_zmq.load(tmp_path / "broken.m", nodes=nodes, kernels="numpy")
        assert time.monotonic() - begun < SOON_S
    assert threading.active_count() <= threads  # one of an earlier test may have ended meanwhile


INTERRUPTS_ITSELF = """
import logging, os, signal, dllama_zmq

class CtrlC(logging.Handler):  # at the word of the node that begins to load: from outside it may come before or after
    def emit(self, record):
        if record.getMessage().startswith("joined the root"):
            print("Ctrl-C", flush=True)
            os.kill(os.getpid(), signal.SIGINT)

logging.basicConfig(level="INFO", handlers=[CtrlC()])
"""


def test_ctrl_c_while_several_nodes_load_ends_the_process(tmp_path: Path) -> None:
    large = tiny_spec(dim=1024, hidden_dim=4096, n_heads=8, n_layers=12, weight_type=FloatType.Q40)
    write_m(tmp_path / "large.m", large, random_tensors(large, seed=0))  # not quantized first, which takes seconds
    code = (
        INTERRUPTS_ITSELF + f"dllama_zmq.load({str(tmp_path / 'large.m')!r}, nodes=2, kernels='numpy'); print('loaded')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SOON_S)
    assert "Ctrl-C" in done.stdout
    assert "loaded" not in done.stdout
    assert "KeyboardInterrupt" in done.stderr


# --- a worker that is there and not there -----------------------------------------------------------------------------


class LoadsAndIsSilent(Stranger):
    """Asks for weights, and says nothing when it has them."""

    def _load(self, *fields: object) -> None:
        self.send("credit", 4)
        while True:
            self._next()


def test_a_worker_that_is_silent_while_it_loads_is_given_up_and_named(
    context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    start(LoadsAndIsSilent(context, places.replies[0]))
    with a_root(context, model, places) as root:
        member = root.roster.members[0]
        pump_until(root, lambda: member.state is State.LOADING)
        begun = time.monotonic()
        pump_until(root, lambda: "said nothing for 10 s while it loaded" in member.lost_reason, _SILENT_S + SOON_S)
        assert time.monotonic() - begun > _SILENT_S - 1


def test_a_worker_that_waits_for_its_weights_says_that_it_lives(context: Context, start: Start) -> None:
    places = inproc()
    start(a_worker(context, places))
    with RawRoot(context, places.replies[0], places.steps[0]) as root:
        identity, _, _ = root.hear("join", SOON_S)
        root.say(identity, "welcome", 1, "worker1", *reversed(root.addresses))
        root.say(identity, "plan", *plan_of(SPEC, kernels="numpy"))
        assert root.hear("credit", SOON_S)[1] == [4]
        begun = time.monotonic()
        for _ in range(3):
            root.hear("preparing", SOON_S)
        assert time.monotonic() - begun < _SILENT_S


def test_a_frozen_worker_is_noticed_while_it_loads(context: Context, model: ModelFile, tmp_path: Path) -> None:
    """A real process, stopped by a signal, over ipc: its kernel takes what is sent, and no heartbeat fails."""
    places = Endpoints([f"ipc://{tmp_path}/s"], [f"ipc://{tmp_path}/r"])
    command = [sys.executable, "-m", "dllama_zmq", "worker", "--root", places.replies[0], "--threads", "1"]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with a_root(context, model, places) as root:
            member = root.roster.members[0]
            pump_until(root, lambda: member.state is State.LOADING)
            os.kill(worker.pid, signal.SIGSTOP)
            begun = time.monotonic()
            with contextlib.suppress(WorkerLost):
                pump_until(root, lambda: member.state is State.ABSENT, _SILENT_S + SOON_S)
            assert time.monotonic() - begun < _SILENT_S + 5
            worker.kill()
    finally:
        worker.kill()
        worker.wait()


def test_a_worker_that_cannot_hear_the_root_is_named_with_the_port(
    context: Context, model: ModelFile, start: Start
) -> None:
    at = tcp()
    nowhere = tcp().steps[0]  # as behind a firewall that lets 5570 through and not 5571
    places = Relayed(at.steps, at.replies, relay=nowhere)
    start(a_worker(context, places, watch=True))
    settings = RootSettings(names=["worker1"], kernels="numpy", spin_s=0.0, limits=Limits(ready_s=1.0))
    root = Root(context, model, settings, places)
    try:
        begun = time.monotonic()
        with pytest.raises(
            WorkerLost, match=r"worker1 has its weights but has heard nothing .* can its computer reach"
        ):
            form(root, 60)
        assert time.monotonic() - begun < SOON_S
        assert places.steps[0] in root.progress()[0].reason
    finally:
        root.close("the test is over")


def test_an_idle_worker_that_hears_nothing_joins_again(context: Context, model: ModelFile, monkeypatch) -> None:
    monkeypatch.setattr("dllama_zmq.worker.worker._IDLE_SILENCE_S", 1.0)
    replies, steps = (tcp().replies[0] for _ in range(2))
    worker = Worker(context, WorkerSettings(replies, spin_s=0.0))
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    with RawRoot(context, replies, steps) as raw:
        first = raw.take_in(plan_of(SPEC, kernels="numpy"), pieces_of(model))
        second, _, _ = raw.hear("join", SOON_S)  # with its connection up, and heartbeats on it
        assert second != first
    worker.stop()
    thread.join(SOON_S)
    assert not thread.is_alive()


def test_who_uses_the_identity_of_a_worker_takes_nothing_from_it(
    context: Context, model: ModelFile, start: Start
) -> None:
    places = tcp()
    start(a_worker(context, places, watch=True))
    with a_root(context, model, places) as root:
        form(root)
        expected = root.logits(Batch.alone(0, 3), [1, 2, 3])
        member = root.roster.members[0]
        identity = member.identity
        thief = context.socket(zmq.DEALER)
        thief.set(zmq.IDENTITY, identity)
        thief.connect(places.replies[0])
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            thief.send(b"nonsense", zmq.NOBLOCK)
            root.serve_bus(time.monotonic() + 0.001)
        np.testing.assert_array_equal(root.logits(Batch.alone(0, 3), [1, 2, 3]), expected)
        thief.close(linger=0)
        np.testing.assert_array_equal(root.logits(Batch.alone(0, 3), [1, 2, 3]), expected)
        assert member.identity == identity


def test_a_place_of_this_computer_is_not_given_to_who_comes_over_a_network(context: Context, model: ModelFile) -> None:
    places = tcp()
    settings = RootSettings(names=["worker1"], reserved=["worker1"], kernels="numpy", spin_s=0.0)
    root = Root(context, model, settings, places)
    stranger = sockets.connect(context, zmq.DEALER, places.replies[0], b"stranger")
    try:
        from dllama_zmq.bus.codec import decode, encode
        from dllama_zmq.bus.messages import TO_WORKER

        until = time.monotonic() + SOON_S
        frames = None
        while frames is None:
            assert time.monotonic() < until
            with contextlib.suppress(zmq.Again):
                stranger.send_multipart(encode(Join("worker1", "here", os.getpid(), "0", "pi3", 1, None)), zmq.NOBLOCK)
            root.serve_bus(time.monotonic() + 0.001)
            frames = sockets.receive_now(stranger)
        answer, _ = decode(frames, TO_WORKER)
        assert isinstance(answer, Refuse)
        assert "on its own computer" in answer.reason
    finally:
        stranger.close()
        root.close("the test is over")


@pytest.mark.parametrize(
    ("address", "pid", "given"),
    [
        ("localhost:0:0:7", 7, True),
        ("localhost:0:0:8", 7, False),
        ("192.168.1.7", 7, False),
        ("::1", 7, False),
        ("localhost:0:0:9", 9, False),
        ("", 7, True),
    ],
)
def test_the_kernel_says_which_process_a_place_is_for(address: str, pid: int, given: bool) -> None:
    roster = Roster(["worker1"], 1, ["worker1"])
    roster.reserve("worker1", 7)
    place = roster.join(b"x", Join("worker1", "", pid, "", "pi3", 1, None), address)
    assert isinstance(place, Refuse) is not given


# --- time that is spent for nothing -----------------------------------------------------------------------------------


def test_a_deadline_that_has_passed_is_not_spun_away(context: Context) -> None:
    socket_ = context.socket(zmq.DEALER)
    begun = time.perf_counter()
    for _ in range(10):
        assert sockets.receive(socket_, time.monotonic(), spin_s=SOON_S) is None
    assert time.perf_counter() - begun < SOON_S
    socket_.close()


@pytest.mark.parametrize("port", ["steps", "replies"])
def test_no_file_descriptor_is_left_by_roots_that_could_not_begin(
    port: str, context: Context, model: ModelFile
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        settings = RootSettings(names=["worker1"], kernels="numpy", spin_s=0.0)
        counts = []
        for _ in range(4):
            with pytest.raises(Exception, match="is in use"):
                Root(context, model, settings, replace(tcp(), **{port: [busy]}))
            counts.append((psutil.Process().num_fds(), threading.active_count()))
        assert counts[-1][1] == counts[1][1]


def test_weights_that_cannot_be_read_again_lose_one_worker_and_not_the_root(
    context: Context, start: Start, tmp_path: Path
) -> None:
    spec = replace(SPEC, weight_type=FloatType.F32)
    with write_tiny_model(tmp_path / "float.m", spec) as file:
        places = inproc()
        first = start(a_worker(context, places))
        with a_root(context, file, places) as root:
            form(root)
            expected = root.logits(Batch.alone(0, 3), [1, 2, 3])
            whole = (tmp_path / "float.m").read_bytes()
            with (tmp_path / "float.m").open("r+b") as broken:  # the mapped file itself, as a bad disk would have it
                broken.seek(len(whole) - 4096)
                broken.write(b"\xff" * 4096)
            first.stop()
            root.roster.lose(root.roster.members[0], "was unplugged")
            start(a_worker(context, places))
            pump_until(root, lambda: "cannot be given its weights" in root.roster.members[0].lost_reason)
            with (tmp_path / "float.m").open("r+b") as mended:
                mended.write(whole)
            form(root)
            np.testing.assert_array_equal(root.logits(Batch.alone(0, 3), [1, 2, 3]), expected)
