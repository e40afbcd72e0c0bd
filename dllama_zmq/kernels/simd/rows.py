"""Norms and rotations: a row of activations at a time. numba code; see `pieces.py` for what a kernel is."""

from __future__ import annotations

from dllama_zmq.kernels.simd.layout import NORM_EPS, NORM_GAIN, NORM_OUT, NORM_WIDTH, NORM_X
from dllama_zmq.kernels.simd.pieces import F, load_lanes, store_lanes
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.vectors import (
    fma,
    load_f32,
    load_i64,
    load_vector,
    splat,
    square_root,
    store_f32,
    sum_of,
)


@kernel
def rms_norm(job, first, last):
    """Rows X (T, WIDTH) to unit root-mean-square (EPS is added to the mean square), then by GAIN. Items are rows."""
    width = load_i64(job + NORM_WIDTH)
    gain = load_i64(job + NORM_GAIN)
    for t in range(first, last):
        row, out = load_i64(job + NORM_X) + 4 * t * width, load_i64(job + NORM_OUT) + 4 * t * width
        squares = splat(F(0.0))
        for i in range(0, width, 16):
            v = load_lanes(row + 4 * i, width - i)
            squares = fma(v, v, squares)
        scale = splat(F(1.0) / square_root(sum_of(squares) / F(width) + load_f32(job + NORM_EPS)))
        for i in range(0, width, 16):
            n = width - i
            store_lanes(out + 4 * i, load_lanes(row + 4 * i, n) * scale * load_lanes(gain + 4 * i, n), n)


ROT_X, ROT_STRIDE, ROT_HEADS, ROT_HALF, ROT_COS, ROT_SIN, ROT_PAIR, ROT_BETWEEN = range(0, 64, 8)


@kernel
def rotate(job, first, last):
    """Turn pairs in place: of each of ROT_HEADS heads of 2 * ROT_HALF values of token t, by the angles of row t.

    Pair i is the values at i * ROT_BETWEEN and ROT_PAIR bytes behind that. Items are tokens.
    """
    half, n_heads = load_i64(job + ROT_HALF), load_i64(job + ROT_HEADS)
    apart, between = load_i64(job + ROT_PAIR), load_i64(job + ROT_BETWEEN)
    for t in range(first, last):
        cos, sin = load_i64(job + ROT_COS) + 4 * t * half, load_i64(job + ROT_SIN) + 4 * t * half
        for h in range(n_heads):
            head = load_i64(job + ROT_X) + t * load_i64(job + ROT_STRIDE) + 8 * half * h
            for i in range(half):
                at = head + i * between
                u, v, c, s = load_f32(at), load_f32(at + apart), load_f32(cos + 4 * i), load_f32(sin + 4 * i)
                store_f32(at, u * c - v * s)
                store_f32(at + apart, u * s + v * c)


READ_FROM, READ_BYTES, READ_SUM = range(0, 24, 8)


@kernel
def read_memory(job, first, last):
    """Read chunks `first` to `last` of READ_BYTES each and nothing else: what memory gives this many threads."""
    size = load_i64(job + READ_BYTES)
    for item in range(first, last):
        at = load_i64(job + READ_FROM) + item * size
        a, b, c, d = splat(F(0)), splat(F(0)), splat(F(0)), splat(F(0))
        for i in range(0, size, 256):
            a = a + load_vector(at + i)
            b = b + load_vector(at + i + 64)
            c = c + load_vector(at + i + 128)
            d = d + load_vector(at + i + 192)
        store_f32(load_i64(job + READ_SUM) + 64 * item, sum_of(a + b + c + d))
