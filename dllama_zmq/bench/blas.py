"""How fast NumPy's BLAS multiplies float32 matrices here: what a prompt's products are held against."""

from __future__ import annotations

import time

import numpy as np
from numpy.random import default_rng
from threadpoolctl import threadpool_info, threadpool_limits

SHAPES = ((128, 2048), (2048, 5632))
"""128 tokens by one matrix of TinyLlama's FFN."""

_ROUNDS = 8


def blas_macs_per_s(threads: int) -> float:
    """Multiply-adds per second of a float32 product of SHAPES with `threads` BLAS threads, the best of a few."""
    rng = default_rng(0)
    (n_tokens, width), (_, n_rows) = SHAPES
    x, w = (rng.standard_normal(shape, dtype=np.float32) for shape in SHAPES)
    out = np.empty((n_tokens, n_rows), np.float32)
    best_s = float("inf")
    with threadpool_limits(limits=threads, user_api="blas"):
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            np.matmul(x, w, out=out)
            best_s = min(best_s, time.perf_counter() - start)
    return n_tokens * width * n_rows / best_s


def blas_name() -> str:
    """The BLAS that NumPy was built with, as "OpenBLAS 0.3.31"; "BLAS" where it does not tell."""
    names = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "flexiblas": "FlexiBLAS"}
    for library in threadpool_info():
        if library["user_api"] == "blas":
            name = names.get(library["internal_api"], library["internal_api"])
            return f"{name} {library['version']}" if library["version"] else name
    return "BLAS"
