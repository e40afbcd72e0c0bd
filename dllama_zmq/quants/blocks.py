"""Quantize and dequantize whole arrays. Files and the bus carry the same blocks: `parts.py`, formats/FORMATS.md §1.

BF16 is the upper half of an f32.
"""

from __future__ import annotations

import math

import numpy as np

from dllama_zmq.quants.parts import F32, U8, pack_nibbles, split
from dllama_zmq.spec import FloatType

_F16_MAX = np.float32(65504.0)


def quantize(values: F32, float_type: FloatType) -> U8:
    """`values` (..., n) as bytes (..., row_bytes(n)); `n` must be a multiple of the block's values.

    Raises ValueError for the types that are only read: Q50, Q51, Q4_K, Q5_K and Q6_K.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if float_type is FloatType.F32:
        return values.view(np.uint8)
    if float_type is FloatType.F16:
        return values.astype("<f2").view(np.uint8)
    if float_type is FloatType.BF16:
        return _bf16(values)
    size = float_type.row_bytes(values.shape[-1])
    blocks = values.reshape(*values.shape[:-1], -1, 32)
    writers = {FloatType.Q40: _q40_blocks, FloatType.Q41: _q41_blocks, FloatType.Q80: _q80_blocks}
    if float_type not in writers:
        raise ValueError(f"values cannot be quantized to {float_type.name}")
    packed = writers[float_type](blocks)
    return packed.reshape(*values.shape[:-1], size)


def dequantize(data: U8, float_type: FloatType) -> F32:
    """Bytes (..., row_bytes(n)) as float32 (..., n)."""
    if float_type is FloatType.F32:
        return np.ascontiguousarray(data).view("<f4").astype(np.float32, copy=False)
    if float_type is FloatType.F16:
        return np.ascontiguousarray(data).view("<f2").astype(np.float32)
    if float_type is FloatType.BF16:
        return (np.ascontiguousarray(data).view("<u2").astype(np.uint32) << 16).view(np.float32)
    rows = data.reshape(math.prod(data.shape[:-1]), data.shape[-1])
    return split(rows, float_type).values().reshape(*data.shape[:-1], float_type.values_in(data.shape[-1]))


def _q40_blocks(blocks: F32) -> U8:
    """As writers of `.m` files round: the value of largest magnitude becomes -8; on a tie the positive one does."""
    low, high = blocks.min(-1), blocks.max(-1)
    d = np.where(-low > high, low, high) / np.float32(-8)
    q = np.clip(np.trunc(blocks * _inverse(d)[..., None] + np.float32(8.5)), 0, 15).astype(np.uint8)
    out = np.empty((*blocks.shape[:-1], 18), np.uint8)
    out[..., :2] = _scale_bytes(d)
    out[..., 2:] = pack_nibbles(q)
    return out


def _q41_blocks(blocks: F32) -> U8:
    """The smallest value becomes 0, the largest 15."""
    m = blocks.min(-1)
    d = (blocks.max(-1) - m) / np.float32(15)
    q = np.clip(np.rint((blocks - m[..., None]) * _inverse(d)[..., None]), 0, 15).astype(np.uint8)
    out = np.empty((*blocks.shape[:-1], 20), np.uint8)
    out[..., :2], out[..., 2:4] = _scale_bytes(d), _scale_bytes(m)
    out[..., 4:] = pack_nibbles(q)
    return out


def _bf16(values: F32) -> U8:
    """Rounds half to even; a NaN stays a NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1)).astype(np.uint32)) >> 16
    rounded = np.where(np.isnan(values), bits >> 16 | 0x40, rounded)
    return rounded.astype("<u2").view(np.uint8)


def _q80_blocks(blocks: F32) -> U8:
    """Rounds half to even on every CPU (other implementations differ by CPU)."""
    d = np.abs(blocks).max(-1) / np.float32(127)
    out = np.empty((*blocks.shape[:-1], 34), np.uint8)
    out[..., :2] = _scale_bytes(d)
    out[..., 2:] = np.clip(np.rint(blocks * _inverse(d)[..., None]), -127, 127).astype(np.int8).view(np.uint8)
    return out


def _inverse(d: F32) -> F32:
    # A scale below about 3e-39 has no finite inverse. As f16 it is 0, so the block is zeros anyway.
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=np.abs(d) > np.float32(1e-37))


def _scale_bytes(d: F32) -> U8:
    return np.clip(d, -_F16_MAX, _F16_MAX).astype("<f2")[..., None].view(np.uint8)
