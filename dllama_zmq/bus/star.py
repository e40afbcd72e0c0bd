"""The root of a star: it publishes a step, adds all partial sums and publishes each sum.

The root adds the nodes' partial sums in a tree, in node order. Every node, the root too, continues with the decoded
published sum, so all have the same bits. Two nodes exchange partial sums instead: each sends its own as soon as it has
it, the root as `sum`, and both add the same two in the same order.

Sums and partial sums take the fast path of `native/exchange.py` if there is one. Messages that it does not expect or
does not get in time take the slow path, and so do micro-batches, whose sums are large and not needed at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence

from dllama_zmq.bus.arrays import (
    EncodedArray,
    decode_array,
    encode_floats,
    encode_plain,
    encoded_bytes,
    stage_header,
    to_wire,
)
from dllama_zmq.bus.exchange import wait
from dllama_zmq.bus.links import RootLink
from dllama_zmq.bus.messages import ArrayHead, Candidates, Frame, Message, Partial, RowAsk, Sum
from dllama_zmq.bus.native.exchange import NativeExchange, Wiring, make_native_exchange
from dllama_zmq.bus.peers import PeerGone
from dllama_zmq.bus.roster import Roster
from dllama_zmq.bus.steps import Action, Failed, Part, Publish, RootSteps, Send
from dllama_zmq.bus.waits import Wait
from dllama_zmq.errors import ProtocolError, RemoteError
from dllama_zmq.kernels import Batch, Kernels
from dllama_zmq.quants import F32, U8
from dllama_zmq.spec import Sync


class StarRoot:
    """The root's `Exchange` with the workers of `roster`."""

    def __init__(self, link: RootLink, roster: Roster, kernels: Kernels, sync: Sync, step_s: float) -> None:
        self._link, self._roster, self._kernels, self._sync = link, roster, kernels, sync
        self._steps = RootSteps(roster, sync, step_s)
        self._names = [member.name for member in roster.members]
        self._own: deque[U8] = deque()  # the root's partial sums of open stages
        self._native: NativeExchange | None = None
        self._native_epoch = -1

    @property
    def wait_s(self) -> float:
        return self._steps.wait_s

    @property
    def waits(self) -> Mapping[str, Wait]:
        return self._steps.waits

    def begin(self, batch: Batch, x: F32, asks: Sequence[RowAsk], of_asks: Sequence[EncodedArray]) -> F32:
        head, frame = encode_floats(x, self._sync)
        arrays = [(head, frame), encode_plain(batch.page_ids[None], "i32"), *of_asks]
        spans = [(span.start, span.count) for span in batch.spans]
        self._own.clear()
        for action in self._steps.begin(spans, asks, arrays):
            self._do(action)
        self._make_ready(head)
        return decode_array(head, frame, self._sync, (x.shape[0], x.shape[1]))

    def all_reduce(self, partial: F32 | U8) -> F32:
        native = self._native
        if native is None:
            self.start(partial)
            return self.finish()
        own = to_wire(partial, self._kernels, self._sync)  # rounded as every node's
        stage = self._steps.begin_stage()
        header, expected = self._sum_header(stage), self._partial_header(stage)
        total = native(header, own, expected)
        for tally, received in zip(self._received, native.received, strict=True):
            if received:
                tally.add_array(len(expected), own.nbytes)
        if self._steps.pair:
            self._note_published(header, own)
        elif total is not None and native.published is not None:
            self._note_published(header, native.published)
        if total is None:
            return self._add_on_slow_path(native, header, own)
        self._steps.count_wait(self._names[native.last], native.waited_s, len(self._names) * own.nbytes)
        return total

    def start(self, partial: F32 | U8) -> None:
        own = to_wire(partial, self._kernels, self._sync)
        self._own.append(own)
        for action in self._steps.start(own):
            self._do(action)

    def finish(self) -> F32:
        parts = self._wait()
        own = self._own.popleft()
        wire, total = self._add_up(own, [self._read(part, len(own)) for part in parts])
        if wire is not None:
            self._do(self._steps.sum(parts[0].message.stage, wire))
        return total

    def candidates(self) -> list[Part]:
        self._steps.begin_stage()
        self._steps.expect(Candidates)
        return self._wait()

    def ask_more(self, again: Sequence[tuple[int, int]]) -> list[Part]:
        for action in self._steps.more(again):
            self._do(action)
        return self.candidates()

    def out_of_turn(self) -> dict[bytes, Message]:
        return self._steps.out_of_turn()

    def _make_ready(self, head: ArrayHead) -> None:
        """Prepare headers, meter rows and the fast path for the sums of a step, which all have this array head."""
        epoch, link = self._roster.epoch, self._link
        if epoch != self._native_epoch:  # a worker that has joined again has another identity
            identities, order = [member.identity for member in self._roster.members], range(len(self._names) + 1)
            wiring = Wiring(link.steps, link.replies, link.spin_s, order, identities, not self._steps.pair)
            self._native = make_native_exchange(self._kernels, self._sync, wiring)
            self._native_epoch = epoch
        self._columns = head.columns
        self._sum_header = stage_header(Sum, epoch, self._steps.step, head)
        self._partial_header = stage_header(Partial, epoch, self._steps.step, head)
        self._sent = [link.meter.tally(name, "sent", "sum") for name in self._names]
        self._received = [link.meter.tally(name, "received", "partial") for name in self._names]

    def _add_on_slow_path(self, native: NativeExchange, header: bytes, own: U8) -> F32:
        """Finish a sum that the fast path returned: a part is late, another message came, or the arrays are large."""
        parts, other = native.parts, native.unexpected()
        missing = [node for node, part in enumerate(parts, start=1) if part is None]
        if missing:
            self._steps.expect(Partial, missing)
            for late in self._wait(other, native.waited_s):
                parts[late.node - 1] = self._read(late, len(own))
        else:
            self._steps.count_wait(self._names[native.last], native.waited_s, len(parts) * own.nbytes)
        wire, total = self._add_up(own, [part for part in parts if part is not None])
        if wire is not None:
            native.send(header, wire)
            self._note_published(header, wire)
        return total

    def _note_published(self, header: bytes, body: U8) -> None:
        """Note and meter a sum that was sent on the fast path."""
        self._steps.note_published([header, body.data.cast("B")])
        for tally in self._sent:
            tally.add_array(len(header), body.nbytes)

    def _add_up(self, own: U8, parts: Sequence[U8]) -> tuple[U8 | None, F32]:
        """The sum encoded for publishing (None with two nodes), and the sum that every node continues with."""
        return self._kernels.add_up([own, *parts], self._sync, encoded=not self._steps.pair)

    def _read(self, part: Part, n_rows: int) -> U8:
        try:
            return encoded_bytes(part.message.arrays[0], part.frames[0], self._sync, (n_rows, self._columns))
        except (ProtocolError, IndexError) as error:
            place = self._steps.place(Partial, part.message.stage)
            raise RemoteError(part.name, f"its partial sum at {place} is {error}") from None

    def _wait(self, received: Sequence[Frame] | None = None, waited_s: float = 0.0) -> list[Part]:
        """Wait for the parts of the oldest open stage. received: a message received already. waited_s: seconds waited
        already.

        Raises WorkerLost, RemoteError.
        """
        arrived = None if received is None else self._link.read(received)
        begun = self._steps.wait(time.monotonic(), arrived, waited_s)
        return wait(begun, self._do, lambda: self._link.receive(self._steps.wake_at), self._steps.hear)

    def _do(self, action: Action) -> None:
        if isinstance(action, Failed):
            raise action.error
        if isinstance(action, Publish):
            self._link.publish_frames(action.kind, action.frames)
        elif isinstance(action, Send):
            try:
                self._link.send_frames(action.identity, action.name, action.kind, action.frames)
            except PeerGone:
                for following in self._steps.gone(action.identity):
                    self._do(following)
