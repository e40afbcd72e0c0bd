"""What all kernels of a node share: machine code, threads, memory and results. Knows no product and no numba.

Results live in arrays that are used again as soon as nobody holds them: nothing is allocated from token to token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dllama_zmq.kernels.simd.arrays import Arrays, address
from dllama_zmq.kernels.simd.job import Job
from dllama_zmq.kernels.simd.layout import WIRE_TYPES, SumJob
from dllama_zmq.kernels.simd.library import library
from dllama_zmq.kernels.simd.memory import HugePages, anonymous_pages
from dllama_zmq.kernels.simd.pool import Pool
from dllama_zmq.kernels.tiles import KeptTiles
from dllama_zmq.quants import U8
from dllama_zmq.spec import Sync

MAX_SERIAL_TOKENS = 4
"""Tokens that one thread norms, rotates or quantizes alone: other threads would come too late to help."""
_WORKSPACE_BYTES = 16 << 20
"""Of addresses: memory is taken as it is written."""


class Runtime:
    """`threads` threads that run compiled kernels. oversubscribed: there are fewer cores than threads at work.

    kept: the tiles of earlier starts.
    """

    def __init__(self, threads: int, oversubscribed: bool, kept: KeptTiles) -> None:
        self.kept = kept
        self._library = library()
        self.pool = Pool(self._library, threads, oversubscribed)
        self.memory = HugePages()
        self._arrays: dict[tuple[int, str], Arrays] = {}
        self._workspace = anonymous_pages(_WORKSPACE_BYTES)
        self.run_sequences = self.entry("run_sequences", 2)

    def address_of(self, kernel: str) -> int:
        """The address of a kernel, loaded (or compiled) the first time with those that are needed beside it."""
        return self._library.address(kernel)

    def entry(self, kernel: str, n_args: int) -> Callable[..., None]:
        """A kernel as a function of `n_args` integers."""
        return self._library.entry(kernel, n_args)

    def parallel_for(self, kernel: str, job: Job, n_items: int, chunk: int = 1) -> None:
        """Run a kernel over `n_items` on all threads, `chunk` items at a time."""
        self.pool.run(self.address_of(kernel), job.address, n_items, chunk)

    def token_chunk(self, n_tokens: int, n_items: int) -> int:
        """Items that a thread takes at a time of a kernel whose `n_items` items are tokens or groups of them."""
        return n_items if n_tokens <= MAX_SERIAL_TOKENS else -(-n_items // (4 * self.pool.threads))

    def sum_kernel(self, sync: Sync, parts: int, n_parts: int) -> tuple[int, Job]:
        """The address of `add_up`, and a job for it that adds the `n_parts` parts listed at address `parts`."""
        return self.address_of("add_up"), Job(*SumJob(parts, n_parts, wire_type=WIRE_TYPES[sync]))

    def arrays(self, width: int, dtype: Any = np.float32) -> Arrays:
        """The results of one width and type: all kernels with such results share them."""
        key = (width, "" if dtype is np.float32 else "b")
        if key not in self._arrays:
            self._arrays[key] = Arrays(width, dtype)
        return self._arrays[key]

    def array(self, n_rows: int, width: int, dtype: Any = np.float32) -> tuple[Any, int]:
        """An array (n_rows, width) that nobody else holds, and its address."""
        return self.arrays(width, dtype).take(n_rows)

    def workspace(self, n_bytes: int) -> tuple[U8, int]:
        """Memory that all kernels share for data between the kernels of one call, and its address."""
        if n_bytes > len(self._workspace):
            self._workspace = anonymous_pages(2 * n_bytes)
        return self._workspace, address(self._workspace)
