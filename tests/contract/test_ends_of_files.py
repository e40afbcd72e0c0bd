"""The compiled kernels read no byte before a matrix's first or behind its last: a file that is mapped may end there."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
from numpy.random import SFC64, Generator

from dllama_zmq.formats.random_model import random_blocks
from dllama_zmq.kernels import Kernels, choose_kernels
from dllama_zmq.quants import U8, BlockMatrix
from dllama_zmq.spec import FloatType

ROWS = [1, 15, 16, 17, 33]


def test_no_byte_beside_a_matrix_is_read():
    """In a process of its own, which a read of such a byte ends."""
    ended = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout[-500:] + ended.stderr[-500:]
    assert ended.stdout.splitlines() == [f"{kind.name} {rows}" for kind in FloatType for rows in ROWS]


def at_both_ends(data: U8) -> Iterator[U8]:
    """`data` at the beginning and at the end of pages between two that nobody may read."""
    page = mmap.PAGESIZE
    n_bytes = -(-data.size // page) * page
    memory = np.frombuffer(mmap.mmap(-1, n_bytes + 2 * page), np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for at in (0, page + n_bytes):
        # 0: PROT_NONE
        assert protect(ctypes.c_void_p(memory.ctypes.data + at), ctypes.c_size_t(page), 0) == 0, ctypes.get_errno()
    for start in (page, page + n_bytes - data.size):
        copy = memory[start : start + data.size].reshape(data.shape)
        copy[...] = data
        yield copy


def check(kernels: Kernels, kind: FloatType, rows: int) -> None:
    """All products of matrices at the ends of pages, also of parts of their first and last blocks."""
    columns = 2 * max(32, kind.block_values)
    data = random_blocks(Generator(SFC64(rows)), kind, rows, columns, 1.0)
    wide = np.random.default_rng(rows).standard_normal((9, columns), dtype=np.float32)
    for copy in at_both_ends(data):
        for part in (slice(0, columns), slice(0, 32), slice(columns - 32, columns)):
            x = np.ascontiguousarray(wide[:, part])
            whole, matrix = (BlockMatrix(of, kind).cut(slice(None), part) for of in (data, copy))
            assert np.array_equal(kernels.linear(matrix, matrix)(x)[1], kernels.linear(whole)(x))
            assert np.array_equal(kernels.gated(matrix, matrix)(x), kernels.gated(whole, whole)(x))


if __name__ == "__main__":
    compiled = choose_kernels("simd", threads=1)
    for kind in FloatType:
        for rows in ROWS:
            check(compiled, kind, rows)
            print(kind.name, rows, flush=True)
