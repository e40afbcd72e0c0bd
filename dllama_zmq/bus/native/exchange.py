"""The fast path of an exchange of partial sums: one compiled call that sends, receives and adds.

The messages are those of the slow path (`bus/star.py`, `bus/star_worker.py`). A message with another header is
handed back, and a part that takes longer than the spin is not waited for: the slow path alone has deadlines and pings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import zmq

from dllama_zmq.bus.messages import Frame
from dllama_zmq.bus.native.layout import (
    COMPLETE,
    FRAME_BYTES,
    MAX_FRAMES,
    PEER_FIELDS,
    UNEXPECTED,
    ExchangeJob,
    Peer,
)
from dllama_zmq.kernels import Kernels, Native
from dllama_zmq.kernels.profiled import Profiled
from dllama_zmq.kernels.simd.arrays import address
from dllama_zmq.kernels.simd.job import Job, indices
from dllama_zmq.kernels.simd.layout import MAX_SERIAL_RUNS, SumJob
from dllama_zmq.quants import F32, U8
from dllama_zmq.spec import SYNC_FLOAT, Sync

_KERNEL = "dllama_zmq.bus.native.kernel:exchange"
EXCHANGE_KERNELS = ("add_up", _KERNEL)
"""The kernel that each of several nodes runs, as in `Needs.kernels`."""
_FUNCTIONS = [name for name in ExchangeJob._fields if name.startswith("zmq_")]
_JOB, _PEER, _SUM = indices(ExchangeJob), indices(Peer), indices(SumJob)
_HEADER_BYTES = 256


@cache
def _libzmq() -> ctypes.CDLL | None:
    """The libzmq that pyzmq itself calls; None if its C functions cannot be reached (pyzmq's cffi back end)."""
    try:
        from zmq.backend.cython import _zmq

        library = ctypes.CDLL(_zmq.__file__)  # finds what this library was linked with
        for name in _FUNCTIONS:
            getattr(library, name)
        for name in ("zmq_msg_more", "zmq_msg_close", "zmq_msg_size", "zmq_msg_data"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.zmq_msg_size.restype, library.zmq_msg_data.restype = ctypes.c_size_t, ctypes.c_void_p
    except (ImportError, OSError, AttributeError):
        return None
    return library


@dataclass(frozen=True, slots=True)
class Wiring:
    """Partial sums go to `to`; the peers' come from `source`, for up to `spin_s` seconds.

    sum_order: the order of addition: 0 is this node's own part, 1 the first peer's, and so on. It may leave some out.
    identities: of the peers at a ROUTER; one empty one for other sockets, which have one peer.
    publish_sum: the sum is sent, when it is made, instead of the own part.
    """

    to: zmq.Socket[bytes]
    source: zmq.Socket[bytes]
    spin_s: float
    sum_order: Sequence[int]
    identities: Sequence[bytes] = (b"",)
    publish_sum: bool = False


def make_native_exchange(kernels: Kernels, sync: Sync, wiring: Wiring) -> NativeExchange | None:
    """A NativeExchange; None if the kernels are not compiled or libzmq cannot be called."""
    library = _libzmq()
    if kernels.native is None or library is None:
        return None
    made = NativeExchange(kernels.native, library, sync, wiring)
    if isinstance(kernels, Profiled):
        made.on_busy = partial(kernels.note, "send, add up")
    return made


class NativeExchange:
    """Sends one partial sum at a time, receives those of the peers, and adds them."""

    def __init__(self, native: Native, library: ctypes.CDLL, sync: Sync, wiring: Wiring) -> None:
        self._native, self._library, self._source = native, library, wiring.source
        self._n_peers, self._publish_sum = len(wiring.identities), wiring.publish_sum
        self._identities = [ctypes.create_string_buffer(each, len(each) + 1) for each in wiring.identities]
        self._peers = (ctypes.c_int64 * (PEER_FIELDS * self._n_peers))()
        for i, identity in enumerate(self._identities):
            self._peers[PEER_FIELDS * i + _PEER.identity] = ctypes.addressof(identity)
            self._peers[PEER_FIELDS * i + _PEER.identity_bytes] = len(identity) - 1
        self._sum_order, self._sync = list(wiring.sum_order), sync
        n_addends = len(self._sum_order)
        self._own_index = self._sum_order.index(0) if 0 in self._sum_order else -1
        self._addends = (ctypes.c_int64 * n_addends)()
        self._add_kernel, self._add_job = native.sum_kernel(sync, ctypes.addressof(self._addends), n_addends)
        self._width, self._adds = 0, False
        self._header, self._expected = (ctypes.create_string_buffer(_HEADER_BYTES) for _ in range(2))
        self._frames = (ctypes.c_char * (FRAME_BYTES * MAX_FRAMES))()
        self._parts = np.empty((self._n_peers, 0, 0), np.uint8)
        functions = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in _FUNCTIONS}
        job = ExchangeJob(
            **functions,
            to=wiring.to.underlying,
            header=ctypes.addressof(self._header),
            expected=ctypes.addressof(self._expected),
            peers=ctypes.addressof(self._peers),
            n_peers=self._n_peers,
            frames=ctypes.addressof(self._frames),
            spin_ns=round(wiring.spin_s * 1e9),
            add_job=self._add_job.address,
        )
        self._job = Job(*job)
        self._source_address = wiring.source.underlying
        self._kernel = native.entry(_KERNEL, 1)
        self.published: U8 | None = None
        """The sum as the last call has sent it; None if it has sent none."""
        self.waited_s = 0.0
        """The seconds that the last call has waited for parts."""
        self.on_busy: Callable[[float], None] | None = None
        """Called after each exchange with the seconds spent sending and adding."""

    def __call__(self, header: bytes, own: U8, expected: bytes) -> F32 | None:
        """Exchange `own` (T, bytes of a row): it, or the sum, is sent under `header`; parts come under `expected`.

        Returns the sum (T, D). Returns None if a part is missing after spin_s, if another message came (`parts` and
        `unexpected()` have the received ones), or if the arrays are too large for one thread to add.
        """
        job, peers, shape = self._job.fields, self._peers, own.shape
        if self._parts.shape[1:] != shape:
            self._resize(shape[0], shape[1])
        for i in range(_PEER.received, PEER_FIELDS * self._n_peers, PEER_FIELDS):
            peers[i] = 0
        ctypes.memmove(self._expected, expected, len(expected))
        job[_JOB.source], job[_JOB.expected_bytes] = self._source_address, len(expected)
        job[_JOB.publish_sum], job[_JOB.add_kernel] = self._publish_sum, self._add_kernel if self._adds else 0
        body = address(own)
        total: F32 | None = None
        self.published = None
        if self._adds:
            add = self._add_job.fields
            total, add[_SUM.out] = self._native.array(shape[0], self._width)
            if self._own_index >= 0:
                self._addends[self._own_index] = body
            if self._publish_sum:
                self.published, body = self._native.array(shape[0], shape[1], np.uint8)
                add[_SUM.wire] = body
        self._call(header, body, own.nbytes)
        self.waited_s = job[_JOB.waited_ns] * 1e-9
        if self.on_busy is not None:
            self.on_busy(job[_JOB.busy_ns] * 1e-9)
        return total if job[_JOB.status] == COMPLETE else None

    def send(self, header: bytes, body: U8) -> None:
        """Send a message of these two frames; receive nothing."""
        job = self._job.fields
        job[_JOB.source] = job[_JOB.add_kernel] = job[_JOB.publish_sum] = 0
        self._call(header, address(body), body.nbytes)

    def _call(self, header: bytes, body: int, n_bytes: int) -> None:
        ctypes.memmove(self._header, header, len(header))
        job = self._job.fields
        job[_JOB.header_bytes], job[_JOB.body], job[_JOB.body_bytes] = len(header), body, n_bytes
        self._kernel(self._job.address)

    def _resize(self, n_rows: int, row_bytes: int) -> None:
        """For parts of another shape than the last ones."""
        self._parts = np.empty((self._n_peers, n_rows, row_bytes), np.uint8)
        for i in range(self._n_peers):
            at = self._peers[PEER_FIELDS * i + _PEER.part] = address(self._parts[i])
            if i + 1 in self._sum_order:
                self._addends[self._sum_order.index(i + 1)] = at
        self._width = SYNC_FLOAT[self._sync].values_in(row_bytes)
        n_runs, rest = divmod(n_rows * self._width, 32)
        self._adds = n_runs <= MAX_SERIAL_RUNS and not rest
        self._job.fields[_JOB.part_bytes], self._job.fields[_JOB.add_items] = n_rows * row_bytes, n_runs

    @property
    def parts(self) -> list[U8 | None]:
        """The part that the last call received from each peer, valid until the next call; None if it is missing."""
        return [part if here else None for part, here in zip(self._parts, self.received, strict=True)]

    @property
    def last(self) -> int:
        """The index of the peer whose part came last in the last call; of any peer if none came."""
        return self._job.fields[_JOB.last]

    @property
    def received(self) -> list[int]:
        """For each peer, 1 if the last call received its part, else 0."""
        return self._peers[_PEER.received :: PEER_FIELDS]

    def unexpected(self) -> list[Frame] | None:
        """The frames of the other message that ended the last call, if one did. To be asked for once."""
        job = self._job.fields
        if job[_JOB.status] != UNEXPECTED:
            return None
        frames: list[Frame] = []
        for i in range(job[_JOB.n_frames]):
            frame = ctypes.addressof(self._frames) + FRAME_BYTES * i
            n_bytes, more = self._library.zmq_msg_size(frame), self._library.zmq_msg_more(frame)
            frames.append(ctypes.string_at(self._library.zmq_msg_data(frame), n_bytes))
            self._library.zmq_msg_close(frame)
        if more:
            frames += self._source.recv_multipart(zmq.NOBLOCK)
        return frames
