"""Block types of GGUF files for which there are no kernels: converted to values, or to a type that has kernels.

    type   values  bytes  a block (d, dmin, m: f16; nibbles have the lower bits, qh the upper ones)
    Q4_K   256     144    d, dmin, 12 bytes of 8 scales and 8 offsets (6 bits each), 128 bytes of nibbles
    Q5_K   256     176    d, dmin, those 12 bytes, 32 bytes qh, 128 bytes of nibbles
    Q6_K   256     210    128 bytes of nibbles, 64 bytes qh, 16 signed bytes of scales, d
    Q5_0   32      22     d, 4 bytes qh, 16 bytes of nibbles
    Q5_1   32      24     d, m, 4 bytes qh, 16 bytes of nibbles

    Q4_K, Q5_K  value = d·scale·q - dmin·offset, one scale and one offset for 32 values
    Q6_K        value = d·scale·(q - 32), one scale for 16 values
    Q5_0, Q5_1  value = d·(q - 16), value = d·q + m

Source: ggml's ggml-common.h.

Q4_K is read as Q41 with the same integers; only its scales and offsets are rounded, to f16. Q5_0 is read as Q80
exactly. Q5_K, Q6_K and Q5_1 are rounded to Q80: 127 steps up to the largest value that the scales of 32 values allow,
so a value moves by at most an eighth of a step of Q6_K.
Knows no file and no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dllama_zmq.quants.blocks import F32, I8, U8
from dllama_zmq.spec import FloatType

F16: TypeAlias = npt.NDArray[np.float16]
Parts: TypeAlias = tuple[U8 | I8, F32, F32 | None]
"""Integers (..., k), and the scale and offset (...) of each k: value = scale * q - offset. None: no offsets."""

_F16_MAX = np.float32(65504.0)
_CHUNK_BLOCKS = 1024
"""Blocks of 256 values converted at a time: their temporaries stay in a CPU's cache."""
# q is one void item: NumPy copies an item at once, but an array of bytes byte by byte.
_Q41_BLOCK = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "V16")])
_Q80_BLOCK = np.dtype([("d", "<f2"), ("q", "V32")])


