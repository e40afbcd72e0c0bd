"""Quantize and dequantize whole arrays. Files and the bus carry the same blocks: see formats/FORMATS.md §1.

Q40: f16 scale d, then 16 bytes; byte j has value j in its low nibble and j + 16 in its high nibble; value (q - 8) * d.
Q41: f16 scale d, f16 offset m, then 16 bytes as in Q40; value q * d + m.
Q80: f16 scale d, then 32 signed bytes; value q * d.
BF16: the upper half of an f32.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dllama_zmq.spec import FloatType

F32: TypeAlias = npt.NDArray[np.float32]
U8: TypeAlias = npt.NDArray[np.uint8]
I8: TypeAlias = npt.NDArray[np.int8]

_F16_MAX = np.float32(65504.0)


def quantize(values: F32, float_type: FloatType) -> U8:
    """`values` (..., n) as bytes (..., row_bytes(n)); `n` must be a multiple of the block's values."""
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
    if float_type is FloatType.Q41:
        q, d, m = split_q41(data)
        values: F32 = q.astype(np.float32) * d[..., None] + m[..., None]
    else:
        q, d = split_q40(data) if float_type is FloatType.Q40 else split_q80(data)
        values = q.astype(np.float32) * d[..., None]
    return values.reshape(*data.shape[:-1], -1)


def split_q40(data: U8) -> tuple[I8, F32]:
    """Q40 bytes (..., 18 * b) as values -8..7 (..., b, 32) and scales (..., b)."""
    blocks = data.reshape(*data.shape[:-1], -1, 18)
    q = _nibbles(blocks[..., 2:])
    q -= 8
    return q, _scales(blocks)


def split_q41(data: U8) -> tuple[I8, F32, F32]:
    """Q41 bytes (..., 20 * b) as values 0..15 (..., b, 32), scales (..., b) and offsets (..., b)."""
    blocks = data.reshape(*data.shape[:-1], -1, 20)
    return _nibbles(blocks[..., 4:]), _scales(blocks), _scales(blocks[..., 2:])


def split_q80(data: U8) -> tuple[I8, F32]:
    """Q80 bytes (..., 34 * b) as values -127..127 (..., b, 32) and scales (..., b)."""
    blocks = data.reshape(*data.shape[:-1], -1, 34)
    return blocks[..., 2:].view(np.int8), _scales(blocks)


def _nibbles(packed: U8) -> I8:
    """16 bytes as 32 values 0..15, the low nibbles first."""
    q = np.empty((*packed.shape[:-1], 32), np.int8)
    q[..., :16] = packed & 15
    q[..., 16:] = packed >> 4
    return q


def _scales(blocks: U8) -> F32:
    return np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)


def _q40_blocks(blocks: F32) -> U8:
    """As writers of `.m` files round: the value of largest magnitude becomes -8; on a tie the positive one does."""
    low, high = blocks.min(-1), blocks.max(-1)
    d = np.where(-low > high, low, high) / np.float32(-8)
    q = np.clip(np.trunc(blocks * _inverse(d)[..., None] + np.float32(8.5)), 0, 15).astype(np.uint8)
    out = np.empty((*blocks.shape[:-1], 18), np.uint8)
    out[..., :2] = _scale_bytes(d)
    out[..., 2:] = q[..., :16] | (q[..., 16:] << 4)
    return out


def _q41_blocks(blocks: F32) -> U8:
    """The smallest value becomes 0, the largest 15."""
    m = blocks.min(-1)
    d = (blocks.max(-1) - m) / np.float32(15)
    q = np.clip(np.rint((blocks - m[..., None]) * _inverse(d)[..., None]), 0, 15).astype(np.uint8)
    out = np.empty((*blocks.shape[:-1], 20), np.uint8)
    out[..., :2], out[..., 2:4] = _scale_bytes(d), _scale_bytes(m)
    out[..., 4:] = q[..., :16] | (q[..., 16:] << 4)
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
