"""How fast this machine reads memory: what decoding is held against, for every token reads every weight."""

from __future__ import annotations

import mmap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import numpy as np

from dllama_zmq.errors import UsageError
from dllama_zmq.host import free_memory_bytes, usable_cores
from dllama_zmq.kernels import Kernels, choose_kernels

if TYPE_CHECKING:
    from dllama_zmq.kernels.simd.backend import Simd

MOST_BYTES = 1 << 30
"""Read in one pass: far more than any cache keeps. Less where it would be more than a quarter of what is free."""
CHUNK_BYTES = 1 << 20

_PASSES = 8
_PIECES_PER_THREAD = 8  # of NumPy: smaller than a share, so that one that is held up does not hold up the pass


class Reader:
    """The same memory, read as a whole with `threads` threads as often as `pass_s` is called.

    by: whose code reads it. The back end simd's where it can run; elsewhere NumPy's maximum, which may be slower.
    """

    def __init__(self, threads: int, kernels: Kernels | None = None) -> None:
        """kernels: if they are simd's, it is their threads that read, not others beside them."""
        self._threads = ThreadPoolExecutor(threads, "bandwidth")
        free_bytes = free_memory_bytes()
        n_chunks = min(MOST_BYTES, MOST_BYTES if free_bytes is None else free_bytes // 4) // CHUNK_BYTES
        self.n_bytes = max(n_chunks, 16) * CHUNK_BYTES
        pages = mmap.mmap(-1, self.n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones are never huge
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):
                pages.madvise(mmap.MADV_HUGEPAGE)
        self._chunks = np.frombuffer(pages, np.float32).reshape(-1, CHUNK_BYTES // 4)
        self._pieces = np.array_split(self._chunks, threads * _PIECES_PER_THREAD)
        # Written, or every page would be the same one; by all threads, each of which takes pages near its core.
        list(self._threads.map(lambda piece: piece.fill(1), self._pieces))
        self._simd = _simd(threads, kernels)
        self.by: Literal["simd", "numpy"] = "numpy" if self._simd is None else "simd"

    def pass_s(self) -> float:
        """Seconds that reading all `n_bytes` takes once."""
        return self._pass_by_numpy_s() if self._simd is None else self._pass_by_kernel_s(self._simd)

    def _pass_by_kernel_s(self, simd: Simd) -> float:
        from dllama_zmq.kernels.simd.pool import Job

        n_chunks = len(self._chunks)
        sums = np.empty((n_chunks, 16), np.float32)  # a cache line each
        job = Job(self._chunks.ctypes.data, CHUNK_BYTES, sums.ctypes.data)
        kernel = simd.address_of("read_memory")
        start = time.perf_counter()
        simd.pool.run(kernel, job.address, n_chunks)
        return time.perf_counter() - start

    def _pass_by_numpy_s(self) -> float:
        start = time.perf_counter()
        for _ in self._threads.map(np.max, self._pieces):  # lets go of the interpreter's lock, and is a SIMD loop
            pass
        return time.perf_counter() - start


def read_bandwidth(threads: int) -> float:
    """Bytes/s that `threads` threads read together from memory, the best of a few passes: about a second."""
    reader = Reader(threads)
    return reader.n_bytes / min(reader.pass_s() for _ in range(_PASSES))


def _simd(threads: int, kernels: Kernels | None) -> Simd | None:
    if kernels is None or kernels.name != "simd":
        try:
            kernels = choose_kernels("simd", threads, threads > usable_cores())
        except UsageError:
            return None
    from dllama_zmq.kernels.simd.backend import Simd

    assert isinstance(kernels, Simd)
    return kernels
