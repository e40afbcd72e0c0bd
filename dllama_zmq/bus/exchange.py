"""`all_reduce` alone and as the root of a star; `worker_exchange.py` is the worker's side of the star.

The root publishes a step, every node makes its partial sums, the root adds them in a tree over the nodes in their order
and publishes each sum. Everybody, the root too, goes on with what was published, decoded: the same bits.

Two nodes need not wait for each other's turn: each sends its own partial sum as soon as it has it, the root as `sum`,
and both add the same two in the same order. One trip is waited for instead of two (tools/BENCHMARKS.md).

Sums and partial sums take the fast path of `native/exchange.py` if there is one. What it leaves takes the slow path
here, and so do those of micro-batches, which are large and not waited for at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from dllama_zmq.bus.arrays import Packed, pack_floats, pack_plain, packed, stage_header, to_wire, unpack
from dllama_zmq.bus.links import RootLink
from dllama_zmq.bus.messages import (
    ArrayHead,
    Bye,
    Candidates,
    Fault,
    Frame,
    Join,
    Message,
    Missed,
    More,
    Partial,
    Ping,
    RowAsk,
    Step,
    Sum,
    encode,
)
from dllama_zmq.bus.native.exchange import NativeExchange, SocketPair, make_native_exchange
from dllama_zmq.bus.peers import PeerGone
from dllama_zmq.bus.roster import Gather, Member, Part, Roster, State
from dllama_zmq.bus.slowest import Wait
from dllama_zmq.errors import ProtocolError, RemoteError, WorkerLost
from dllama_zmq.kernels import Batch, Kernels
from dllama_zmq.quants import F32, U8
from dllama_zmq.spec import Sync

_MOST_KEPT = 64
PING_S = 0.25
"""How often a waiting root knocks at every worker: a broken connection is known after this time, and those who have
answered hear that the root lives."""


class Solo:
    """One node alone: its partial sums are the sums."""

    def __init__(self) -> None:
        self._begun: deque[F32] = deque()

    def all_reduce(self, partial: F32 | U8) -> F32:
        return cast(F32, partial)  # on one node `Reduction.wire` is None: products return float32

    def start(self, partial: F32 | U8) -> None:
        self._begun.append(self.all_reduce(partial))

    def finish(self) -> F32:
        return self._begun.popleft()


@dataclass(frozen=True, slots=True)
class _Begun:
    """A stage whose sum is not made: the root's own part, and those of the others that have come."""

    own: U8
    gather: Gather


