"""Roots, workers and what is between them, of real sockets in one process, for tests of the bus."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pytest
import zmq
from integration.stranger import Exit, Stranger
from surroundings import free_ports
from tiny import tiny_spec

from dllama_zmq.bus.links import Endpoints
from dllama_zmq.bus.messages import Frame, Message, Resend
from dllama_zmq.formats import ModelFile
from dllama_zmq.formats.model_file import ALL
from dllama_zmq.formats.random_model import random_tensors
from dllama_zmq.kernels import Batch, KernelChoice, pages_for
from dllama_zmq.node_config import Limits
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.slices import pieces
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import FloatType, ModelSpec
from dllama_zmq.worker import Worker, WorkerSettings

FORM_S = 20.0
SOON_S = 10.0  # on a busy machine; the usual step_s, which ends every wait, is 20 s
SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q40)  # Q40: the same bits on all node counts
TOKENS = [1, 40, 41, 200, 7]
Context: TypeAlias = zmq.Context[zmq.Socket[bytes]]
Transport: TypeAlias = Callable[[], Endpoints]

FAST_AND_SLOW = pytest.mark.parametrize("kernels", ["numpy", "simd"], ids=["slow path", "fast path"])
"""Exchanges of partial sums through the interpreter alone, and on the fast path (bus/native/) first."""


def assert_are(got: F32, expected: F32, kernels: KernelChoice) -> None:
    """The reference's bits where the nodes are of the reference; as near to them as back ends are, elsewhere."""
    if kernels == "numpy":
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def inproc() -> Endpoints:
    name = f"inproc://{secrets.token_hex(6)}"
    return Endpoints([f"{name}-steps"], [f"{name}-replies"])


def tcp() -> Endpoints:
    steps, replies = free_ports(2)
    return Endpoints([f"tcp://127.0.0.1:{steps}"], [f"tcp://127.0.0.1:{replies}"])


class InMemory(ModelFile):
    """Random weights of any architecture and types: a `.m` file cannot hold all of them."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(Path("weights in memory"), spec, {})
        self._matrices = dict(random_tensors(spec, seed=3))

    def read_unchecked(self, name: str, rows: slice = ALL, columns: slice = ALL) -> BlockMatrix:
        return self._matrices[name].cut(rows, columns)

    def forget_pages(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Thread:
    """A node in a thread; `error` is what ended it."""

    run: Callable[[], None]
    stop: Callable[[], None]
    error: list[BaseException] = field(default_factory=list)
    expected: bool = False

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self.error.append(error)

    def join(self, wait_s: float = 20.0) -> None:
        self._thread.join(wait_s)
        assert not self._thread.is_alive(), "a node did not end"


class Relayed(Endpoints, frozen=True):
    """Workers are sent to a relay for their steps."""

    relay: str = ""

    def for_worker(self, same_host: bool) -> tuple[str, str]:
        return self.relay, Endpoints.for_worker(self, same_host)[1]


class Relay:
    """Passes on what the root publishes; once it is cut, only messages whose number after that is in `passes`."""

    def __init__(self, context: Context, places: Relayed, passes: Collection[int] = ()) -> None:
        self.cut, self._stopped = threading.Event(), threading.Event()
        self._passes, self._n_since = passes, 0
        self._from, self._to = context.socket(zmq.SUB), context.socket(zmq.PUB)
        self._from.set(zmq.SUBSCRIBE, b"")
        self._from.connect(places.steps[0])
        self._to.bind(places.relay)

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.is_set():
            if self._from.poll(50):
                frames = self._from.recv_multipart()
                if not self.cut.is_set() or self._n_since in self._passes:
                    self._to.send_multipart(frames)
                self._n_since += self.cut.is_set()
        self._from.close(linger=0)
        self._to.close(linger=0)


Start: TypeAlias = Callable[["Stranger | Worker | Relay"], Thread]


@contextlib.contextmanager
def a_root(
    context: Context,
    model: ModelFile,
    places: Endpoints,
    step_s: float = 20.0,
    stay: bool = False,
    n_workers: int = 1,
    kernels: KernelChoice = "numpy",
    **more: Any,
) -> Iterator[Root]:
    """`more`: of the root's settings."""
    names = [f"worker{i}" for i in range(1, n_workers + 1)]
    spin_s = 0.0 if kernels == "numpy" else 1e-3
    settings = RootSettings(names=names, kernels=kernels, spin_s=spin_s, limits=Limits(step_s=step_s), **more)
    root = Root(context, model, settings, places)
    try:
        yield root
    finally:
        root.close("the test is over", stay)


