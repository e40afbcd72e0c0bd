"""The worker's side of the star: send a partial sum, wait for the sum; with two nodes, for the root's partial sum."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from dllama_zmq.bus.arrays import Packed, packed, stage_header, to_wire, unpack
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
)
from dllama_zmq.bus.native.exchange import NativeExchange, SocketPair, make_native_exchange
from dllama_zmq.errors import ProtocolError, RootLost
from dllama_zmq.kernels import Batch, Kernels, Span, pages_for
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
        self._native: NativeExchange | None = None
        if link.steps is not None:
            order = (1, 0) if self._pair else (1,)
            sockets = SocketPair(link.replies, link.steps)
            self._native = make_native_exchange(kernels, sync, sockets, link.spin_s, order)
        self.epoch = 0
        self.step = 0
        self._stage = 0
        self._begun: deque[tuple[int, U8]] = deque()
        self._lacking = (0, 0, 0)
        self._start = self._start_on_core = 0.0
        self._wait_s = 0.0

    def begin(self, message: Step, frames: Sequence[Frame]) -> tuple[F32, Batch]:
        """Enter a step; returns its x (T, D) and its rows.

        Raises ProtocolError where rows, spans, pages and asks do not fit together.
        """
        self.step, self._stage = message.step, 0
        self._start, self._start_on_core, self._wait_s = time.monotonic(), time.thread_time(), 0.0
        self._begun.clear()
        if len(message.arrays) < 2:
            raise ProtocolError("a step without x or page ids")
        n_rows = message.arrays[0].rows
        if n_rows < 1 or sum(count for _, count in message.spans) != n_rows or not all(c for _, c in message.spans):
            raise ProtocolError(f"a step whose spans {message.spans} do not cover its {n_rows} rows")
        asked = [-1, *(ask.row for ask in message.asks), n_rows]
        if any(row >= following for row, following in pairwise(asked)):
            raise ProtocolError(f"a step of {n_rows} rows that asks for rows {asked[1:-1]}; expected ascending ones")
        x: F32 = unpack(message.arrays[0], frames[0], self._sync, (n_rows, self._dim))
        self._partial_header = stage_header(Partial, self.epoch, self.step, message.arrays[0])
        self._sum_header = stage_header(Sum, self.epoch, self.step, message.arrays[0])
        return x, _batch(message, frames)

    def all_reduce(self, partial: F32 | U8) -> F32:
        if self._native is None:
            self.start(partial)
            return self.finish()
        self._stage += 1
        own = to_wire(partial, self._kernels, self._sync)
        total = self._native(self._partial_header(self._stage), own, self._sum_header(self._stage))
        self._wait_s += self._native.waited_s
        if total is not None:
            return total
        (arrived,), other = self._native.parts, self._native.unexpected()
        return self._add_up(self._await_sum(self._stage, len(own), other) if arrived is None else arrived, own)

    def start(self, partial: F32 | U8) -> None:
        self._stage += 1
        own = to_wire(partial, self._kernels, self._sync)
        head = ArrayHead(self._sync, len(own), self._dim)
        self._link.send(Partial(self.epoch, self.step, self._stage, [head]), [own.data.cast("B")])
        self._begun.append((self._stage, own))

    def finish(self) -> F32:
        stage, own = self._begun.popleft()
        return self._add_up(self._await_sum(stage, len(own)), own)

    def answer(self, arrays: Sequence[Packed]) -> None:
        """End the step, or answer More, with these candidates."""
        self._stage += 1
        compute_s = max(0.0, time.monotonic() - self._start - self._wait_s)
        paused_s = max(0.0, compute_s - (time.thread_time() - self._start_on_core))  # more, where it spun for a sum
        heads, frames = [head for head, _ in arrays], [frame for _, frame in arrays]
        message = Candidates(self.epoch, self.step, self._stage, compute_s, paused_s, self._wait_s, heads)
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

    def _add_up(self, arrived: U8, own: U8) -> F32:
        """The sum of a stage, of what the root has published for it and this node's part."""
        return self._kernels.add_up([arrived, own] if self._pair else [arrived], self._sync, packed=False)[1]

    def _await_sum(self, stage: int, n_rows: int, received: Sequence[Frame] | None = None) -> U8:
        """What the root publishes for a stage. `received`: a message that is here. Raises StepVoid, RootLost."""
        start = time.monotonic()
        deadline = start + self._silence_s
        arrived = None if received is None else self._link.read(received)
        while True:
            arrived = arrived or self._link.receive(deadline)
            if arrived is None:
                if self._link.lost():
                    raise RootLost("the connection to the root broke")
                raise RootLost(f"no word from the root for {self._silence_s:.0f} s in step {self.step}")
            message, frames = arrived
            arrived = None
            if isinstance(message, Sum):
                if (message.epoch, message.step, message.stage) == (self.epoch, self.step, stage):
                    self._wait_s += time.monotonic() - start
                    return self._read(message, frames, n_rows)
            elif isinstance(message, Bye | Welcome) or (isinstance(message, Beacon) and message.epoch != self.epoch):
                raise StepVoid(message)  # another epoch, or none
            elif isinstance(message, Ping):
                self.answer_ping(message)
            deadline = time.monotonic() + self._silence_s  # whatever it said, the root is alive

    def _read(self, message: Sum, frames: Sequence[Frame], n_rows: int) -> U8:
        if len(message.arrays) != 1:
            raise ProtocolError(f"a sum with {len(message.arrays)} arrays; expected one")
        return packed(message.arrays[0], frames[0], self._sync, (n_rows, self._dim))


def _batch(message: Step, frames: Sequence[Frame]) -> Batch:
    """The rows of a step. Raises ProtocolError where its pages are not those of its spans."""
    n_pages = [pages_for(start + count) for start, count in message.spans]
    ids = unpack(message.arrays[1], frames[1], "i32", (1, sum(n_pages)))[0]
    spans, first = [], 0
    for (start, count), n in zip(message.spans, n_pages, strict=True):
        spans.append(Span(start, count, ids[first : first + n]))
        first += n
    return Batch(spans)
