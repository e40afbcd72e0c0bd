"""Exchanges of partial sums through libzmq's C functions, called by the compiled kernels: the bus's short way.

It carries the very same messages. What it does not know (other kinds, other headers) it hands back, and what is late it
does not wait for: `exchange.py` and `worker_exchange.py` go on their long way, which alone has deadlines and pings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
import zmq

from dllama_zmq.bus.messages import Frame
from dllama_zmq.kernels import Kernels
from dllama_zmq.kernels.simd import layout
from dllama_zmq.kernels.simd.layout import FRAME_BYTES, OTHER
from dllama_zmq.quants import U8

_NAMES = ("zmq_send", "zmq_msg_init", "zmq_msg_recv", "zmq_msg_close", "zmq_msg_data", "zmq_msg_size", "zmq_msg_more")
_HEADER_BYTES = 256
(_TO, _HEAD_BYTES, _BODY, _BODY_BYTES, _FROM, _EXPECTED_BYTES, _PART_BYTES, _N_LEFT, _N_FRAMES, _WAITED_NS, _STATUS) = (
    place // 8
    for place in (
        layout.TO, layout.HEAD_BYTES, layout.BODY, layout.BODY_BYTES, layout.FROM, layout.EXPECTED_BYTES,
        layout.PART_BYTES, layout.N_LEFT, layout.N_FRAMES, layout.WAITED_NS, layout.STATUS,
    )
)  # fmt: skip


@cache
def _libzmq() -> ctypes.CDLL | None:
    """The libzmq that pyzmq itself calls, or None where it is not to be had as C functions (pyzmq's cffi back end)."""
    try:
        from zmq.backend.cython import _zmq

        library = ctypes.CDLL(_zmq.__file__)  # finds what this library was linked with
        for name in _NAMES:
            getattr(library, name)
        for name in ("zmq_msg_more", "zmq_msg_close", "zmq_msg_size", "zmq_msg_data"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.zmq_msg_size.restype, library.zmq_msg_data.restype = ctypes.c_size_t, ctypes.c_void_p
    except (ImportError, OSError, AttributeError):
        return None
    return library


def make_trade(
    kernels: Kernels, to: zmq.Socket[bytes], source: zmq.Socket[bytes], spin_s: float, identities: Sequence[bytes]
) -> Trade | None:
    """A Trade where kernels and libzmq allow one. `identities`: of the peers at a ROUTER; [b""] for other sockets."""
    library = _libzmq() if kernels.name == "simd" else None
    return None if library is None else Trade(library, to, source, spin_s, identities)


class Trade:
    """Sends one message at a time to `to`, and takes the peers' answers to it from `source`.

    waited_s: how long the last call has waited for answers.
    """

    def __init__(
        self, library: ctypes.CDLL, to: zmq.Socket[bytes], source: zmq.Socket[bytes], spin_s: float,
        identities: Sequence[bytes],
    ) -> None:  # fmt: skip
        from dllama_zmq.kernels.simd.backend import address
        from dllama_zmq.kernels.simd.library import library as compiled

        self._library, self._source, self._address_of = library, source, address
        self._run = compiled().entries["trade"]
        self._to, self._from = to.underlying, source.underlying
        self._identities = [ctypes.create_string_buffer(identity, len(identity) + 1) for identity in identities]
        self._peers = (ctypes.c_int64 * (4 * len(identities)))()
        for i, identity in enumerate(self._identities):
            self._peers[4 * i], self._peers[4 * i + 1] = ctypes.addressof(identity), len(identity) - 1
        self._frames = (ctypes.c_char * (layout.FRAME_BYTES * layout.MOST_FRAMES))()
        self._head, self._expected = (ctypes.create_string_buffer(_HEADER_BYTES) for _ in range(2))
        self._parts = np.empty((len(identities), 0, 0), np.uint8)
        self._job = job = (ctypes.c_int64 * (layout.STATUS // 8 + 1))()
        self._job_at = ctypes.addressof(job)
        functions = (layout.SEND, layout.INIT, layout.RECEIVE, layout.CLOSE, layout.DATA, layout.SIZE, layout.MORE)
        for place, name in zip(functions, _NAMES, strict=True):
            job[place // 8] = ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
        job[layout.HEAD // 8], job[layout.EXPECTED // 8] = map(ctypes.addressof, (self._head, self._expected))
        job[layout.PEERS // 8], job[layout.FRAMES // 8] = ctypes.addressof(self._peers), ctypes.addressof(self._frames)
        job[layout.N_PEERS // 8], job[layout.SPIN_NS // 8] = len(identities), round(spin_s * 1e9)
        self.waited_s = 0.0

    def send(self, header: bytes, body: U8) -> None:
        """Send a message of these two frames, and wait for nothing."""
        self._put(header, body)
        self._job[_FROM] = 0
        self._run(self._job_at)

    def __call__(
        self, header: bytes, body: U8 | None, expected: bytes, shape: tuple[int, int]
    ) -> tuple[list[U8 | None], list[Frame] | None]:
        """Send header and body, if there is one; take from each peer a message of the header `expected` and an array
        of `shape` (rows, bytes of a row).

        Returns the peers' arrays, None for one that has not come while this spun, and the frames of a message that has
        come instead. The arrays are good until the next call.
        """
        job, peers, n_peers = self._job, self._peers, len(self._identities)
        if body is None:
            job[_TO] = 0
        else:
            self._put(header, body)
        if self._parts.shape[1:] != shape:
            self._parts = np.empty((n_peers, *shape), np.uint8)
            for i in range(n_peers):
                peers[4 * i + 2] = self._address_of(self._parts[i])
        for i in range(n_peers):
            peers[4 * i + 3] = 0
        ctypes.memmove(self._expected, expected, len(expected))
        job[_FROM], job[_EXPECTED_BYTES], job[_PART_BYTES] = self._from, len(expected), shape[0] * shape[1]
        job[_N_LEFT] = n_peers
        self._run(self._job_at)
        self.waited_s = job[_WAITED_NS] * 1e-9
        parts = [self._parts[i] if peers[4 * i + 3] else None for i in range(n_peers)]
        return parts, self._open_frames() if job[_STATUS] == OTHER else None

    def _put(self, header: bytes, body: U8) -> None:
        ctypes.memmove(self._head, header, len(header))
        job = self._job
        job[_TO], job[_HEAD_BYTES] = self._to, len(header)
        job[_BODY], job[_BODY_BYTES] = self._address_of(body), body.nbytes

    def _open_frames(self) -> list[Frame]:
        """The message that was not awaited, whole."""
        frames: list[Frame] = []
        for i in range(self._job[_N_FRAMES]):
            frame = ctypes.addressof(self._frames) + FRAME_BYTES * i
            n_bytes, more = self._library.zmq_msg_size(frame), self._library.zmq_msg_more(frame)
            frames.append(ctypes.string_at(self._library.zmq_msg_data(frame), n_bytes))
            self._library.zmq_msg_close(frame)
        if more:
            frames += self._source.recv_multipart(zmq.NOBLOCK)
        return frames
