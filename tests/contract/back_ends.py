"""The back ends under test, the numbers they are fed, and the loops in float64 they are held against."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from numpy.random import SFC64, Generator

from dllama_zmq.formats.random_model import random_blocks
from dllama_zmq.kernels import (
    Batch,
    CacheSpec,
    KernelChoice,
    Kernels,
    KVCache,
    KVType,
    Rotation,
    Span,
    choose_kernels,
    pages_for,
)
from dllama_zmq.quants import F32, BlockMatrix, Parts, quantize, split
from dllama_zmq.spec import FloatType

F64 = npt.NDArray[np.float64]

AVAILABLE: list[KernelChoice] = ["numpy", "simd"]
QUANTIZED = [kind for kind in FloatType if kind.is_quantized]
PLAIN = [kind for kind in FloatType if not kind.is_quantized]
WITH_OFFSETS = [FloatType.Q41, FloatType.Q51, FloatType.Q4_K, FloatType.Q5_K]
# Where a sum's bits depend on its own terms alone. The block sums of quantized types are exact; but NumPy's BLAS
# decides how a float32 product is added up, and does so by its shape.
SAME_BITS = [(choice, of) for choice in AVAILABLE for of in FloatType if choice != "numpy" or of in QUANTIZED]
U = 1.01 * 2.0**-24
"""Rounding of float32 is 2^-24 of the value for each operation. A sum of n terms in any order is therefore off by at
most n * U times the sum of their magnitudes; every bound is that one, with 1% more for products of roundings."""
ROWS = [1, 15, 16, 17, 31, 33, 255, 256, 257]
SHAPES = [(32, 1), (288, 1), (288, 9), (256, 8), (768, 8)]  # columns and segments
# How rows, tokens and threads share a product does not depend on the type: these see all of it, the others some.
EVERYWHERE = [*PLAIN, FloatType.Q40, FloatType.Q80, FloatType.Q4_K, FloatType.Q6_K]
SOME_ROWS = [1, 17, 256]
QUANTIZED_ROWS = [(kind, rows) for kind in QUANTIZED for rows in (ROWS if kind in EVERYWHERE else SOME_ROWS)]
Q80 = FloatType.Q80
TOKENS = [*range(1, 10), 16, 33, 64]
SYNCS = ["f32", "f16", "q80"]
# Scores and values are normal numbers of up to 5 or so; some 16 products and 12 weights, each off by U, and e^score by
# U for each of its own roundings: 5 * 30 * U = 9e-6.
ATTENTION_ROUNDING = 9e-6
KV_TYPES = ["f32", "f16"]
# Figures with six digits, computed in float32.
SIX_DIGITS = 1e-6
PUBLISHED_EXP = 1e-3  # its exp is a polynomial


@contextmanager
def with_threads(choice: KernelChoice, threads: int) -> Iterator[Kernels]:
    """A back end whose threads are gone afterwards."""
    kernels = choose_kernels(choice, threads)
    try:
        yield kernels
    finally:
        pool = getattr(kernels, "pool", None)
        if pool is not None:
            pool.close()


def weights(rows: int, columns: int, float_type: FloatType, seed: int = 0) -> BlockMatrix:
    """Values of RMS 1. Where the columns are not whole blocks, the matrix begins and ends within one."""
    whole = float_type.whole_blocks(slice(0, columns)).stop
    first = (whole - columns) // 64 * 32
    data = random_blocks(Generator(SFC64(seed)), float_type, rows, whole, 1.0)
    return BlockMatrix(data, float_type).cut(slice(None), slice(first, first + columns))


def activations(n_tokens: int, columns: int, seed: int = 1) -> F32:
    """Blocks of very different magnitude, as activations have."""
    rng = np.random.default_rng(seed)
    magnitude = np.repeat(10.0 ** rng.uniform(-2, 2, (n_tokens, columns // 32)), 32, axis=1)
    return (rng.standard_normal((n_tokens, columns)) * magnitude).astype(np.float32)


def block_terms(matrix: BlockMatrix, x: F32) -> F64:
    """What each block adds to each product, (T, rows, terms), in float64, which holds these integer sums exactly.

    A term for each block (of 16 in Q6_K), and another for its offset where the type has them.
    """
    w, w_scales, offsets = own_parts(matrix)
    q, q_scales = x_parts(x, w.shape[2])
    sums = w.astype(np.float64).transpose(1, 0, 2) @ q.astype(np.float64).transpose(1, 2, 0)  # (b, rows, T)
    terms: F64 = sums.transpose(2, 1, 0) * w_scales.astype(np.float64) * q_scales[:, None].astype(np.float64)
    if offsets is None:
        return terms
    of_x = q_scales.astype(np.float64) * q.sum(-1, dtype=np.float64)
    return np.concatenate([terms, offsets * of_x[:, None]], axis=-1)


def own_parts(matrix: BlockMatrix) -> Parts:
    """Those of the matrix's own columns."""
    integers, scales, offsets = split(matrix.data, matrix.float_type)
    width = integers.shape[2]
    first = matrix.before // width
    own = slice(first, first + matrix.columns // width)
    return Parts(integers[:, own], scales[:, own], None if offsets is None else offsets[:, own])


def x_parts(x: F32, width: int) -> tuple[npt.NDArray[np.int8], F32]:
    """x (T, n) in Q80: whole numbers (T, n / width, width), and the scale of each `width` of them."""
    q, scales, _ = split(quantize(x, Q80), Q80)
    return q.reshape(len(x), -1, width), np.repeat(scales, 32 // width, axis=1)


def q80_error(matrix: BlockMatrix, x: F32) -> F64:
    """The most by which quantizing `x` to Q80 can move each product (T, rows).

    A value moves by half a step, and by up to 127 times what rounding the step to f16 (2^-11 of it) moves the step.
    """
    steps = np.abs(x.reshape(len(x), -1, 32)).max(-1).astype(np.float64) / 127
    moved = np.repeat(steps * (0.5 + 127 * 2.0**-11), 32, axis=1)
    return moved @ np.abs(matrix.dequantize().astype(np.float64)).T


def step(
    cache: KVCache, layer: int, batch: Batch, q: F32, keys: F32, values: F32, rotation: Rotation | None = None
) -> F32:
    """`KVCache.attend` of queries (T, H, Hd), keys and values (T, K, Hd), where their rows lie -> (T, H * Hd)."""
    q, keys, values = (rows.reshape(len(rows), -1) for rows in (q, keys, values))
    seen: F32 = cache.attend(layer, batch, q, keys, values, rotation)
    return seen


def from_page(first: int, start: int, count: int) -> Batch:
    """One sequence in pages `first`, `first` + 1, ..."""
    return Batch([Span(start, count, range(first, first + pages_for(start + count)))])


def fill(cache: KVCache, layer: int, first_page: int, keys: F32, values: F32, n_heads: int) -> None:
    """Keys and values (T, K, Hd) of a sequence's first T positions, that nobody asks for yet."""
    for start in range(0, len(keys), 64):
        rows = slice(start, start + 64)
        nothing = np.zeros((len(keys[rows]), n_heads, keys.shape[2]), np.float32)
        step(cache, layer, from_page(first_page, start, len(nothing)), nothing, keys[rows], values[rows])


def attend(kernels: Kernels, q: F32, keys: F32, values: F32, kv_of_head: Sequence[int], kv_type: KVType = "f32") -> F32:
    """What the last T positions' queries (T, H, Hd) see of keys and values (K, S, Hd), which fill a cache."""
    n_kv_heads, n_positions, head_dim = keys.shape
    cache = kernels.kv_cache(CacheSpec(1, pages_for(n_positions), n_kv_heads, head_dim, kv_of_head, kv_type))
    keys, values = (np.ascontiguousarray(stored.transpose(1, 0, 2)) for stored in (keys, values))
    before = n_positions - len(q)
    with np.errstate(invalid="ignore"):  # keys may be no numbers
        fill(cache, 0, 0, keys[:before], values[:before], len(kv_of_head))
    return step(cache, 0, Batch.alone(before, len(q)), q, keys[before:], values[before:])


def attention_by_hand(q: F32, keys: F32, values: F32, kv_of_head: Sequence[int]) -> F64:
    """Token by token and head by head, in float64: (T, H, Hd)."""
    n_tokens, n_heads, head_dim = q.shape
    n_before = keys.shape[1] - n_tokens
    out = np.zeros(q.shape)
    for token in range(n_tokens):
        for head in range(n_heads):
            seen = slice(0, n_before + token + 1)
            k, v = keys[kv_of_head[head], seen].astype(np.float64), values[kv_of_head[head], seen].astype(np.float64)
            weight = np.exp(k @ q[token, head].astype(np.float64) / math.sqrt(head_dim))
            out[token, head] = weight @ v / weight.sum()
    return out


def silu_times(kernels: Kernels, gate: F32, up: F32) -> F32:
    """`Kernels.gated` of matrices that let `gate` and `up` through as they are."""
    width = gate.shape[1]
    one, nothing = np.eye(width, dtype=np.float32), np.zeros((width, width), np.float32)
    to_gate, to_up = (
        BlockMatrix.from_array(np.concatenate(pair, axis=1), FloatType.F32) for pair in ((one, nothing), (nothing, one))
    )
    product: F32 = kernels.gated(to_gate, to_up)(np.concatenate([gate, up], axis=1))
    return product


def same(wire: object, expected: np.ndarray) -> bool:
    """The same bits, not only equal numbers."""
    return isinstance(wire, np.ndarray) and wire.shape == expected.shape and wire.tobytes() == expected.tobytes()


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
