"""Run a job on several threads without the interpreter. numba code.

The pool is a block of memory. Each thread has a share of adjacent chunks, so that it reads one stream of weights. Its
ticket counts the chunks taken; one atomic addition takes the next. A thread that has finished its own share takes
chunks from the others'. A thread that comes late finds nothing left, so only threads at work are waited for, never one
that the system has descheduled. An idle thread spins, then sleeps in a read of its eventfd.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.intrinsics import (
    add_shared,
    call_kernel,
    load_i64,
    load_shared,
    pause,
    read_file,
    store_i64,
    store_shared,
    swap_shared,
    write_file,
    yield_core,
)
from dllama_zmq.kernels.simd.layout import POOL, THREAD, THREAD_BYTES
from dllama_zmq.kernels.simd.registry import kernel

_FIELD = (1 << 20) - 1


@register_jitable
def take_chunks(pool, own):
    """Do chunks of the present job until none is left, first those of thread `own`.

    `done` is counted once per share: all threads write it, and moving its cache line between cores stalls a stream of
    weights.
    """
    n_threads = load_i64(pool + POOL.n_threads)
    for turn in range(n_threads):
        n_done = 0
        thread = own + turn
        if thread >= n_threads:
            thread -= n_threads
        at = pool + POOL.threads + THREAD_BYTES * thread + THREAD.ticket
        while True:
            ticket = load_shared(at)  # read first: a useless addition would slow the others
            if ticket & _FIELD >= (ticket >> 20) & _FIELD:
                break
            ticket = add_shared(at, 1)
            chunk = ticket & _FIELD
            if chunk >= (ticket >> 20) & _FIELD:
                break
            # The job cannot end before this chunk counts as done, so its fields do not change.
            size = load_i64(pool + POOL.chunk)
            first = (thread * load_i64(pool + POOL.share) + chunk) * size
            last = min(first + size, load_i64(pool + POOL.n_items))
            call_kernel(load_i64(pool + POOL.kernel), load_i64(pool + POOL.job), first, last)
            n_done += 1
        if n_done > 0:
            add_shared(pool + POOL.done, n_done)


@kernel
def run(pool, function, job, n_items, chunk):
    """Run the kernel at `function` over `n_items` in chunks on all threads; returns when all are done."""
    n_chunks = (n_items + chunk - 1) // chunk
    n_threads = load_i64(pool + POOL.n_threads)
    if n_chunks <= 1 or n_threads == 1:
        call_kernel(function, job, 0, n_items)
        return
    share = (n_chunks + n_threads - 1) // n_threads
    store_i64(pool + POOL.kernel, function)
    store_i64(pool + POOL.job, job)
    store_i64(pool + POOL.n_items, n_items)
    store_i64(pool + POOL.chunk, chunk)
    store_i64(pool + POOL.share, share)
    store_shared(pool + POOL.done, 0)
    number = (load_shared(pool + POOL.posted) + 1) & 0x3FFFFF
    for i in range(n_threads):
        left = max(0, min(share, n_chunks - i * share))
        store_shared(pool + POOL.threads + THREAD_BYTES * i + THREAD.ticket, (number << 40) | (left << 20))
    store_shared(pool + POOL.posted, number)
    for i in range(1, n_threads):
        thread = pool + POOL.threads + THREAD_BYTES * i
        if load_shared(thread + THREAD.asleep) == 1 and swap_shared(thread + THREAD.asleep, 0) == 1:
            wake(thread)
    take_chunks(pool, 0)
    turns = 0
    while load_shared(pool + POOL.done) < n_chunks:
        pause()
        turns += 1
        if turns > 2000:  # the thread with the last chunk may be waiting for this core
            yield_core()


@register_jitable
def wake(thread):
    store_i64(thread + THREAD.written, 1)
    write_file(load_i64(thread + THREAD.event_file), thread + THREAD.written, 8)


@kernel
def stop(pool):
    """Let every thread of the pool return from `serve`."""
    store_shared(pool + POOL.stop, 1)
    for i in range(1, load_i64(pool + POOL.n_threads)):
        wake(pool + POOL.threads + THREAD_BYTES * i)


@kernel
def serve(pool, index):
    """The loop of thread `index`, from 1: do chunks; without a new job spin, then sleep."""
    thread = pool + POOL.threads + THREAD_BYTES * index
    idle = seen = 0
    while load_shared(pool + POOL.stop) == 0:
        posted = load_shared(pool + POOL.posted)
        if posted != seen:
            seen = posted
            take_chunks(pool, index)
            idle = 0
        elif idle < load_i64(pool + POOL.pauses):
            pause()
            idle += 1
        elif idle < load_i64(pool + POOL.pauses) + load_i64(pool + POOL.yields):
            yield_core()
            idle += 1
        else:
            store_shared(thread + THREAD.asleep, 1)
            # A job posted before `asleep` was seen wakes no thread.
            if load_shared(pool + POOL.posted) != seen and swap_shared(thread + THREAD.asleep, 0) == 1:
                continue
            read_file(load_i64(thread + THREAD.event_file), thread + THREAD.read, 8)
            idle = 0


@kernel
def spin(n):
    """`n` pause instructions, to measure one."""
    for _ in range(n):
        pause()
