"""How fast this machine reads memory: what decoding is held against, for every token reads every weight."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

READ_BYTES = 512 << 20
"""Read in one pass: far more than any cache keeps."""

_PASSES = 6
_PIECES_PER_THREAD = 8  # smaller than a thread's share, so that one that is held up does not hold up the pass


def read_bandwidth(threads: int) -> float:
    """Bytes/s that `threads` threads read together from memory, the best of a few passes: about a second."""
    values = np.ones(READ_BYTES // 4, np.float32)  # written, or every page would be the same one
    pieces = np.array_split(values, threads * _PIECES_PER_THREAD)
    best_s = float("inf")
    with ThreadPoolExecutor(threads, "bandwidth") as pool:
        for _ in range(_PASSES):
            start = time.perf_counter()
            for _ in pool.map(np.max, pieces):  # lets go of the interpreter's lock, and is a loop of SIMD loads
                pass
            best_s = min(best_s, time.perf_counter() - start)
    return READ_BYTES / best_s
