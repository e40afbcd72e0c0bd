"""One message out and the answers in, without the interpreter: what an exchange of partial sums waits for. numba code.

After a stream of weights the caches hold nothing of the interpreter: sending and receiving through it takes 2 to 4
times as long as through libzmq's C functions alone (tools/BENCHMARKS.md), which are called here by address. Only what
is expected to the byte is taken; whatever else comes is left to the caller, frame by frame.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

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
from dllama_zmq.kernels.simd.layout import (
    ADD,
    ADD_ITEMS,
    ADD_JOB,
    ALL_HERE,
    BODY,
    BODY_BYTES,
    BUSY_NS,
    CLOSE,
    DATA,
    EXPECTED,
    EXPECTED_BYTES,
    FRAME_BYTES,
    FRAMES,
    FROM,
    HEAD,
    HEAD_BYTES,
    INIT,
    LAST,
    LATE,
    MORE,
    MOST_FRAMES,
    N_FRAMES,
    N_LEFT,
    N_PEERS,
    OTHER,
    PART_BYTES,
    PEER_BYTES,
    PEERS,
    RECEIVE,
    SEND,
    SIZE,
    SPIN_NS,
    STATUS,
    TIME_IS_UP,
    TO,
    WAITED_NS,
)
from dllama_zmq.kernels.simd.registry import kernel

_DONTWAIT, _SNDMORE = 1, 2
_MONOTONIC = 1
_time = scratch(16)


@register_jitable
def now_ns():
    """Nanoseconds of a clock that only rises."""
    time = _time()
    read_clock(_MONOTONIC, time)
    return load_i64(time) * 1_000_000_000 + load_i64(time + 8)


@register_jitable
def send(job):
    """HEAD and BODY to the socket TO. Without a connection they are lost, as everything sent then is."""
    function, socket = load_i64(job + SEND), load_i64(job + TO)
    sent = call_c(function, socket, load_i64(job + HEAD), load_i64(job + HEAD_BYTES), _DONTWAIT | _SNDMORE)
    if np.int32(sent) >= 0:
        call_c(function, socket, load_i64(job + BODY), load_i64(job + BODY_BYTES), _DONTWAIT)


@register_jitable
def receive(job):
    """The next message's first frames into FRAMES; how many, 0 where there is no message."""
    n, more = 0, np.int32(1)
    while more != 0 and n < MOST_FRAMES:
        frame = load_i64(job + FRAMES) + FRAME_BYTES * n
        call_c(load_i64(job + INIT), frame, 0, 0, 0)
        if np.int32(call_c(load_i64(job + RECEIVE), frame, load_i64(job + FROM), _DONTWAIT, 0)) < 0:
            call_c(load_i64(job + CLOSE), frame, 0, 0, 0)
            break
        n += 1
        more = np.int32(call_c(load_i64(job + MORE), frame, 0, 0, 0))
    return n


@register_jitable
def is_frame(job, frame, at, n_bytes):
    """Whether a frame holds just the bytes at `at`."""
    if call_c(load_i64(job + SIZE), frame, 0, 0, 0) != n_bytes:
        return False
    return n_bytes == 0 or np.int32(compare_bytes(call_c(load_i64(job + DATA), frame, 0, 0, 0), at, n_bytes)) == 0


@register_jitable
def whose(job, n_frames):
    """The peer whose awaited part is in FRAMES: its place in PEERS; 0 where this is another message."""
    last = load_i64(job + FRAMES) + FRAME_BYTES * (n_frames - 1)
    if n_frames < 2 or np.int32(call_c(load_i64(job + MORE), last, 0, 0, 0)) != 0:
        return 0
    if call_c(load_i64(job + SIZE), last, 0, 0, 0) != load_i64(job + PART_BYTES):
        return 0
    if not is_frame(job, last - FRAME_BYTES, load_i64(job + EXPECTED), load_i64(job + EXPECTED_BYTES)):
        return 0
    for i in range(load_i64(job + N_PEERS)):
        peer = load_i64(job + PEERS) + PEER_BYTES * i
        identity_bytes = load_i64(peer + 8)
        if load_i64(peer + 24) != 0 or n_frames != (2 if identity_bytes == 0 else 3):
            continue
        if identity_bytes == 0 or is_frame(job, load_i64(job + FRAMES), load_i64(peer), identity_bytes):
            return peer
    return 0


@register_jitable
def gather(job, begun):
    """Every peer's part to where PEERS says, for as long as SPIN_NS."""
    n_left = load_i64(job + N_LEFT)
    while n_left > 0:
        n_frames = receive(job)
        if n_frames == 0:
            if now_ns() - begun >= load_i64(job + SPIN_NS):
                return TIME_IS_UP
            yield_core()  # to libzmq's own thread
            continue
        peer = whose(job, n_frames)
        if peer == 0:
            store_i64(job + N_FRAMES, n_frames)
            return OTHER
        last = load_i64(job + FRAMES) + FRAME_BYTES * (n_frames - 1)
        copy_bytes(load_i64(peer + 16), call_c(load_i64(job + DATA), last, 0, 0, 0), load_i64(job + PART_BYTES))
        for i in range(n_frames):
            call_c(load_i64(job + CLOSE), load_i64(job + FRAMES) + FRAME_BYTES * i, 0, 0, 0)
        store_i64(peer + 24, 1)
        store_i64(job + LAST, (peer - load_i64(job + PEERS)) // PEER_BYTES)
        n_left -= 1
    return ALL_HERE


@kernel
def trade(job):
    """Send; take what is awaited, where FROM is a socket; add it up. Or, where LATE says so, take, add and send."""
    late = load_i64(job + LATE)
    called = now_ns()
    if late == 0:
        send(job)
    begun = now_ns()
    status = ALL_HERE
    if load_i64(job + FROM) != 0:
        status = gather(job, begun)
    store_i64(job + STATUS, status)
    gathered = now_ns()
    if status == ALL_HERE and load_i64(job + ADD) != 0:
        call_kernel(load_i64(job + ADD), load_i64(job + ADD_JOB), 0, load_i64(job + ADD_ITEMS))
        if late != 0:
            send(job)
    store_i64(job + WAITED_NS, gathered - begun)
    store_i64(job + BUSY_NS, begun - called + now_ns() - gathered)
