"""The product that decoding is made of, alone, beside how fast memory is read: what a kernel leaves unused of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.random import SFC64, Generator

from dllama_zmq.bench.bandwidth import Reader
from dllama_zmq.kernels import Kernels
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType

NAME = "mv q40"
ROWS, COLUMNS = 32768, 4096
WEIGHT_BYTES = ROWS * FloatType.Q40.row_bytes(COLUMNS)
"""75 MB, of which a large cache keeps a third from one product to the next."""
N_MATRICES = 4
"""Multiplied one after another: 300 MB, so that no cache keeps one until it is used again."""

_ROUNDS = 12
_MOST_S = 3.0
_LEAST_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class ReadAndProduct:
    """Bytes/s that `read_by` reads, the best round's; products/s of a Q40 matrix and a vector, of every round."""

    read_bytes_per_s: float
    read_by: str
    products_per_s: tuple[float, ...]


def read_and_multiply(threads: int, kernels: Kernels) -> ReadAndProduct:
    """Both with `threads` threads, in alternation; `kernels` have as many. Takes 1 to 4 s.

    A round is one pass over the reader's memory and then products for as long as that took, so that both average over
    the same time. The best round of each counts: on a machine with other work the median would measure that work, and
    a quiet second serves both, for they alternate.
    """
    rng = Generator(SFC64(0))
    matrix = _random_q40(rng)
    by_turns = cycle([kernels.linear(matrix) for _ in range(N_MATRICES)])
    x = rng.standard_normal((1, COLUMNS), dtype=np.float32)
    next(by_turns)(x)
    reader = Reader(threads, kernels)
    passes: list[float] = []
    products: list[float] = []
    until = time.monotonic() + _MOST_S
    while len(passes) < _LEAST_ROUNDS or (len(passes) < _ROUNDS and time.monotonic() < until):
        passes.append(reader.pass_s())
        took_s, n_products = 0.0, 0
        start = time.perf_counter()
        while took_s < passes[-1]:
            next(by_turns)(x)
            n_products += 1
            took_s = time.perf_counter() - start
        products.append(n_products / took_s)
    return ReadAndProduct(reader.n_bytes / min(passes), reader.by, tuple(products))


def _random_q40(rng: Generator) -> BlockMatrix:
    """Blocks of random values with one scale."""
    data = rng.integers(0, 256, (ROWS, COLUMNS // 32, FloatType.Q40.block_bytes), np.uint8)
    data[..., :2] = np.frombuffer(np.float16(1 / 64).tobytes(), np.uint8)
    return BlockMatrix(data.reshape(ROWS, -1), FloatType.Q40)
