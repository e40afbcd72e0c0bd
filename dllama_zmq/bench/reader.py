"""How fast this computer reads memory: the limit of decoding, since each token reads every weight."""

from __future__ import annotations

import mmap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from dllama_zmq.errors import UsageError
from dllama_zmq.host import free_memory_bytes, largest_cache_bytes, usable_cores
from dllama_zmq.kernels import Kernels, choose_kernels

MIN_READ_BYTES, MAX_READ_BYTES = 1 << 28, 1 << 30
_TIMES_CACHE = 4
_CHUNK_BYTES = 1 << 20
_SPANS_PER_THREAD = 8  # NumPy: several for each thread, so that one that is delayed does not delay the pass


class MemoryReader:
    """`threads` threads that read the same `n_bytes` of memory each time that `pass_s` is called."""

    def __init__(self, threads: int, kernels: Kernels | None = None) -> None:
        """kernels: if they are simd's, their threads read. Else new threads of simd read if it can run, else NumPy's
        maximum, which may be slower.
        """
        self._native = None if kernels is None else kernels.native
        if self._native is None:
            with suppress(UsageError):
                self._native = choose_kernels("simd", threads, threads > usable_cores()).native
        n_chunks = max(16, bytes_to_read(threads, largest_cache_bytes(), free_memory_bytes()) // _CHUNK_BYTES)
        self.n_bytes = n_chunks * _CHUNK_BYTES
        pages = mmap.mmap(-1, self.n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared pages are never huge
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):
                pages.madvise(mmap.MADV_HUGEPAGE)
        self._chunks = np.frombuffer(pages, np.float32).reshape(n_chunks, -1)
        self._spans = np.array_split(self._chunks, threads * _SPANS_PER_THREAD)
        self._threads = ThreadPoolExecutor(threads, "reader")
        # Untouched pages are all the same zero page. Each thread takes pages that are near its core.
        list(self._threads.map(lambda span: span.fill(1), self._spans))

    @property
    def read_by(self) -> str:
        return "numpy" if self._native is None else "simd"

    def pass_s(self) -> float:
        """Read all of it once; returns the seconds."""
        if self._native is None:
            start = time.perf_counter()
            list(self._threads.map(np.max, self._spans))  # releases the interpreter's lock, and is a SIMD loop
            return time.perf_counter() - start
        from dllama_zmq.kernels.simd.job import Job
        from dllama_zmq.kernels.simd.layout import ReadJob

        sums = np.empty((len(self._chunks), 16), np.float32)  # a cache line each
        job = Job(*ReadJob(self._chunks.ctypes.data, _CHUNK_BYTES, sums.ctypes.data))
        start = time.perf_counter()
        self._native.parallel_for("read_memory", job, len(self._chunks))
        return time.perf_counter() - start


def bytes_to_read(threads: int, cache_bytes: int | None, free_bytes: int | None) -> int:
    """Bytes of one pass: 4 times the caches of `threads` cores, since each may have a cache of its own. At least
    MIN_READ_BYTES, and at most MAX_READ_BYTES (also if the caches are not known) or a quarter of the free memory.
    """
    wanted = MAX_READ_BYTES if cache_bytes is None else max(MIN_READ_BYTES, _TIMES_CACHE * cache_bytes * threads)
    return min(wanted, MAX_READ_BYTES, *(() if free_bytes is None else (free_bytes // 4,)))
