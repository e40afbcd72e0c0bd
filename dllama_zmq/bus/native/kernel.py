"""Send one message and receive the answers without the interpreter. numba code.

Streaming weights evicts the interpreter from the CPU's caches: sending and receiving through it then takes 2 to 4 times
as long as through libzmq's C functions alone (tools/BENCHMARKS.md), which are called here by address. Only messages
that are expected, byte for byte, are handled; any other is left to the caller, frame by frame.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from dllama_zmq.bus.native.layout import (
    COMPLETE,
    FRAME_BYTES,
    MAX_FRAMES,
    PEER_FIELDS,
    TIMED_OUT,
    UNEXPECTED,
    ExchangeJob,
    Peer,
)
from dllama_zmq.kernels.simd.intrinsics import (
    call_c,
    call_kernel,
    compare_bytes,
    copy_bytes,
    load_i64,
    read_clock,
    scratch,
    store_i64,
    yield_core,
)
from dllama_zmq.kernels.simd.job import offsets
from dllama_zmq.kernels.simd.registry import kernel

AT, PEER = offsets(ExchangeJob), offsets(Peer)
PEER_BYTES = 8 * PEER_FIELDS
_DONTWAIT, _SNDMORE = 1, 2
_MONOTONIC = 1
_time = scratch(16)


@register_jitable
def now_ns():
    """Nanoseconds of the monotonic clock."""
    time = _time()
    read_clock(_MONOTONIC, time)
    return load_i64(time) * 1_000_000_000 + load_i64(time + 8)


@register_jitable
def send(job):
    """Header and body. Without a connection they are lost, as on the slow path."""
    function, socket = load_i64(job + AT.zmq_send), load_i64(job + AT.to)
    header, header_bytes = load_i64(job + AT.header), load_i64(job + AT.header_bytes)
    if np.int32(call_c(function, socket, header, header_bytes, _DONTWAIT | _SNDMORE)) >= 0:
        call_c(function, socket, load_i64(job + AT.body), load_i64(job + AT.body_bytes), _DONTWAIT)


@register_jitable
def receive(job):
    """Receive the first frames of the next message; returns their number, 0 if there is no message."""
    n, more = 0, np.int32(1)
    while more != 0 and n < MAX_FRAMES:
        frame = load_i64(job + AT.frames) + FRAME_BYTES * n
        call_c(load_i64(job + AT.zmq_msg_init), frame, 0, 0, 0)
        if np.int32(call_c(load_i64(job + AT.zmq_msg_recv), frame, load_i64(job + AT.source), _DONTWAIT, 0)) < 0:
            call_c(load_i64(job + AT.zmq_msg_close), frame, 0, 0, 0)
            break
        n += 1
        more = np.int32(call_c(load_i64(job + AT.zmq_msg_more), frame, 0, 0, 0))
    return n


@register_jitable
def is_frame(job, frame, at, n_bytes):
    """Whether a frame's bytes are those at `at`."""
    if call_c(load_i64(job + AT.zmq_msg_size), frame, 0, 0, 0) != n_bytes:
        return False
    data = call_c(load_i64(job + AT.zmq_msg_data), frame, 0, 0, 0)
    return n_bytes == 0 or np.int32(compare_bytes(data, at, n_bytes)) == 0


@register_jitable
def sender(job, n_frames):
    """The address of the peer whose awaited part the frames are; 0 if they are another message."""
    last = load_i64(job + AT.frames) + FRAME_BYTES * (n_frames - 1)
    if n_frames < 2 or np.int32(call_c(load_i64(job + AT.zmq_msg_more), last, 0, 0, 0)) != 0:
        return 0
    if call_c(load_i64(job + AT.zmq_msg_size), last, 0, 0, 0) != load_i64(job + AT.part_bytes):
        return 0
    if not is_frame(job, last - FRAME_BYTES, load_i64(job + AT.expected), load_i64(job + AT.expected_bytes)):
        return 0
    for i in range(load_i64(job + AT.n_peers)):
        peer = load_i64(job + AT.peers) + PEER_BYTES * i
        identity_bytes = load_i64(peer + PEER.identity_bytes)
        if load_i64(peer + PEER.received) != 0 or n_frames != (2 if identity_bytes == 0 else 3):
            continue
        identity = load_i64(peer + PEER.identity)
        if identity_bytes == 0 or is_frame(job, load_i64(job + AT.frames), identity, identity_bytes):
            return peer
    return 0


@register_jitable
def gather(job, begun):
    """Receive every peer's part, for up to spin_ns; returns the status."""
    n_missing = load_i64(job + AT.n_peers)
    while n_missing > 0:
        n_frames = receive(job)
        if n_frames == 0:
            if now_ns() - begun >= load_i64(job + AT.spin_ns):
                return TIMED_OUT
            yield_core()  # to libzmq's I/O thread
            continue
        peer = sender(job, n_frames)
        if peer == 0:
            store_i64(job + AT.n_frames, n_frames)
            return UNEXPECTED
        last = load_i64(job + AT.frames) + FRAME_BYTES * (n_frames - 1)
        data = call_c(load_i64(job + AT.zmq_msg_data), last, 0, 0, 0)
        copy_bytes(load_i64(peer + PEER.part), data, load_i64(job + AT.part_bytes))
        for i in range(n_frames):
            call_c(load_i64(job + AT.zmq_msg_close), load_i64(job + AT.frames) + FRAME_BYTES * i, 0, 0, 0)
        store_i64(peer + PEER.received, 1)
        store_i64(job + AT.last, (peer - load_i64(job + AT.peers)) // PEER_BYTES)
        n_missing -= 1
    return COMPLETE


@kernel
def exchange(job):
    """Send, receive the parts if there is a `source`, add them. With `publish_sum`: receive, add, send."""
    publish_sum = load_i64(job + AT.publish_sum)
    called = now_ns()
    if publish_sum == 0:
        send(job)
    begun = now_ns()
    status = COMPLETE
    if load_i64(job + AT.source) != 0:
        status = gather(job, begun)
    store_i64(job + AT.status, status)
    gathered = now_ns()
    if status == COMPLETE and load_i64(job + AT.add_kernel) != 0:
        call_kernel(load_i64(job + AT.add_kernel), load_i64(job + AT.add_job), 0, load_i64(job + AT.add_items))
        if publish_sum != 0:
            send(job)
    store_i64(job + AT.waited_ns, gathered - begun)
    store_i64(job + AT.busy_ns, begun - called + now_ns() - gathered)
