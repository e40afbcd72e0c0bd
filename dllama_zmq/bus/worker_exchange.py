"""The worker's side of the star: send a partial sum, wait for the sum; of two nodes, for the root's part of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dllama_zmq.bus.links import WorkerLink
from dllama_zmq.bus.messages import (
    ArrayHead,
    Beacon,
    Bye,
    Candidates,
    Frame,
    Message,
    Missed,
    Partial,
    Ping,
    Step,
    Sum,
    Welcome,
    packed,
    unpack,
)
from dllama_zmq.errors import ProtocolError, RootLost
from dllama_zmq.kernels import Kernels
from dllama_zmq.quants import F32, U8
from dllama_zmq.spec import Sync


class StepVoid(Exception):
    """The step will never end: the root said something that makes it void. `message` is what it said."""

    def __init__(self, message: Message) -> None:
        super().__init__(f"void by {type(message).__name__}")
        self.message = message


class StarWorker:
    """A worker's `Comm`, and the bookkeeping of the step it is in. `nodes`: of the cluster."""

    def __init__(self, link: WorkerLink, kernels: Kernels, sync: Sync, dim: int, nodes: int, silence_s: float) -> None:
        self._link = link
        self._pair = nodes == 2
        self._kernels = kernels
        self._sync = sync
        self._dim = dim
        self._silence_s = silence_s
        self.epoch = 0
        self.step = 0
        self._stage = 0
        self._lacking = (0, 0, 0)
        self._start = 0.0
        self._wait_s = 0.0

    def begin(self, message: Step, frames: Sequence[Frame]) -> F32:
        """Enter a step; returns its x (T, D). Raises ProtocolError where rows, runs and wants do not fit together."""
        self.step, self._stage = message.step, 0
        self._start, self._wait_s = time.monotonic(), 0.0
        if len(message.arrays) != 1:
            raise ProtocolError(f"a step with {len(message.arrays)} arrays; expected x alone")
        n_rows = message.arrays[0].rows
        if n_rows < 1 or sum(count for _, _, count in message.runs) != n_rows or not all(r[2] for r in message.runs):
            raise ProtocolError(f"a step whose runs {message.runs} do not cover its {n_rows} rows")
        if any(want.row >= n_rows for want in message.wanted):
            raise ProtocolError(f"a step of {n_rows} rows that wants {message.wanted}")
        return unpack(message.arrays[0], frames[0], self._sync, (n_rows, self._dim))

    def all_reduce(self, partial: F32) -> F32:
        self._stage += 1
        head = ArrayHead(self._sync, *partial.shape)
        wire = self._kernels.pack(partial, self._sync)
        self._link.send(Partial(self.epoch, self.step, self._stage, [head]), [wire.data.cast("B")])
        start = time.monotonic()
        arrived = self._await_sum((partial.shape[0], partial.shape[1]))
        self._wait_s += time.monotonic() - start
        parts = [arrived, wire] if self._pair else [arrived]
        return self._kernels.add_up(parts, self._sync, packed=False)[1]

    def answer(self, arrays: Sequence[tuple[ArrayHead, Frame]]) -> None:
        """End the step, or answer More, with these candidates."""
        self._stage += 1
        compute_s = time.monotonic() - self._start - self._wait_s
        heads, frames = [head for head, _ in arrays], [frame for _, frame in arrays]
        message = Candidates(self.epoch, self.step, self._stage, max(0.0, compute_s), self._wait_s, heads)
        self._link.send(message, frames)

    def next_stage(self, step: int, stage: int) -> bool:
        """Whether `stage` of `step` is the one that follows what this worker has answered."""
        return (step, stage) == (self.step, self._stage + 1)

    def answer_ping(self, ping: Ping) -> None:
        """Ask again for what the root believes this worker to have, if it asks twice: once, it may be on its way."""
        lacking = (ping.epoch, ping.step, ping.stage)
        if ping.epoch == self.epoch and lacking[1:] > (self.step, self._stage):
            if lacking == self._lacking:
                self._link.send(Missed(*lacking))
            self._lacking = lacking

    def _await_sum(self, shape: tuple[int, int]) -> U8:
        """What the root publishes for this stage. Raises StepVoid, RootLost."""
        deadline = time.monotonic() + self._silence_s
        while True:
            arrived = self._link.receive(deadline)
            if arrived is None:
                if self._link.lost():
                    raise RootLost("the connection to the root broke")
                raise RootLost(f"no word from the root for {self._silence_s:.0f} s in step {self.step}")
            message, frames = arrived
            if isinstance(message, Sum):
                if (message.epoch, message.step, message.stage) == (self.epoch, self.step, self._stage):
                    return self._read(message, frames, shape)
            elif isinstance(message, Bye | Welcome) or (isinstance(message, Beacon) and message.epoch != self.epoch):
                raise StepVoid(message)  # another epoch, or none
            elif isinstance(message, Ping):
                self.answer_ping(message)
            deadline = time.monotonic() + self._silence_s  # whatever it said, the root is alive

    def _read(self, message: Sum, frames: Sequence[Frame], shape: tuple[int, int]) -> U8:
        if len(message.arrays) != 1:
            raise ProtocolError(f"a sum with {len(message.arrays)} arrays; expected one")
        return packed(message.arrays[0], frames[0], self._sync, shape)