def a_worker(
    context: Context, places: Endpoints, name: str = "", watch: bool = False, spin_s: float = 0.0, **more: Any
) -> Worker:
    """`more`: of the worker's settings."""
    return Worker(context, WorkerSettings(places.replies[0], name, spin_s=spin_s, watch=watch, **more))


def form(root: Root, wait_s: float = FORM_S) -> None:
    root.wait_ready(time.monotonic() + wait_s)


def pump_until(root: Root, happened: Callable[[], object], wait_s: float = FORM_S) -> None:
    until = time.monotonic() + wait_s
    while not happened():
        assert time.monotonic() < until
        root.serve_bus(time.monotonic() + 0.001)


def logits(root: Root) -> F32:
    """A prompt of three tokens, then two, one by one: steps 1 to 3."""
    rows = [root.logits(Batch.alone(0, 3), TOKENS[:3])]
    return np.concatenate([*rows, *(root.logits(Batch.alone(i, 1), [TOKENS[i]]) for i in (3, 4))])


def count(root: Root, kind: str) -> int:
    assert root.link is not None
    return sum(tally.messages for tally in root.link.meter.tallies() if tally.kind == kind)


def missed_messages(root: Root) -> set[tuple[bytes, int, int]]:
    """Who asks for what from now on: identity, step and stage. On a busy machine a worker may ask twice for one."""
    assert root.link is not None
    read, missed = root.link.read, set()

    def watched(frames: Sequence[Frame]) -> tuple[bytes, Message, list[Frame]] | None:
        arrived = read(frames)
        if arrived is not None and isinstance(arrived[1], Resend):
            missed.add((arrived[0], arrived[1].step, arrived[1].stage))
        return arrived

    root.link.read = watched  # type: ignore[method-assign]
    return missed


def plan_of(spec: ModelSpec, numbers: dict[str, Any] | None = None, **changes: Any) -> list[Any]:
    """The fields of a plan for `spec` with some of its numbers, or of the plan's own, changed."""
    plan = {
        "spec": msgspec.to_builtins(spec) | (numbers or {}),
        "nodes": 2,
        "sync": "f32",
        "kernels": "auto",
        "kv": "f32",
        "pages": pages_for(spec.seq_len),
        "step_s": 5.0,
    }
    return list((plan | changes).values())


def pieces_of(model: ModelFile) -> list[tuple[list[Any], bytes]]:
    """The weights of node 1 of 2, as `weights` messages."""
    plan = Plan.make(model.spec, 2)
    return [
        ([tensor.name, offset, [["u8", 1, data.size]]], data.tobytes())
        for tensor in plan.shard_tensors()
        for offset, data in pieces(model, plan, 1, tensor)
    ]


class Keeps(Stranger):
    """Keeps what it hears before its time for later."""

    def __init__(self, context: Context, root: str) -> None:
        super().__init__(context, root)
        self.kept: list[tuple[str, list[Any], list[bytes]]] = []

    def receive(self, wait_s: float) -> tuple[str, list[Any], list[bytes]] | None:
        return self.kept.pop(0) if self.kept else super().receive(wait_s)

    def hear_sum(self, stage: int) -> None:
        """Wait until the root has published that sum."""
        heard = super().receive(20.0)
        while heard is not None:
            self.kept.append(heard)
            if heard[0] == "sum" and heard[1][:3] == [self.epoch, self.step, stage]:
                return
            heard = super().receive(20.0)
        raise AssertionError(f"the root did not publish stage {stage}")


class Vanishes(Stranger):
    """Ends without a word instead of sending its part of a stage."""

    def __init__(self, context: Context, root: str, at_stage: int) -> None:
        super().__init__(context, root)
        self._at_stage = at_stage

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        if fields[2] == self._at_stage:
            raise Exit
        super().send_part(kind, *fields, arrays=arrays)