class StarRoot:
    """The root's side. `backlog` keeps the last that each peer said out of turn, for whoever runs the cluster.

    wait_s: seconds that the root has waited for the others since the step began, or since it asked for more. waits: the
    same by worker; each wait counts for the worker whose answer ended it.
    """

    def __init__(self, link: RootLink, roster: Roster, kernels: Kernels, sync: Sync, step_s: float) -> None:
        self._link = link
        self._kernels = kernels
        self._roster = roster
        self._sync = sync
        self._step_s = step_s
        self._names = [member.name for member in roster.members]
        self._nodes = [member.node for member in roster.members]
        self._pair = len(self._nodes) == 1
        self._step = 0
        self._stage = 0
        self._begun: deque[_Begun] = deque()
        self._n_batches = 1  # of this step
        self._last: deque[list[Frame]] = deque(maxlen=4)
        self._native: NativeExchange | None = None
        self._native_epoch = -1
        self.backlog: dict[bytes, Message] = {}
        self._forget_waits()

    def begin(self, batch: Batch, x: F32, asks: Sequence[RowAsk], of_asks: Sequence[Packed]) -> F32:
        """Publish a step, with the arrays that its asks need; returns x (T, D), the rows of `batch`, as every node sees
        it.

        Raises WorkerLost, and publishes nothing, while a worker has not heard this epoch's beacon.
        """
        if not self._roster.ready:
            away = [f"{m.name} is {m.state.value}" for m in self._roster.members if m.state is not State.READY]
            raise WorkerLost(f"no step can begin: {', '.join(away)}")
        self._step += 1
        self._forget_waits()
        self._stage, self._n_batches = 0, 1
        self._begun.clear()
        head, frame = pack_floats(x, self._sync)
        self._make_ready(head)
        arrays = [(head, frame), pack_plain(batch.page_ids[None], "i32"), *of_asks]
        heads, frames = [h for h, _ in arrays], [f for _, f in arrays]
        spans = [(span.start, span.count) for span in batch.spans]
        self._publish(Step(self._roster.epoch, self._step, spans, list(asks), heads), frames)
        return unpack(head, frame, self._sync, (x.shape[0], x.shape[1]))

    def all_reduce(self, partial: F32 | U8) -> F32:
        if self._native is None:
            self.start(partial)
            return self.finish()
        self._stage += 1
        own = to_wire(partial, self._kernels, self._sync)  # as the others' do: no node is special
        total = self._fast_path(self._native, own)
        if total is not None:
            return total
        parts, other = self._native.parts, self._native.unexpected()
        missing = [node for node, part in zip(self._nodes, parts, strict=True) if part is None]
        if missing:
            for late in self._collect(self._gather(Partial, missing), other, self._native.waited_s):
                parts[late.node - 1] = self._read(late, len(own))
        else:
            self._count_wait(self._nodes[self._native.last], self._native.waited_s, len(parts) * own.nbytes)
        wire, total = self._add_up(own, [part for part in parts if part is not None])
        if wire is not None:
            header = self._sum_header(self._stage)
            self._native.send(header, wire)
            self._note_sum(header, wire)
        return total

    def start(self, partial: F32 | U8) -> None:
        self._stage += 1
        own = to_wire(partial, self._kernels, self._sync)
        self._begun.append(_Begun(own, self._gather(Partial, self._nodes)))
        self._n_batches = max(self._n_batches, len(self._begun))
        if self._pair:
            self._publish_sum(self._stage, own)

    def finish(self) -> F32:
        begun = self._begun[0]
        parts = self._collect(begun.gather)
        self._begun.popleft()
        wire, total = self._add_up(begun.own, [self._read(part, len(begun.own)) for part in parts])
        if wire is not None:
            self._publish_sum(begun.gather.stage, wire)
        return total

    def candidates(self) -> list[Part]:
        """Every worker's end of the step, in node order."""
        self._stage += 1
        return self._collect(self._gather(Candidates, self._nodes))

    def ask_more(self, again: Sequence[tuple[int, int]]) -> list[Part]:
        """Every worker's best k candidates of the (row, k) in `again`, rows of this step's asks."""
        self._forget_waits()
        self._publish(More(self._roster.epoch, self._step, self._stage + 1, list(again)), [])
        return self.candidates()

    def name(self, node: int) -> str:
        """The name of worker `node`."""
        return self._names[node - 1]

    def _make_ready(self, head: ArrayHead) -> None:
        """For the sums of a step, all with this array head."""
        epoch = self._roster.epoch
        if epoch != self._native_epoch:  # a worker that has joined again has another identity
            identities = [member.identity for member in self._roster.members]
            sockets = SocketPair(self._link.steps, self._link.replies, identities)
            self._native = make_native_exchange(
                self._kernels, self._sync, sockets, self._link.spin_s, range(len(identities) + 1), not self._pair
            )
            self._native_epoch = epoch
        self._head = head
        self._sum_header = stage_header(Sum, epoch, self._step, head)
        self._partial_header = stage_header(Partial, epoch, self._step, head)
        self._sent = [self._link.meter.tally(name, "sent", "sum") for name in self._names]
        self._received = [self._link.meter.tally(name, "received", "partial") for name in self._names]

    def _fast_path(self, native: NativeExchange, own: U8) -> F32 | None:
        """The sum, or None where there is something left to do for it."""
        header, expected = self._sum_header(self._stage), self._partial_header(self._stage)
        total = native(header, own, expected)
        if total is not None:
            self._count_wait(self._nodes[native.last], native.waited_s, len(self._nodes) * own.nbytes)
        for tally, received in zip(self._received, native.received, strict=True):
            if received:
                tally.add_array(len(expected), own.nbytes)
        if self._pair:
            self._note_sum(header, own)
        elif total is not None and native.published is not None:
            self._note_sum(header, native.published)
        return total

    def _add_up(self, own: U8, parts: Sequence[U8]) -> tuple[U8 | None, F32]:
        """The sum as it is to be published, if it is, and as everybody goes on with it."""
        return self._kernels.add_up([own, *parts], self._sync, packed=not self._pair)

    def _publish_sum(self, stage: int, body: U8) -> None:
        head = ArrayHead(self._sync, len(body), self._head.columns)
        self._publish(Sum(self._roster.epoch, self._step, stage, [head]), [body.data.cast("B")])

    def _note_sum(self, header: bytes, body: U8) -> None:
        """A sum has been sent on the fast path."""
        self._last.append([header, body.data.cast("B")])
        for tally in self._sent:
            tally.add_array(len(header), body.nbytes)

    def _publish(self, message: Message, arrays: Sequence[Frame]) -> None:
        self._last.append(self._link.publish(message, arrays, self._names))

    def _read(self, part: Part, n_rows: int) -> U8:
        try:
            return packed(part.message.arrays[0], part.frames[0], self._sync, (n_rows, self._head.columns))
        except (ProtocolError, IndexError) as error:
            place = self._place(Partial, part.message.stage)
            raise RemoteError(self.name(part.node), f"its partial sum at {place} is {error}") from None

    def _gather(self, kind: type[Partial | Candidates], nodes: Sequence[int]) -> Gather:
        """For the parts of these workers of the present stage."""
        return Gather(kind, self._roster.epoch, self._step, self._stage, nodes)

    def _collect(self, gather: Gather, frames: Sequence[Frame] | None = None, waited_s: float = 0.0) -> list[Part]:
        """All parts of `gather`, in node order. `frames`: a message received before. `waited_s`: the wait before.

        Raises WorkerLost, RemoteError.
        """
        start = time.monotonic()
        first = None if frames is None else self._link.read(frames)
        if first is not None:
            self._take(gather, *first)
        deadline, next_ping = start + self._step_s, start + PING_S
        while gather.missing:
            now = time.monotonic()  # looked at every turn: a flood of other messages must not outlast the deadline
            if now >= deadline:
                raise WorkerLost(self._late(gather, now - start))
            if now >= next_ping:
                self._ping(gather)
                next_ping = now + PING_S
            arrived = self._link.receive(min(next_ping, deadline))
            if arrived is not None:
                self._take(gather, *arrived)
        parts = gather.in_node_order()
        n_bytes = sum(len(frame) for part in parts for frame in part.frames)
        self._count_wait(gather.last, waited_s + time.monotonic() - start, n_bytes)
        return parts

    def _forget_waits(self) -> None:
        self.wait_s = 0.0
        self.waits = {name: Wait() for name in self._names}

    def _count_wait(self, node: int, seconds: float, n_bytes: int) -> None:
        """The root has waited `seconds` for messages of `n_bytes` together, and that of worker `node` came last."""
        self.wait_s += seconds
        self.waits[self.name(node)].add(seconds, n_bytes)

    def _take(self, gather: Gather, identity: bytes, message: Message, frames: list[Frame]) -> None:
        """A message that came while `gather` is waited for."""
        member = self._roster.find(identity)
        here = (self._roster.epoch, self._step)
        if member is None:
            if isinstance(message, Join):
                self._keep(identity, message)
        elif isinstance(message, Partial | Candidates):
            for open_one in (gather, *(begun.gather for begun in self._begun)):  # a worker may be a stage ahead
                if open_one.offer(member.node, message, frames):
                    break
        elif isinstance(message, Fault):
            if (message.epoch, message.step) == here:
                raise RemoteError(member.name, message.text)
        elif isinstance(message, Missed):
            if (message.epoch, message.step, message.stage) == (*here, gather.stage):
                self._send_again(gather, member)
        else:
            self._keep(identity, message)
            if isinstance(message, Join):
                self._lose(gather, member, "it started again")

    def _keep(self, identity: bytes, message: Message) -> None:
        """Keep a message until the step has ended. One that is dropped comes again: a worker repeats its join."""
        if identity in self.backlog or len(self.backlog) < _MOST_KEPT:
            self.backlog[identity] = message

    def _send_again(self, gather: Gather, member: Member) -> None:
        """Send what a worker may lack that has not sent its part: the last message, or with two micro-batches the last
        two. With two nodes twice as many, for there the root goes on without the worker's answer."""
        for frames in list(self._last)[-self._n_batches * (2 if self._pair else 1) :]:
            self._to(gather, member, "again", frames)

    def _ping(self, gather: Gather) -> None:
        ping = encode(Ping(self._roster.epoch, self._step, gather.stage))
        for member in self._roster.members:
            self._to(gather, member, "ping", ping)

    def _to(self, gather: Gather, member: Member, message_kind: str, frames: list[Frame]) -> None:
        try:
            self._link.send_frames(member.identity, member.name, message_kind, frames)
        except PeerGone:
            self._lose(gather, member, "its connection broke, or it gave no sign of life for 2 s")

    def _lose(self, gather: Gather, member: Member, reason: str) -> None:
        self._roster.lose(member, f"was lost: {reason}")
        raise WorkerLost(f"{member.name} was lost at {self._place(gather.kind, gather.stage)}: {reason}")

    def _late(self, gather: Gather, seconds: float) -> str:
        for node in gather.missing:
            member, reason = self._roster.members[node - 1], f"did not answer for {seconds:.1f} s"
            with suppress(PeerGone):  # should it be alive after all, it must know that it has to join again
                self._link.send(member.identity, member.name, Bye(True, f"{member.name} {reason}"))
            self._roster.lose(member, reason)
        place = self._place(gather.kind, gather.stage)
        return (
            f"{', '.join(map(self.name, gather.missing))} did not answer at {place} for {seconds:.1f} s; "
            "if that machine is only slow, raise limits.step_s in cluster.yaml"
        )

    def _place(self, kind: type[Message], stage: int) -> str:
        if kind is Candidates:
            return f"step {self._step}, logits"
        layer, feed_forward = divmod((stage - 1) // self._n_batches, 2)
        return f"step {self._step}, layer {layer}, {'feed-forward' if feed_forward else 'attention'}"
