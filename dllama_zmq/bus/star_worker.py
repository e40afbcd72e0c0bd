"""The worker of a star: it sends its partial sum and waits for the sum, or with two nodes for the root's partial
sum."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from dllama_zmq.bus.arrays import EncodedArray, decode_array, encoded_bytes, stage_header, to_wire
from dllama_zmq.bus.exchange import wait
from dllama_zmq.bus.links import WorkerLink
from dllama_zmq.bus.messages import Frame, Partial, Ping, Step, Sum
from dllama_zmq.bus.native.exchange import NativeExchange, Wiring, make_native_exchange
from dllama_zmq.bus.steps import Action, Failed, Part, Send
from dllama_zmq.bus.worker_steps import WorkerSteps
from dllama_zmq.errors import ProtocolError
from dllama_zmq.kernels import Batch, Kernels, Span, pages_for
from dllama_zmq.quants import F32, U8
from dllama_zmq.spec import Sync


class StarWorker:
    """A worker's `Comm`, and its side of the steps. nodes: their number in the cluster."""

    def __init__(self, link: WorkerLink, kernels: Kernels, sync: Sync, dim: int, nodes: int, silence_s: float) -> None:
        self._link, self._kernels, self._sync, self._dim = link, kernels, sync, dim
        self._pair = nodes == 2
        self.steps = WorkerSteps(sync, dim, silence_s)
        self._own: deque[U8] = deque()  # this node's partial sums of open stages
        self._native: NativeExchange | None = None
        if link.steps is not None:
            wiring = Wiring(link.replies, link.steps, link.spin_s, (1, 0) if self._pair else (1,))
            self._native = make_native_exchange(kernels, sync, wiring)
        self._begun_s = self._begun_on_core_s = 0.0

    def begin(self, message: Step, frames: Sequence[Frame]) -> tuple[F32, Batch]:
        """Begin a step; returns its x (T, D) and its batch.

        Raises ProtocolError if rows, spans, pages and asks do not match.
        """
        self.steps.begin(message.step)
        self._begun_s, self._begun_on_core_s = time.monotonic(), time.thread_time()
        self._own.clear()
        if len(message.arrays) < 2:
            raise ProtocolError("a step without x or page ids")
        head = message.arrays[0]
        n_rows = head.rows
        if n_rows < 1 or sum(count for _, count in message.spans) != n_rows or not all(c for _, c in message.spans):
            raise ProtocolError(f"a step whose spans {message.spans} do not cover its {n_rows} rows")
        asked = [-1, *(ask.row for ask in message.asks), n_rows]
        if any(row >= following for row, following in pairwise(asked)):
            raise ProtocolError(f"a step of {n_rows} rows that asks for rows {asked[1:-1]}; expected ascending ones")
        x: F32 = decode_array(head, frames[0], self._sync, (n_rows, self._dim))
        self._partial_header = stage_header(Partial, self.steps.epoch, message.step, head)
        self._sum_header = stage_header(Sum, self.steps.epoch, message.step, head)
        return x, _batch(message, frames)

    def all_reduce(self, partial: F32 | U8) -> F32:
        native = self._native
        if native is None:
            self.start(partial)
            return self.finish()
        stage = self.steps.begin_stage()
        own = to_wire(partial, self._kernels, self._sync)
        total = native(self._partial_header(stage), own, self._sum_header(stage))
        self.steps.wait_s += native.waited_s
        if total is not None:
            return total
        (arrived,), other = native.parts, native.unexpected()
        if arrived is None:
            self.steps.expect()
            arrived = self._await_sum(len(own), other)
        return self._add_up(arrived, own)

    def start(self, partial: F32 | U8) -> None:
        own = to_wire(partial, self._kernels, self._sync)
        self._own.append(own)
        for action in self.steps.start(own):
            self._do(action)

    def finish(self) -> F32:
        own = self._own.popleft()
        return self._add_up(self._await_sum(len(own)), own)

    def answer(self, arrays: Sequence[EncodedArray]) -> None:
        """Send these candidates, which end the step or answer MoreCandidates."""
        compute_s = max(0.0, time.monotonic() - self._begun_s - self.steps.wait_s)
        paused_s = max(0.0, compute_s - (time.thread_time() - self._begun_on_core_s))  # more if it spun for a sum
        for action in self.steps.answer(compute_s, paused_s, arrays):
            self._do(action)

    def answer_ping(self, ping: Ping) -> None:
        """Answer a ping with Resend if this worker lacks the input of the pinged stage."""
        for action in self.steps.answer_ping(ping):
            self._do(action)

    def _add_up(self, arrived: U8, own: U8) -> F32:
        """The sum of a stage, from the root's message and, with two nodes, this node's part."""
        return self._kernels.add_up([arrived, own] if self._pair else [arrived], self._sync, encoded=False)[1]

    def _await_sum(self, n_rows: int, received: Sequence[Frame] | None = None) -> U8:
        """Wait for the sum of the oldest open stage. received: a message received already.

        Raises StepVoid, RootLost.
        """
        arrived = None if received is None else self._link.read(received)
        begun = self.steps.wait(time.monotonic(), arrived)
        (part,) = wait(begun, self._do, lambda: self._link.receive(self.steps.wake_at), self.steps.hear)
        return self._read(part, n_rows)

    def _read(self, part: Part, n_rows: int) -> U8:
        if len(part.frames) != 1:
            raise ProtocolError(f"a sum with {len(part.frames)} arrays; expected one")
        return encoded_bytes(part.message.arrays[0], part.frames[0], self._sync, (n_rows, self._dim))

    def _do(self, action: Action) -> None:
        if isinstance(action, Failed):
            raise action.error
        if isinstance(action, Send):
            self._link.send_frames(action.frames)


def _batch(message: Step, frames: Sequence[Frame]) -> Batch:
    """The batch of a step. Raises ProtocolError if its pages do not match its spans."""
    n_pages = [pages_for(start + count) for start, count in message.spans]
    ids = decode_array(message.arrays[1], frames[1], "i32", (1, sum(n_pages)))[0]
    spans, first = [], 0
    for (start, count), n in zip(message.spans, n_pages, strict=True):
        spans.append(Span(start, count, ids[first : first + n]))
        first += n
    return Batch(spans)
