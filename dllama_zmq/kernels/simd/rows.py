"""Norms, a row of activations at a time, and reading memory. numba code; see `vector_math.py` for what a kernel is."""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.intrinsics import load_f32, load_i64, store_f32
from dllama_zmq.kernels.simd.job import offsets
from dllama_zmq.kernels.simd.layout import NormJob, ReadJob
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.vector_math import F, load_lanes, store_lanes
from dllama_zmq.kernels.simd.vectors import (
    fma,
    load_vector,
    splat,
    square_root,
    sum_of,
)

NORM, READ = offsets(NormJob), offsets(ReadJob)


@register_jitable
def norm_scale(row, width, eps):
    """The factor, in every lane, that gives a row of `width` values unit root-mean-square."""
    squares = splat(F(0.0))
    for i in range(0, width, 16):
        v = load_lanes(row + 4 * i, width - i)
        squares = fma(v, v, squares)
    return splat(F(1.0) / square_root(sum_of(squares) / F(width) + eps))


@kernel
def rms_norm(job, first, last):
    """Scale rows x (T, width) to unit root-mean-square (of the mean square plus eps), then by gain. Items are rows."""
    width = load_i64(job + NORM.width)
    gain = load_i64(job + NORM.gain)
    for t in range(first, last):
        row, out = load_i64(job + NORM.x) + t * load_i64(job + NORM.x_stride), load_i64(job + NORM.out) + 4 * t * width
        scale = norm_scale(row, width, load_f32(job + NORM.eps))
        for i in range(0, width, 16):
            n = width - i
            store_lanes(out + 4 * i, load_lanes(row + 4 * i, n) * scale * load_lanes(gain + 4 * i, n), n)


@kernel
def read_memory(job, first, last):
    """Read chunks `first` to `last` of item_bytes each and nothing else: what memory gives this many threads."""
    size = load_i64(job + READ.item_bytes)
    for item in range(first, last):
        at = load_i64(job + READ.source) + item * size
        a, b, c, d = splat(F(0)), splat(F(0)), splat(F(0)), splat(F(0))
        for i in range(0, size, 256):
            a = a + load_vector(at + i)
            b = b + load_vector(at + i + 64)
            c = c + load_vector(at + i + 128)
            d = d + load_vector(at + i + 192)
        store_f32(load_i64(job + READ.sums) + 64 * item, sum_of(a + b + c + d))