@dataclass(frozen=True, slots=True)
class SourceType:
    """A block type that no kernel computes with; its tensors are read as `read_as`."""

    name: str
    block_values: int
    block_bytes: int
    read_as: FloatType
    _parts: Callable[[U8], Parts]
    _blocks: Callable[[U8], U8] | None = None
    """Blocks of `read_as`; None: by `_offset_blocks`."""

    def row_bytes(self, n_values: int) -> int:
        """Bytes of `n_values` values, a multiple of the block's."""
        return n_values // self.block_values * self.block_bytes

    def dequantize(self, data: U8) -> F32:
        """Bytes (rows, row_bytes(n)) as values (rows, n): the same bits as ggml's without fused multiply-add."""
        out = np.empty((len(data), data.shape[1] // self.block_bytes, self.block_values), np.float32)
        self._convert(data, out.reshape(-1, self.block_values), lambda blocks: _values(*self._parts(blocks)))
        return out.reshape(len(data), out.shape[1] * self.block_values)

    def convert(self, data: U8) -> U8:
        """Bytes (rows, row_bytes(n)) as blocks of `read_as`, (rows, read_as.row_bytes(n))."""
        size = self.read_as.row_bytes(self.block_values)
        out = np.empty((len(data), data.shape[1] // self.block_bytes, size), np.uint8)
        by = self._blocks or (lambda blocks: _offset_blocks(*self._parts(blocks)))
        self._convert(data, out.reshape(-1, size), by)
        return out.reshape(len(data), out.shape[1] * size)

    def _convert(self, data: U8, out: F32 | U8, by: Callable[[U8], F32 | U8]) -> None:
        blocks = data.reshape(-1, self.block_bytes)
        chunk_blocks = _CHUNK_BLOCKS * 256 // self.block_values
        with np.errstate(all="ignore"):  # the scales of a hostile file may be anything
            for first in range(0, len(blocks), chunk_blocks):
                chunk = slice(first, first + chunk_blocks)
                out[chunk] = by(blocks[chunk]).reshape(out[chunk].shape)


StoredType: TypeAlias = FloatType | SourceType
"""A type of tensors in files."""


def _f16(data: U8) -> F32:
    """Two bytes (n, 2) as float32 (n, 1)."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _to_f16(values: F32) -> F16:
    """Values beyond the range of f16 become its largest."""
    return np.clip(values, -_F16_MAX, _F16_MAX).astype("<f2")


def _scales_and_offsets(blocks: U8) -> tuple[F32, F32]:
    """Scales (n, 8) and offsets (n, 8) of Q4_K and Q5_K, one for 32 values.

    Each has six bits; the upper two bits of the last four are stored in the upper bits of the first four.
    """
    packed = blocks[:, 4:16].reshape(-1, 3, 4)
    low, middle, high = packed[:, 0], packed[:, 1], packed[:, 2]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 2 & 48)], axis=1)
    offsets = np.concatenate([middle & 63, (high >> 4) | (middle >> 2 & 48)], axis=1)
    return _f16(blocks[:, :2]) * scales.astype(np.float32), _f16(blocks[:, 2:4]) * offsets.astype(np.float32)


def _nibbles(packed: U8, width: int) -> U8:
    """Bytes (n, b) as values (n, b / width, 2, width): the low nibbles of `width` bytes, then their high nibbles."""
    groups = packed.reshape(len(packed), -1, width)
    q = np.empty((len(packed), groups.shape[1], 2, width), np.uint8)
    np.bitwise_and(groups, 15, out=q[:, :, 0])
    np.right_shift(groups, 4, out=q[:, :, 1])
    return q


def _values(q: U8 | I8, scales: F32, offsets: F32 | None) -> F32:
    values: F32 = scales[..., None] * q.astype(np.float32)
    return values if offsets is None else values - offsets[..., None]


def _q4_k_parts(blocks: U8) -> Parts:
    return _nibbles(blocks[:, 16:], 32).reshape(-1, 8, 32), *_scales_and_offsets(blocks)


def _q4_k_blocks(blocks: U8) -> U8:
    """One byte of Q41 has values j and j + 16, one of Q4_K has values j and j + 32."""
    scales, offsets = _scales_and_offsets(blocks)
    packed = np.ascontiguousarray(blocks[:, 16:]).view(np.uint64).reshape(-1, 4, 2, 2)
    first, second = packed[:, :, 0], packed[:, :, 1]  # bytes 0..15 and 16..31 of each 32
    lower, upper = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0xF0F0F0F0F0F0F0F0)
    q = np.empty((len(blocks), 4, 2, 2), np.uint64)
    q[:, :, 0] = (first & lower) | (second & lower) << np.uint64(4)
    q[:, :, 1] = (first >> np.uint64(4) & lower) | (second & upper)
    out = np.empty((len(blocks), 8), _Q41_BLOCK)
    out["d"], out["m"] = _to_f16(scales), _to_f16(-offsets)
    out["q"] = q.view("V16").reshape(-1, 8)
    return out.view(np.uint8)


def _q5_k_parts(blocks: U8) -> Parts:
    q = _nibbles(blocks[:, 48:], 32).reshape(-1, 8, 32)
    bits = np.arange(8, dtype=np.uint8)[:, None]
    q |= (blocks[:, None, 16:48] >> bits & 1) << 4
    return q, *_scales_and_offsets(blocks)


def _offset_blocks(q: U8 | I8, scales: F32, offsets: F32 | None) -> U8:
    """scales·q - offsets as Q80; q (..., 32) is 0..31, scales and offsets are (...)."""
    offsets = np.zeros_like(scales) if offsets is None else offsets
    d = _q80_scale(np.maximum(np.abs(scales * np.float32(31) - offsets), np.abs(offsets)))
    inverse = _inverse(d)
    values = q * (scales * inverse)[..., None]
    values -= (offsets * inverse)[..., None]
    return _q80(d, values)


def _q6_k_parts(blocks: U8) -> Parts:
    """Integers (n, 16, 16), -32..31."""
    q = np.empty((len(blocks), 2, 2, 64), np.uint8)
    nibbles, upper = blocks[:, :128].reshape(-1, 2, 64), blocks[:, 128:192].reshape(-1, 2, 32)
    np.bitwise_and(nibbles, 15, out=q[:, :, 0])
    np.right_shift(nibbles, 4, out=q[:, :, 1])
    groups = q.reshape(-1, 2, 4, 32)
    for i, bits in enumerate([(upper & 3) << 4, (upper & 12) << 2, upper & 48, (upper & 192) >> 2]):
        groups[:, :, i] |= bits
    signed: I8 = q.view(np.int8).reshape(-1, 16, 16)
    signed -= 32
    return signed, _f16(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32), None


def _q6_k_blocks(blocks: U8) -> U8:
    q, scales, _ = _q6_k_parts(blocks)
    d = _q80_scale(np.abs(scales).reshape(-1, 8, 2).max(-1) * np.float32(32))
    factors = scales.reshape(-1, 8, 2) * _inverse(d)[..., None]
    values = q * factors.reshape(-1, 16, 1)
    return _q80(d, values.reshape(-1, 8, 32))


def _q80_scale(max_abs: F32) -> F16:
    """The smallest f16 d with 127·d >= max_abs, so that every value fits."""
    wanted = max_abs / np.float32(127)
    d = _to_f16(wanted)
    bits = d.view("<u2")
    bits += (d < wanted) & (d < _F16_MAX)
    return d


def _inverse(d: F16) -> F32:
    """1 / d, and 0 for d = 0."""
    return np.divide(np.float32(1), d, out=np.zeros(d.shape, np.float32), where=d != 0, dtype=np.float32)


def _q80(d: F16, values: F32) -> U8:
    """Q80 blocks from scales d (...) and values (..., 32) in units of d; overwrites `values`."""
    np.rint(values, out=values)
    out = np.empty(d.shape, _Q80_BLOCK)
    out["d"] = d
    out["q"] = values.astype(np.int8).view("V32")[..., 0]
    return out.view(np.uint8)


def _q5_integers(packed: U8, upper: U8) -> U8:
    """(n, 32) values 0..31 of 16 bytes of nibbles and 32 upper bits."""
    q = _nibbles(packed, 16).reshape(-1, 32)
    q |= np.unpackbits(upper, axis=1, bitorder="little") << 4
    return q


def _q5_0_parts(blocks: U8) -> Parts:
    """Integers -16..15."""
    q = _q5_integers(blocks[:, 6:], blocks[:, 2:6])
    q -= np.uint8(16)
    return q.view(np.int8), _f16(blocks[:, :2])[:, 0], None


def _q5_0_blocks(blocks: U8) -> U8:
    out = np.empty(len(blocks), _Q80_BLOCK)
    out["d"] = np.ascontiguousarray(blocks[:, :2]).view("<f2")[:, 0]
    out["q"] = _q5_0_parts(blocks)[0].view("V32")[:, 0]
    return out.view(np.uint8)


def _q5_1_parts(blocks: U8) -> Parts:
    q = _q5_integers(blocks[:, 8:], blocks[:, 4:8])
    return q, _f16(blocks[:, :2])[:, 0], -_f16(blocks[:, 2:4])[:, 0]


Q4_K = SourceType("Q4_K", 256, 144, FloatType.Q41, _q4_k_parts, _q4_k_blocks)
Q5_K = SourceType("Q5_K", 256, 176, FloatType.Q80, _q5_k_parts)
Q6_K = SourceType("Q6_K", 256, 210, FloatType.Q80, _q6_k_parts, _q6_k_blocks)
Q5_0 = SourceType("Q5_0", 32, 22, FloatType.Q80, _q5_0_parts, _q5_0_blocks)
Q5_1 = SourceType("Q5_1", 32, 24, FloatType.Q80, _q5_1_parts)
