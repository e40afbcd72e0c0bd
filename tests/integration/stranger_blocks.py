"""Blocks of weights, written from bus/PROTOCOL.md §6 and §8 and formats/FORMATS.md §1 alone with NumPy: nothing here
imports the package."""

from __future__ import annotations

from typing import Any

import numpy as np

F32, F16, Q40, Q80, BF16, Q41, Q50, Q51, Q4_K, Q5_K, Q6_K = range(11)
BLOCK = {
    F32: (1, 4),
    F16: (1, 2),
    BF16: (1, 2),
    Q40: (32, 18),
    Q41: (32, 20),
    Q50: (32, 22),
    Q51: (32, 24),
    Q80: (32, 34),
    Q4_K: (256, 144),
    Q5_K: (256, 176),
    Q6_K: (256, 210),
}
"""§6: values and bytes of a block, by type."""


def row_bytes(code: int, own: slice) -> int:
    """Bytes of a row of a region: those of all blocks in which the columns `own` lie."""
    values, n_bytes = BLOCK[code]
    first, last = own.start // values, -(-own.stop // values)
    return int(last - first) * n_bytes


def to_q80(x: Any) -> tuple[Any, Any]:
    """Signed bytes (T, b, 32) and scales (T, b), before these are stored as f16."""
    blocks = x.reshape(len(x), -1, 32)
    d = np.abs(blocks).max(-1) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > np.float32(1e-37))
    q = np.clip(np.rint(blocks * inverse[..., None]), -127, 127).astype(np.int8)
    return q, np.minimum(d, np.float32(65504))


def values_of(code: int, data: Any, own: slice | None = None) -> Any:
    """Rows of a region as float32: the columns `own` of the tensor, or all that there are."""
    if code in (F32, F16):
        return np.ascontiguousarray(data).view("<f4" if code == F32 else "<f2").astype(np.float32)
    if code == BF16:
        return (np.ascontiguousarray(data).view("<u2").astype("<u4") << 16).view("<f4")
    q, d, m = blocks_of(code, data, own or slice(0, data.shape[1] // BLOCK[code][1] * BLOCK[code][0]))
    values = q.astype(np.float32) * d[..., None]
    return (values if m is None else values + m[..., None]).reshape(len(data), -1)


def blocks_of(code: int, data: Any, own: slice) -> tuple[Any, Any, Any]:
    """Of the columns `own`: whole numbers (rows, b, 32), scales (rows, b), and offsets (rows, b) if the type has them.

    Of Q6_K (rows, b, 16).
    """
    values, n_bytes = BLOCK[code]
    blocks = data.reshape(-1, n_bytes)
    d = _f16(blocks, 208 if code == Q6_K else 0)
    m = _f16(blocks, 2) if code in (Q41, Q51, Q4_K, Q5_K) else None
    if code == Q80:
        q = blocks[:, 2:].view(np.int8)
    elif code in (Q40, Q41, Q50, Q51):
        q = np.concatenate([blocks[:, -16:] & 15, blocks[:, -16:] >> 4], axis=1).astype(np.int8)
        if code in (Q50, Q51):
            qh = np.ascontiguousarray(blocks[:, -20:-16]).view("<u4")
            q += (qh >> np.arange(32, dtype=np.uint32) & 1).astype(np.int8) * np.int8(16)
        q -= np.int8({Q40: 8, Q50: 16}.get(code, 0))
    elif code == Q6_K:
        q, d = _q6(blocks), d * blocks[:, 192:208].view(np.int8).astype(np.float32)
    else:
        q = _nibbles(blocks[:, -128:], 32)
        if code == Q5_K:
            q += (blocks[:, 16:48, None] >> np.arange(8) & 1).astype(np.int8).transpose(0, 2, 1).reshape(-1, 256) * 16
        scales, offsets = _six_bits(blocks[:, 4:16].astype(np.int32))
        d, m = d * scales, -(m * offsets)
    width = 16 if code == Q6_K else 32
    skipped = own.start % values
    kept = slice(skipped // width, (skipped + own.stop - own.start) // width)
    q = q.reshape(len(data), -1, width)[:, kept]
    return q, d.reshape(len(data), -1)[:, kept], None if m is None else m.reshape(len(data), -1)[:, kept]


def _f16(blocks: Any, at: int) -> Any:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(data: Any, width: int) -> Any:
    """Whole numbers of each 2 · width values: the low nibbles of `width` bytes, then their high ones."""
    rows = data.reshape(len(data), -1, width)
    return np.concatenate([rows & 15, rows >> 4], axis=2).reshape(len(data), -1).astype(np.int8)


def _q6(blocks: Any) -> Any:
    q = _nibbles(blocks[:, :128], 64)
    qh = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> (2 * np.arange(4)).reshape(4, 1) & 3
    return q + qh.reshape(-1, 256).astype(np.int8) * np.int8(16) - np.int8(32)


def _six_bits(b: Any) -> tuple[Any, Any]:
    """Scales and offsets (blocks, 8) of 12 bytes each."""
    scales = [b[:, g] & 63 if g < 4 else b[:, g + 4] & 15 | (b[:, g - 4] >> 6) << 4 for g in range(8)]
    offsets = [b[:, g + 4] & 63 if g < 4 else b[:, g + 4] >> 4 | (b[:, g] >> 6) << 4 for g in range(8)]
    return np.stack(scales, axis=1).astype(np.float32), np.stack(offsets, axis=1).astype(np.float32)
