"""The integers, scales and offsets of quantized blocks. Knows no file and no model.

    type   values  bytes  a block (d, dmin, m: f16; nibbles have the lower bits, qh the upper ones)
    Q40    32      18     d, 16 bytes of nibbles
    Q41    32      20     d, m, 16 bytes of nibbles
    Q50    32      22     d, 4 bytes qh, 16 bytes of nibbles
    Q51    32      24     d, m, 4 bytes qh, 16 bytes of nibbles
    Q80    32      34     d, 32 signed bytes
    Q4_K   256     144    d, dmin, 12 bytes of 8 scales and 8 offsets (6 bits each), 128 bytes of nibbles
    Q5_K   256     176    d, dmin, those 12 bytes, 32 bytes qh, 128 bytes of nibbles
    Q6_K   256     210    128 bytes of nibbles, 64 bytes qh, 16 signed bytes of scales, d

    Q40, Q50    value = d·(q - 8), value = d·(q - 16)
    Q41, Q51    value = d·q + m
    Q80         value = d·q
    Q4_K, Q5_K  value = d·scale·q - dmin·offset, one scale and one offset for 32 values
    Q6_K        value = d·scale·(q - 32), one scale for 16 values

A scale d·scale has at most 19 bits, and an offset dmin·offset 17: float32 holds both exactly.

Source: ggml's ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dllama_zmq.spec import FloatType

F32: TypeAlias = npt.NDArray[np.float32]
U8: TypeAlias = npt.NDArray[np.uint8]
I8: TypeAlias = npt.NDArray[np.int8]


class Parts(NamedTuple):
    """Signed integers (rows, n, width), and the scale and offset (rows, n) of each `width` of them:
    value = scale * integer + offset. No offsets: zeros."""

    integers: I8
    scales: F32
    offsets: F32 | None = None

    def values(self) -> F32:
        """The values (rows, n * width)."""
        with np.errstate(all="ignore"):  # the scales of a hostile file may be anything
            values: F32 = self.integers.astype(np.float32)
            values *= self.scales[..., None]
            if self.offsets is not None:
                values += self.offsets[..., None]
        rows, n, width = values.shape
        return values.reshape(rows, n * width)


def split(data: U8, kind: FloatType) -> Parts:
    """The parts of rows of a quantized type: bytes (rows, whole blocks)."""
    blocks = data.reshape(-1, kind.block_bytes)
    with np.errstate(all="ignore"):
        integers, scales, offsets = _SPLITS[kind](blocks)
    rows, width = len(data), integers.shape[-1]
    n = kind.values_in(data.shape[1]) // width
    return Parts(
        integers.reshape(rows, n, width),
        scales.reshape(rows, n),
        None if offsets is None else offsets.reshape(rows, n),
    )


def f16_at(blocks: U8, at: int) -> F32:
    """The f16 at byte `at` of each block, as float32 (n, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(packed: U8, width: int) -> U8:
    """Bytes (n, b) as values (n, b / width, 2, width): the low nibbles of `width` bytes, then their high nibbles."""
    groups = packed.reshape(len(packed), packed.shape[1] // width, width)
    q = np.empty((len(packed), groups.shape[1], 2, width), np.uint8)
    np.bitwise_and(groups, 15, out=q[:, :, 0])
    np.right_shift(groups, 4, out=q[:, :, 1])
    return q


def pack_nibbles(q: U8) -> U8:
    """Integers 0..15 (..., 32) as 16 bytes, the first 16 in the low nibbles."""
    packed: U8 = q[..., :16] | q[..., 16:] << np.uint8(4)
    return packed


def _five_bits(packed: U8, upper: U8) -> U8:
    """Values 0..31 (n, 32) of 16 bytes of nibbles and 32 upper bits."""
    q = nibbles(packed, 16).reshape(-1, 32)
    q |= np.unpackbits(upper, axis=1, bitorder="little") << 4
    return q


def _signed(q: U8, bias: int) -> I8:
    """q - bias, in place."""
    signed: I8 = q.view(np.int8)
    signed -= np.int8(bias)
    return signed


def _q40(blocks: U8) -> Parts:
    return Parts(_signed(nibbles(blocks[:, 2:], 16).reshape(-1, 32), 8), f16_at(blocks, 0))


def _q41(blocks: U8) -> Parts:
    return Parts(nibbles(blocks[:, 4:], 16).reshape(-1, 32).view(np.int8), f16_at(blocks, 0), f16_at(blocks, 2))


def _q50(blocks: U8) -> Parts:
    return Parts(_signed(_five_bits(blocks[:, 6:], blocks[:, 2:6]), 16), f16_at(blocks, 0))


def _q51(blocks: U8) -> Parts:
    q = _five_bits(blocks[:, 8:], blocks[:, 4:8])
    return Parts(q.view(np.int8), f16_at(blocks, 0), f16_at(blocks, 2))


def _q80(blocks: U8) -> Parts:
    return Parts(blocks[:, 2:].view(np.int8), f16_at(blocks, 0))


def _scales_and_offsets(blocks: U8) -> tuple[F32, F32]:
    """Scales (n, 8) and offsets (n, 8) of Q4_K and Q5_K, one for 32 values.

    Each has six bits; the upper two bits of the last four are stored in the upper bits of the first four.
    """
    packed = blocks[:, 4:16].reshape(-1, 3, 4)
    low, middle, high = packed[:, 0], packed[:, 1], packed[:, 2]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 2 & 48)], axis=1)
    offsets = np.concatenate([middle & 63, (high >> 4) | (middle >> 2 & 48)], axis=1)
    return f16_at(blocks, 0) * scales.astype(np.float32), f16_at(blocks, 2) * -offsets.astype(np.float32)


def _q4_k(blocks: U8) -> Parts:
    q = nibbles(blocks[:, 16:], 32).reshape(-1, 8, 32)
    return Parts(q.view(np.int8), *_scales_and_offsets(blocks))


def _q5_k(blocks: U8) -> Parts:
    q = nibbles(blocks[:, 48:], 32).reshape(-1, 8, 32)
    bits = np.arange(8, dtype=np.uint8)[:, None]
    q |= (blocks[:, None, 16:48] >> bits & 1) << 4
    return Parts(q.view(np.int8), *_scales_and_offsets(blocks))


def _q6_k(blocks: U8) -> Parts:
    q = np.empty((len(blocks), 2, 2, 64), np.uint8)
    nibbles, upper = blocks[:, :128].reshape(-1, 2, 64), blocks[:, 128:192].reshape(-1, 2, 32)
    np.bitwise_and(nibbles, 15, out=q[:, :, 0])
    np.right_shift(nibbles, 4, out=q[:, :, 1])
    groups = q.reshape(-1, 2, 4, 32)
    for i, bits in enumerate([(upper & 3) << 4, (upper & 12) << 2, upper & 48, (upper & 192) >> 2]):
        groups[:, :, i] |= bits
    scales = f16_at(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return Parts(_signed(q, 32).reshape(-1, 16, 16), scales)


_SPLITS: dict[FloatType, Callable[[U8], Parts]] = {
    FloatType.Q40: _q40,
    FloatType.Q41: _q41,
    FloatType.Q50: _q50,
    FloatType.Q51: _q51,
    FloatType.Q80: _q80,
    FloatType.Q4_K: _q4_k,
    FloatType.Q5_K: _q5_k,
    FloatType.Q6_K: _q6_k,
}
