"""The compute threads of one node: started once, given jobs, ended with their pool."""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable

from dllama_zmq.kernels.simd.layout import POOL, THREAD, THREAD_BYTES
from dllama_zmq.kernels.simd.library import Library

_MAX_CHUNKS = 1 << 18
SPIN_S = 300e-6
"""How long a thread spins for the next job if every thread has a core of its own."""
OVERSUBSCRIBED_SPIN_S = 20e-6
"""The same with fewer cores than threads: a spinning thread takes a core from the thread that would give it work."""
_YIELDS_AFTER = 20
_JOIN_S = 5.0
"""For the threads to end when their pool is closed."""


class Pool:
    """Runs kernels over `threads` threads, the caller's own among them. One caller at a time."""

    def __init__(self, library: Library, threads: int, oversubscribed: bool) -> None:
        self.threads = threads
        self._run = library.entry("run", 5)
        self._memory = (ctypes.c_int64 * ((POOL.threads + THREAD_BYTES * (threads + 1)) // 8))()
        self.address = ctypes.addressof(self._memory)
        files = {i: os.eventfd(0) for i in range(1, threads)}
        spin_s = OVERSUBSCRIBED_SPIN_S if oversubscribed else SPIN_S
        self._memory[POOL.pauses // 8] = round(spin_s / _pause_s(library))
        self._memory[POOL.yields // 8] = _YIELDS_AFTER
        self._memory[POOL.n_threads // 8] = threads
        for i, file in files.items():
            self._memory[(POOL.threads + THREAD_BYTES * i + THREAD.event_file) // 8] = file
        serve = library.entry("serve", 2)
        # Each holds the memory that it works on: a thread that does not end in time outlives its pool.
        helpers = {
            file: threading.Thread(target=_serve, args=(serve, self._memory, i), name=f"kernels-{i}", daemon=True)
            for i, file in files.items()
        }
        for helper in helpers.values():
            helper.start()
        self._finish = weakref.finalize(self, _end, library.entry("stop", 1), self._memory, helpers)

    def run(self, kernel: int, job: int, n_items: int, chunk: int = 1) -> None:
        """Run the kernel at address `kernel` over `n_items`, `chunk` at a time; one chunk on the caller's thread."""
        if n_items > chunk * _MAX_CHUNKS:
            chunk = -(-n_items // _MAX_CHUNKS)
        self._run(self.address, kernel, job, n_items, chunk)

    def close(self) -> None:
        """End the threads."""
        self._finish()


def _serve(serve: Callable[[int, int], None], memory: ctypes.Array[ctypes.c_int64], index: int) -> None:
    serve(ctypes.addressof(memory), index)


def _end(
    stop: Callable[[int], None], memory: ctypes.Array[ctypes.c_int64], helpers: dict[int, threading.Thread]
) -> None:
    """End the threads and close their files, but not that of a thread still at work, which will read it again."""
    stop(ctypes.addressof(memory))
    until = time.monotonic() + _JOIN_S
    for file, helper in helpers.items():
        helper.join(max(0.0, until - time.monotonic()))
        if not helper.is_alive():
            os.close(file)


def _pause_s(library: Library) -> float:
    """Seconds of one pause instruction: 10 to 140 cycles, depending on the CPU."""
    n = 2000
    spin = library.entry("spin", 1)
    start = time.perf_counter()
    spin(n)
    return max((time.perf_counter() - start) / n, 1e-10)
