"""Exchanges of partial sums by one compiled call each, which calls libzmq's C functions: the bus's short way.

It carries the very same messages. What it does not know (other kinds, other headers) it hands back, and what is late it
does not wait for: `exchange.py` and `worker_exchange.py` go on their long way, which alone has deadlines and pings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import zmq

from dllama_zmq.bus.messages import PROTOCOL, ArrayHead, Frame, Partial, Sum
from dllama_zmq.kernels import Kernels, compiled
from dllama_zmq.kernels.profiled import Profiled
from dllama_zmq.kernels.simd import layout
from dllama_zmq.kernels.simd.layout import ALL_HERE, ALONE_RUNS, FRAME_BYTES, MOST_FRAMES, OTHER, PEER_BYTES
from dllama_zmq.quants import F32, U8
from dllama_zmq.spec import SYNC_FLOAT, Sync

if TYPE_CHECKING:
    from dllama_zmq.kernels.simd.backend import Simd

_FUNCTIONS = {
    "zmq_send": layout.SEND, "zmq_msg_init": layout.INIT, "zmq_msg_recv": layout.RECEIVE, "zmq_msg_close": layout.CLOSE,
    "zmq_msg_data": layout.DATA, "zmq_msg_size": layout.SIZE, "zmq_msg_more": layout.MORE,
}  # fmt: skip
_HEADER_BYTES = 256
_PEER = PEER_BYTES // 8
_IDENTITY, _IDENTITY_BYTES, _GOES_TO, _HAS_COME = range(_PEER)
_HEAD_BYTES, _BODY, _BODY_BYTES, _FROM, _EXPECTED_BYTES, _PART_BYTES, _N_LEFT, _N_FRAMES = (
    place // 8 for place in (
        layout.HEAD_BYTES, layout.BODY, layout.BODY_BYTES, layout.FROM, layout.EXPECTED_BYTES, layout.PART_BYTES,
        layout.N_LEFT, layout.N_FRAMES,
    )
)  # fmt: skip
_WAITED_NS, _BUSY_NS, _STATUS, _ADD, _LATE, _LAST = (
    place // 8 for place in (layout.WAITED_NS, layout.BUSY_NS, layout.STATUS, layout.ADD, layout.LATE, layout.LAST)
)
_WIRE, _OUT = layout.ADD_WIRE // 8, layout.ADD_OUT // 8


@cache
def _libzmq() -> ctypes.CDLL | None:
    """The libzmq that pyzmq itself calls, or None where it is not to be had as C functions (pyzmq's cffi back end)."""
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


def make_trade(
    kernels: Kernels, sync: Sync, to: zmq.Socket[bytes], source: zmq.Socket[bytes], spin_s: float, order: Sequence[int],
    identities: Sequence[bytes] = (b"",), late: bool = False,
) -> Trade | None:  # fmt: skip
    """A Trade where kernels and libzmq allow one; for its arguments see there."""
    simd, library = compiled(kernels), _libzmq()
    if simd is None or library is None:
        return None
    trade = Trade(simd, library, sync, to, source, spin_s, order, identities, late)
    if isinstance(kernels, Profiled):
        trade.note = partial(kernels.note, "send, add up")
    return trade


class Trade:
    """Sends one partial sum at a time to `to`, takes the peers' from `source`, and adds them up.

    identities: of the peers at a ROUTER; one empty one for other sockets, which have one peer.
    order: in which they are added: 0 is this node's own, 1 the first peer's, and so on. Not all need be in it.
    late: nothing is sent but the sum, when it is made.
    """

    def __init__(
        self, simd: Simd, library: ctypes.CDLL, sync: Sync, to: zmq.Socket[bytes], source: zmq.Socket[bytes],
        spin_s: float, order: Sequence[int], identities: Sequence[bytes], late: bool,
    ) -> None:  # fmt: skip
        from dllama_zmq.kernels.simd.arrays import address

        self._simd, self._address, self._library, self._source = simd, address, library, source
        self._from = source.underlying
        self._n_peers, self._late = len(identities), late
        self._identities = [ctypes.create_string_buffer(identity, len(identity) + 1) for identity in identities]
        self._peers = (ctypes.c_int64 * (_PEER * self._n_peers))()
        for i, identity in enumerate(self._identities):
            self._peers[_PEER * i + _IDENTITY] = ctypes.addressof(identity)
            self._peers[_PEER * i + _IDENTITY_BYTES] = len(identity) - 1
        self._order, self._sync = list(order), sync
        self._own_place = self._order.index(0) if 0 in order else -1
        self._table = (ctypes.c_int64 * len(order))()
        self._kernel, self._add = simd.adding(sync, ctypes.addressof(self._table), len(order))
        self._width, self._adds = 0, False
        self._head, self._expected = (ctypes.create_string_buffer(_HEADER_BYTES) for _ in range(2))
        self._frames = (ctypes.c_char * (FRAME_BYTES * MOST_FRAMES))()
        self._parts = np.empty((self._n_peers, 0, 0), np.uint8)
        self._job = (ctypes.c_int64 * (layout.BUSY_NS // 8 + 1))()
        self._job_at = ctypes.addressof(self._job)
        self._run = simd.entry("trade")
        fields = {
            **{place: _address_of(getattr(library, name)) for name, place in _FUNCTIONS.items()},
            layout.TO: to.underlying,
            layout.HEAD: ctypes.addressof(self._head),
            layout.EXPECTED: ctypes.addressof(self._expected),
            layout.PEERS: ctypes.addressof(self._peers),
            layout.N_PEERS: self._n_peers,
            layout.FRAMES: ctypes.addressof(self._frames),
            layout.SPIN_NS: round(spin_s * 1e9),
            layout.ADD_JOB: self._add.address,
        }
        for place, value in fields.items():
            self._job[place // 8] = value
        self.wire: U8 | None = None
        """The sum as it was sent by the last call, if it was."""
        self.waited_s = 0.0
        """How long the last call has waited for parts."""
        self.note: Callable[[float], None] | None = None
        """Told of each call how many seconds it has sent and added."""

    def __call__(self, header: bytes, own: U8, expected: bytes) -> F32 | None:
        """Exchange `own` (T, bytes of a row): it, or the sum, goes out under `header`; parts come under `expected`.

        Returns the sum (T, D), or None where some parts have not come, or are many: see `parts` and `others`.
        """
        job, peers, add = self._job, self._peers, self._add.fields
        shape = own.shape
        if self._parts.shape[1:] != shape:
            self._make_room(shape[0], shape[1])
        for i in range(_HAS_COME, _PEER * self._n_peers, _PEER):
            peers[i] = 0
        ctypes.memmove(self._expected, expected, len(expected))
        job[_FROM], job[_EXPECTED_BYTES], job[_N_LEFT] = self._from, len(expected), self._n_peers
        job[_LATE], job[_ADD] = self._late, self._kernel if self._adds else 0
        at = self._address(own)
        total: F32 | None = None
        self.wire = None
        if self._adds:
            total, add[_OUT] = self._simd.array(shape[0], self._width)
            if self._own_place >= 0:
                self._table[self._own_place] = at
            if self._late:
                self.wire, at = self._simd.array(shape[0], shape[1], np.uint8)
                add[_WIRE] = at
        self._go(header, at, own.nbytes)
        self.waited_s = job[_WAITED_NS] * 1e-9
        if self.note is not None:
            self.note(job[_BUSY_NS] * 1e-9)
        return total if job[_STATUS] == ALL_HERE else None

    def send(self, header: bytes, body: U8) -> None:
        """Send a message of these two frames, and wait for nothing."""
        self._job[_FROM] = self._job[_ADD] = self._job[_LATE] = 0
        self._go(header, self._address(body), body.nbytes)

    def _go(self, header: bytes, at: int, n_bytes: int) -> None:
        ctypes.memmove(self._head, header, len(header))
        job = self._job
        job[_HEAD_BYTES], job[_BODY], job[_BODY_BYTES] = len(header), at, n_bytes
        self._run(self._job_at)

    def _make_room(self, n_rows: int, row_bytes: int) -> None:
        """For parts of another shape than the last ones."""
        self._parts = np.empty((self._n_peers, n_rows, row_bytes), np.uint8)
        for i in range(self._n_peers):
            at = self._peers[_PEER * i + _GOES_TO] = self._address(self._parts[i])
            if i + 1 in self._order:
                self._table[self._order.index(i + 1)] = at
        self._width = SYNC_FLOAT[self._sync].values_in(row_bytes)
        n_runs, rest = divmod(n_rows * self._width, 32)
        self._adds = n_runs <= ALONE_RUNS and not rest
        self._job[_PART_BYTES], self._job[layout.ADD_ITEMS // 8] = n_rows * row_bytes, n_runs

    @property
    def parts(self) -> list[U8 | None]:
        """The part that the last call took from each peer, valid until the next call; None where none came."""
        return [part if came else None for part, came in zip(self._parts, self.came, strict=True)]

    @property
    def last(self) -> int:
        """The peer, counted from 0, whose part came last in the last call; any peer where none came."""
        return self._job[_LAST]

    @property
    def came(self) -> list[int]:
        """For each peer, 1 where the last call took its part, else 0."""
        return self._peers[_HAS_COME::_PEER]

    def others(self) -> list[Frame] | None:
        """The frames of the message that ended the last call because it was another one. To be asked for once."""
        if self._job[_STATUS] != OTHER:
            return None
        frames: list[Frame] = []
        for i in range(self._job[_N_FRAMES]):
            frame = ctypes.addressof(self._frames) + FRAME_BYTES * i
            n_bytes, more = self._library.zmq_msg_size(frame), self._library.zmq_msg_more(frame)
            frames.append(ctypes.string_at(self._library.zmq_msg_data(frame), n_bytes))
            self._library.zmq_msg_close(frame)
        if more:
            frames += self._source.recv_multipart(zmq.NOBLOCK)
        return frames


def _address_of(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def as_it_crosses(values: F32 | U8, kernels: Kernels, sync: Sync) -> U8:
    """A partial sum (T, D) in the type of the bus, if it is not yet."""
    return cast(U8, values) if values.dtype == np.uint8 else kernels.pack(cast(F32, values), sync)


def stage_header(kind: type[Sum | Partial], epoch: int, step: int, head: ArrayHead) -> Callable[[int], bytes]:
    """A function from a stage to the header that `encode` makes of its Sum or Partial: most of it stays the same."""
    before = b"\x96" + b"".join(map(_packed, (PROTOCOL, kind.__name__.lower(), epoch, step)))
    after = msgspec.msgpack.encode([head])
    return lambda stage: before + _packed(stage) + after


@lru_cache(maxsize=4096)
def _packed(value: int | str) -> bytes:
    return msgspec.msgpack.encode(value)
