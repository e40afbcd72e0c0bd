"""Memory for weights: one matrix after another on huge pages, so that streaming weights misses no TLB entry.

With one mapping per matrix only whole, aligned 2 MB become huge pages: of a matrix of 2.4 MB often none
(tools/BENCHMARKS.md).
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from dllama_zmq.quants import U8

_HUGE = 2 << 20
"""Bytes of a huge page of x86-64, and of 64-bit Arm with small pages of 4 kB."""
_REGION = 256 << 20
"""Mapped at a time, unless more is asked for. Its unused end takes no memory but the rest of one huge page, 1 MB on
average; so regions are large."""
_LINE = 128


class HugePages:
    """Zeroed memory in large regions. A region is freed with the last array in it."""

    def __init__(self) -> None:
        self._left: U8 = np.empty(0, np.uint8)

    def allocate(self, n_bytes: int) -> U8:
        """`n_bytes`, aligned to cache lines."""
        if n_bytes > len(self._left):
            self._left = _region(max(n_bytes, _REGION))
        taken, self._left = self._left[:n_bytes], self._left[-(-n_bytes // _LINE) * _LINE :]
        return taken


def anonymous_pages(n_bytes: int) -> U8:
    """Zeroed memory whose pages are taken as they are written."""
    # Private: shared pages, Python's default, are never huge.
    return np.frombuffer(mmap.mmap(-1, max(1, n_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def _region(n_bytes: int) -> U8:
    """At least `n_bytes` on whole huge pages, if the system has them."""
    n_bytes = -(-n_bytes // _HUGE) * _HUGE
    pages = mmap.mmap(-1, n_bytes + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(pages, np.uint8)
    first = -memory.ctypes.data % _HUGE
    return memory[first : first + n_bytes]
