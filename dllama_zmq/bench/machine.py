"""The limits of this computer that rows are compared with: memory read, products of a matrix and a vector, and BLAS."""

from __future__ import annotations

import mmap
import platform
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.random import SFC64, Generator
from threadpoolctl import threadpool_info, threadpool_limits

import dllama_zmq
from dllama_zmq.errors import UsageError
from dllama_zmq.formats.random_model import random_blocks
from dllama_zmq.host import free_memory_bytes, largest_cache_bytes, usable_cores
from dllama_zmq.kernels import KernelChoice, Kernels, choose_kernels
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType

MIN_READ_BYTES, MAX_READ_BYTES = 1 << 28, 1 << 30
_TIMES_CACHE = 4
_CHUNK_BYTES = 1 << 20
_SPANS_PER_THREAD = 8  # NumPy: several for each thread, so that one that is delayed does not delay the pass

ROWS, COLUMNS = 32768, 4096
WEIGHT_BYTES = ROWS * FloatType.Q40.row_bytes(COLUMNS)
MIN_MATRICES = 4
"""Multiplied in turn, or more if the largest cache could hold these: so that none keeps a matrix until it is used
again."""
_MIN_ROUNDS, _MAX_ROUNDS, _MAX_S = 2, 12, 3.0

BLAS_SHAPES = ((128, 2048), (2048, 5632))
"""128 tokens times one matrix of TinyLlama's FFN."""
_BLAS_ROUNDS = 8
_BLAS_NAMES = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "flexiblas": "FlexiBLAS"}


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


class Products(Struct, frozen=True):
    """Products of a matrix of `weight_type` and a vector in each round, and the best pass over memory beside them.

    n_rows: of the matrix, which is as large as one of (ROWS, COLUMNS) in Q40.
    """

    weight_type: FloatType
    n_rows: int
    per_s: Sequence[float]
    read_bytes_per_s: float
    read_by: str

    @property
    def taken(self) -> tuple[int, int]:
        """Bytes of weights and multiply-adds of one product."""
        return self.n_rows * self.weight_type.row_bytes(COLUMNS), self.n_rows * COLUMNS

    @property
    def efficiency(self) -> float:
        """Bytes of weights that the best round's products read, as a share of what a loop that only reads does."""
        return self.taken[0] * max(self.per_s) / self.read_bytes_per_s


def measure_products(threads: int, choice: KernelChoice, weight_type: FloatType) -> Products:
    """The products of `threads` threads.

    A round is one pass over the reader's memory, then products for the same time; all take 1 to 4 s. The best round of
    each counts: with other work on the machine the median would measure that work. They alternate, so that a quiet
    moment serves both.
    """
    kernels = choose_kernels(choice, threads, threads > usable_cores())
    rng = Generator(SFC64(0))
    n_rows = WEIGHT_BYTES // weight_type.row_bytes(COLUMNS)
    matrix = random_blocks(rng, weight_type, n_rows, COLUMNS, COLUMNS**-0.5)
    reader = MemoryReader(threads, kernels)
    n_matrices = max(MIN_MATRICES, (largest_cache_bytes() or 0) // WEIGHT_BYTES + 1)
    products = cycle([kernels.linear(BlockMatrix(matrix, weight_type)) for _ in range(n_matrices)])
    x = rng.standard_normal((1, COLUMNS), dtype=np.float32)
    next(products)(x)
    passes_s: list[float] = []
    products_per_s: list[float] = []
    until = time.monotonic() + _MAX_S
    while len(passes_s) < _MIN_ROUNDS or (len(passes_s) < _MAX_ROUNDS and time.monotonic() < until):
        passes_s.append(reader.pass_s())
        n_products, took_s, start = 0, 0.0, time.perf_counter()
        while took_s < passes_s[-1]:
            next(products)(x)
            n_products += 1
            took_s = time.perf_counter() - start
        products_per_s.append(n_products / took_s)
    return Products(weight_type, n_rows, products_per_s, reader.n_bytes / min(passes_s), reader.read_by)


def blas_macs_per_s(threads: int) -> float:
    """Multiply-adds per second of NumPy's product of BLAS_SHAPES: the best of some rounds."""
    (n_tokens, width), (_, n_rows) = BLAS_SHAPES
    x, w = (np.random.default_rng(0).standard_normal(shape, dtype=np.float32) for shape in BLAS_SHAPES)
    out = np.empty((n_tokens, n_rows), np.float32)
    best_s = float("inf")
    with threadpool_limits(limits=threads, user_api="blas"):
        for _ in range(_BLAS_ROUNDS):
            start = time.perf_counter()
            np.matmul(x, w, out=out)
            best_s = min(best_s, time.perf_counter() - start)
    return n_tokens * width * n_rows / best_s


def blas_name() -> str:
    """NumPy's BLAS, such as "OpenBLAS 0.3.31"; "BLAS" if it is unknown."""
    for library in threadpool_info():
        if library["user_api"] == "blas":
            name = _BLAS_NAMES.get(library["internal_api"], library["internal_api"])
            return f"{name} {library['version'] or ''}".strip()
    return "BLAS"


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name in /proc/cpuinfo; its architecture if it has none."""
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    keys = ("model name", "Model", "Hardware", "cpu model")  # x86; Raspberry Pi; other ARM; MIPS and others
    return next((fields[key] for key in keys if fields.get(key)), platform.machine())


def source_commit() -> str:
    """The git commit of the running source, with "-dirty" if files differ from it; empty outside a checkout."""
    folder = Path(dllama_zmq.__file__).parents[1]
    if not (folder / ".git").exists():  # an installed package may lie inside another project's checkout
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude", "*"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL, check=True)
        return done.stdout.strip()
    return ""
