"""A job over several threads, without the interpreter: threads that spin for a moment and then sleep. numba code.

The pool is a block of memory. Its ticket says which chunk of the job is to be taken next; one atomic addition takes it.
Whoever comes late finds nothing left, so nobody is waited for but those at work: a thread that the system has put aside
holds nobody up. A thread that finds nothing for long sleeps in a read of its eventfd until a job wakes it.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.layout import (
    CHUNK,
    DONE,
    JOB,
    KERNEL,
    N_ITEMS,
    N_THREADS,
    PAUSES,
    SLEEPER_BYTES,
    SLEEPERS,
    STOP,
    TICKET,
    YIELDS,
)
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.vectors import (
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

_FIELD = (1 << 20) - 1


@register_jitable
def take_chunks(pool):
    """Work until no chunk of the present job is left."""
    while True:
        ticket = load_shared(pool + TICKET)  # looked at first: an addition for nothing would slow the others
        if ticket & _FIELD >= (ticket >> 20) & _FIELD:
            return
        ticket = add_shared(pool + TICKET, 1)
        chunk = ticket & _FIELD
        if chunk >= (ticket >> 20) & _FIELD:
            return
        # The job cannot end before this chunk is done: its fields stay as they are.
        size = load_i64(pool + CHUNK)
        first = chunk * size
        call_kernel(load_i64(pool + KERNEL), load_i64(pool + JOB), first, min(first + size, load_i64(pool + N_ITEMS)))
        add_shared(pool + DONE, 1)


@kernel
def run(pool, function, job, n_items, chunk):
    """The kernel at `function` over `n_items`, in chunks, by this thread and the pool's. Returns when all is done."""
    n_chunks = (n_items + chunk - 1) // chunk
    if n_chunks <= 1:
        call_kernel(function, job, 0, n_items)
        return
    store_i64(pool + KERNEL, function)
    store_i64(pool + JOB, job)
    store_i64(pool + N_ITEMS, n_items)
    store_i64(pool + CHUNK, chunk)
    store_shared(pool + DONE, 0)
    number = (load_shared(pool + TICKET) >> 40) + 1
    store_shared(pool + TICKET, ((number & 0x3FFFFF) << 40) | (n_chunks << 20))
    for i in range(load_i64(pool + N_THREADS)):
        sleeper = pool + SLEEPERS + SLEEPER_BYTES * i
        if load_shared(sleeper) == 1 and swap_shared(sleeper, 0) == 1:
            wake(sleeper)
    take_chunks(pool)
    turns = 0
    while load_shared(pool + DONE) < n_chunks:
        pause()
        turns += 1
        if turns > 2000:  # whoever has the last chunk may be waiting for this core
            yield_core()


@register_jitable
def wake(sleeper):
    store_i64(sleeper + 16, 1)
    write_file(load_i64(sleeper + 8), sleeper + 16, 8)


@kernel
def stop(pool):
    """Let every thread of the pool return from `serve`."""
    store_shared(pool + STOP, 1)
    for i in range(load_i64(pool + N_THREADS)):
        wake(pool + SLEEPERS + SLEEPER_BYTES * i)


@kernel
def serve(pool, index):
    """The life of thread `index`: take chunks; spin while there are none; sleep when that lasts."""
    sleeper = pool + SLEEPERS + SLEEPER_BYTES * index
    idle = 0
    while load_shared(pool + STOP) == 0:
        ticket = load_shared(pool + TICKET)
        if ticket & _FIELD < (ticket >> 20) & _FIELD:
            take_chunks(pool)
            idle = 0
        elif idle < load_i64(pool + PAUSES):
            pause()
            idle += 1
        elif idle < load_i64(pool + PAUSES) + load_i64(pool + YIELDS):
            yield_core()
            idle += 1
        else:
            store_shared(sleeper, 1)
            ticket = load_shared(pool + TICKET)  # a job that came before it was seen to sleep wakes nobody
            if ticket & _FIELD < (ticket >> 20) & _FIELD and swap_shared(sleeper, 0) == 1:
                continue
            read_file(load_i64(sleeper + 8), sleeper + 24, 8)
            idle = 0


@kernel
def spin(n):
    """`n` pauses: to find out how long one is."""
    for _ in range(n):
        pause()
