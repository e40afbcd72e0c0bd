"""Values to blocks of types that this package only reads, simply: largest and smallest values fit, nothing searched.

For tests; ggml's are better. Layouts: ggml's ggml-common.h, block_q5_0, block_q5_1, block_q4_K, block_q5_K, block_q6_K.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dllama_zmq.quants import F32, U8, BlockMatrix
from dllama_zmq.spec import FloatType


def _halves(q: U8, width: int) -> U8:
    """(n, b) values of 4 bits as bytes: of each 2·width values the first half low, the second half high."""
    groups = q.reshape(len(q), -1, 2, width)
    halves: U8 = (groups[:, :, 0] | groups[:, :, 1] << np.uint8(4)).reshape(len(q), -1)
    return halves


def _six_bits(scales: U8, offsets: U8) -> U8:
    """Eight scales and eight offsets of 6 bits (n, 8) as (n, 12)."""
    low = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    middle = offsets[:, :4] | (offsets[:, 4:] >> 4) << 6
    return np.concatenate([low, middle, scales[:, 4:] & 15 | (offsets[:, 4:] & 15) << 4], axis=1)


def _with_offsets(values: F32, most: int) -> tuple[U8, U8, U8]:
    """d and dmin (n, 4) bytes, packed scales (n, 12), q (n, 256)."""
    x = values.reshape(-1, 8, 32)
    low = np.minimum(x.min(-1), 0)
    scale = (x.max(-1) - low) / most
    d, dmin = scale.max(-1, keepdims=True) / 63, (-low).max(-1, keepdims=True) / 63
    d, dmin = d.astype(np.float16).astype(np.float32), dmin.astype(np.float16).astype(np.float32)
    scales = np.rint(np.divide(scale, d, out=np.zeros_like(scale), where=d > 0)).clip(0, 63)
    offsets = np.rint(np.divide(-low, dmin, out=np.zeros_like(low), where=dmin > 0)).clip(0, 63)
    step = (d * scales)[..., None]
    q = np.divide(x + (dmin * offsets)[..., None], step, out=np.zeros_like(x), where=step > 0)
    heads = np.concatenate([d.astype("<f2"), dmin.astype("<f2")], axis=1).view(np.uint8)
    q = np.rint(q).clip(0, most).astype(np.uint8).reshape(-1, 256)
    return heads, _six_bits(scales.astype(np.uint8), offsets.astype(np.uint8)), q


def _five_bits(values: F32, heads: list[F32], q: F32) -> U8:
    """Blocks of 32 with `heads` (n, 1) as f16, and q (n, 32) of 5 bits."""
    bits = np.rint(q).clip(0, 31).astype(np.uint8)
    upper = np.packbits(bits >> 4, axis=1, bitorder="little")
    f16s = np.concatenate(heads, axis=1).astype("<f2").view(np.uint8)
    return np.concatenate([f16s, upper, _halves(bits & np.uint8(15), 16)], axis=1).reshape(len(values), -1)


def q5_0(values: F32) -> U8:
    """(rows, n) -> bytes (rows, n / 32 * 22). The value of largest magnitude becomes -16."""
    x = values.reshape(-1, 32)
    d = np.take_along_axis(x, np.abs(x).argmax(-1, keepdims=True), -1) / np.float32(-16)
    return _five_bits(values, [d], np.divide(x, d, out=np.zeros_like(x), where=d != 0) + 16)


def q5_1(values: F32) -> U8:
    """(rows, n) -> bytes (rows, n / 32 * 24)."""
    x = values.reshape(-1, 32)
    m = x.min(-1, keepdims=True)
    d = (x.max(-1, keepdims=True) - m) / np.float32(31)
    return _five_bits(values, [d, m], np.divide(x - m, d, out=np.zeros_like(x), where=d > 0))


def q4_k(values: F32) -> U8:
    """(rows, n) -> bytes (rows, n / 256 * 144)."""
    heads, scales, q = _with_offsets(values, 15)
    return np.concatenate([heads, scales, _halves(q, 32)], axis=1).reshape(len(values), -1)


def q5_k(values: F32) -> U8:
    """(rows, n) -> bytes (rows, n / 256 * 176)."""
    heads, scales, q = _with_offsets(values, 31)
    upper = np.packbits(q.reshape(-1, 8, 32) >> 4, axis=1, bitorder="little").reshape(-1, 32)
    return np.concatenate([heads, scales, upper, _halves(q & np.uint8(15), 32)], axis=1).reshape(len(values), -1)


def q6_k(values: F32) -> U8:
    """(rows, n) -> bytes (rows, n / 256 * 210). The value of largest magnitude of 16 becomes -32."""
    x = values.reshape(-1, 16, 16)
    largest = np.take_along_axis(x, np.abs(x).argmax(-1, keepdims=True), -1)[..., 0]
    scale = largest / -32
    d = (np.abs(scale).max(-1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    scales = np.rint(np.divide(scale, d, out=np.zeros_like(scale), where=d > 0)).clip(-127, 127)
    step = (d * scales)[..., None]
    q = np.rint(np.divide(x, step, out=np.zeros_like(x), where=step != 0)).clip(-32, 31) + 32
    q = q.astype(np.uint8).reshape(-1, 2, 4, 32)
    upper = q >> 4
    packed = upper[:, :, 0] | upper[:, :, 1] << 2 | upper[:, :, 2] << 4 | upper[:, :, 3] << 6
    parts = [_halves(q.reshape(-1, 256) & 15, 64), packed.reshape(-1, 64), scales.astype(np.int8).view(np.uint8)]
    return np.concatenate([*parts, d.astype("<f2").view(np.uint8)], axis=1).reshape(len(values), -1)


K_QUANTIZERS: dict[str, Callable[[F32], U8]] = {"Q50": q5_0, "Q51": q5_1, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k}


def quantized(values: F32, kind: FloatType) -> BlockMatrix:
    """`BlockMatrix.from_array` for every type."""
    if kind.name in K_QUANTIZERS:
        return BlockMatrix(K_QUANTIZERS[kind.name](values), kind)
    return BlockMatrix.from_array(values, kind)
