"""The block types of GGUF files that no kernel computes with, and what each is read as.

    type    values  bytes  a block (d, dmin: f16; e: a power of two)
    Q2_K    256     84     16 bytes of scales and offsets (4 bits each), 64 bytes of 2 bits, d, dmin
    Q3_K    256     110    32 bytes of upper bits, 64 bytes of 2 bits, 12 bytes of 16 scales (6 bits each), d
    IQ4_NL  32      18     d, 16 bytes of nibbles
    IQ4_XS  256     136    d, 8 scales (6 bits each): 2 bytes of upper bits, 4 bytes of nibbles; 128 bytes of nibbles
    MXFP4   32      17     e, 16 bytes of nibbles
    TQ1_0   256     54     48 bytes of 5 base-3 digits, 4 bytes of 4 digits, d
    TQ2_0   256     66     64 bytes of 2 bits, d

    Q2_K          value = d·scale·q - dmin·offset, one scale and one offset for 16 values
    Q3_K          value = d·(scale - 32)·(q - 4), one scale for 16 values
    IQ4_NL        value = d·IQ4[q]
    IQ4_XS        value = d·(scale - 32)·IQ4[q], one scale for 32 values
    MXFP4         value = 2^(e - 128)·FP4[q]
    TQ1_0, TQ2_0  value = d·(q - 1)

Source: ggml's ggml-common.h (layouts and tables).

Q3_K is Q6_K with fewer integers, IQ4_NL is Q80, MXFP4 is Q50 and TQ is Q40, all exactly. IQ4_XS becomes Q80 with its
scales rounded to f16, and Q2_K becomes Q6_K: its offsets are rounded to whole steps. FORMATS.md §4 has the errors.
A scale beyond f16's range becomes infinite, and the tensor is then refused like any other with infinite values.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dllama_zmq.quants.parts import F32, U8, Parts, f16_at, nibbles, pack_nibbles
from dllama_zmq.quants.source import SourceType
from dllama_zmq.spec import FloatType

F16: TypeAlias = npt.NDArray[np.float16]

_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""The values of E2M1 floats, doubled."""
_SHIFTS: U8 = np.array([[0], [2], [4], [6]], np.uint8)
_POWERS_OF_3 = np.array([[1], [3], [9], [27], [81]], np.uint8)


def _two_bits(packed: U8) -> U8:
    """64 bytes as values 0..3 (n, 2, 4, 32): of each 32 bytes the lowest two bits come first."""
    q: U8 = packed.reshape(-1, 2, 1, 32) >> _SHIFTS & np.uint8(3)
    return q


def _q2_k_groups(blocks: U8) -> tuple[U8, F32, F32]:
    """q (n, 16, 16), and the scale and the offset (n, 16) of each group of 16."""
    scales, offsets = (blocks[:, :16] & 15).astype(np.float32), (blocks[:, :16] >> 4).astype(np.float32)
    q = _two_bits(blocks[:, 16:80]).reshape(-1, 16, 16)
    return q, f16_at(blocks, 80) * scales, f16_at(blocks, 82) * -offsets


def _q2_k(blocks: U8) -> Parts:
    q, scales, offsets = _q2_k_groups(blocks)
    return Parts(q.view(np.int8), scales, offsets)


def _q3_k_integers(blocks: U8) -> U8:
    """q (n, 2, 4, 32)."""
    q = _two_bits(blocks[:, 32:96])
    bits = np.arange(8, dtype=np.uint8).reshape(2, 4, 1)
    q |= (blocks[:, None, None, :32] >> bits & 1) << 2
    return q


def _q3_k_scales(blocks: U8) -> U8:
    """The scales (n, 16), 0..63: eight bytes have the lower four bits, four bytes the upper two."""
    scales: U8 = nibbles(blocks[:, 96:104], 8).reshape(-1, 16)
    scales |= (blocks[:, None, 104:108] >> _SHIFTS & 3).reshape(-1, 16) << 4
    return scales


def _q3_k(blocks: U8) -> Parts:
    q = _q3_k_integers(blocks).reshape(-1, 16, 16).view(np.int8) - np.int8(4)
    scales = _q3_k_scales(blocks).view(np.int8) - np.int8(32)
    return Parts(q, f16_at(blocks, 108) * scales.astype(np.float32))


def _iq4_nl(blocks: U8) -> Parts:
    return Parts(_IQ4.take(nibbles(blocks[:, 2:], 16).reshape(-1, 1, 32)), f16_at(blocks, 0))


def _iq4_xs(blocks: U8) -> Parts:
    lower = nibbles(blocks[:, 4:8], 1).reshape(-1, 8)
    upper = (blocks[:, 2:4, None] >> _SHIFTS[:, 0] & 3).reshape(-1, 8)
    scales = (lower | upper << 4).view(np.int8) - np.int8(32)
    q = nibbles(blocks[:, 8:], 16).reshape(-1, 8, 32)
    return Parts(_IQ4.take(q), f16_at(blocks, 0) * scales.astype(np.float32))


def _mxfp4(blocks: U8) -> Parts:
    scales = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return Parts(_FP4.take(nibbles(blocks[:, 1:], 16).reshape(-1, 1, 32)), scales)


def _ternary(digits: U8, scales: F32) -> Parts:
    q = digits.reshape(-1, 8, 32).view(np.int8) - np.int8(1)
    return Parts(q, np.repeat(scales, 8, axis=1))


def _tq1_0(blocks: U8) -> Parts:
    """Of each byte, the first digits after the point of byte / 256 in base 3. The products are taken modulo 256."""
    groups = (blocks[:, :32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4)
    fractions = [(group[:, None] * _POWERS_OF_3[:n]).reshape(len(blocks), -1) for group, n in groups]
    digits = np.concatenate(fractions, axis=1).astype(np.uint16) * 3 >> 8
    return _ternary(digits.astype(np.uint8), f16_at(blocks, 52))


def _tq2_0(blocks: U8) -> Parts:
    return _ternary(_two_bits(blocks[:, :64]), f16_at(blocks, 64))


def _blocks_of(parts: Parts, packed: U8) -> U8:
    """Blocks of a scale as f16 and then bytes (n, blocks, b)."""
    heads = parts.scales.astype("<f2")[..., None].view(np.uint8)
    return np.concatenate([heads, packed], axis=2).reshape(len(packed), -1)


def _unsigned(parts: Parts, bias: int) -> U8:
    biased: U8 = parts.integers.view(np.uint8) + np.uint8(bias)  # modulo 256
    return biased


def _as_q80(parts: Parts) -> U8:
    return _blocks_of(parts, parts.integers.view(np.uint8))


def _as_q40(parts: Parts) -> U8:
    return _blocks_of(parts, pack_nibbles(_unsigned(parts, 8)))


def _as_q50(parts: Parts) -> U8:
    q = _unsigned(parts, 16)
    upper = np.packbits(q >> 4, axis=2, bitorder="little")
    return _blocks_of(parts, np.concatenate([upper, pack_nibbles(q & np.uint8(15))], axis=2))


def _as_q6_k(q: U8, scales: U8, d: U8) -> U8:
    """Blocks of integers 0..63 (n, 256), signed scales (n, 16) and the bytes of d (n, 2)."""
    q = q.reshape(-1, 2, 4, 32)
    lower = (q[:, :, :2] & 15 | q[:, :, 2:] << 4).reshape(-1, 128)
    upper = q >> 4
    upper = upper[:, :, 0] | upper[:, :, 1] << 2 | upper[:, :, 2] << 4 | upper[:, :, 3] << 6
    return np.concatenate([lower, upper.reshape(-1, 64), scales, d], axis=1)


def _q3_k_as_q6_k(blocks: U8) -> U8:
    return _as_q6_k(_q3_k_integers(blocks) + np.uint8(28), _q3_k_scales(blocks) - np.uint8(32), blocks[:, 108:])


def _q2_k_as_q6_k(blocks: U8) -> U8:
    """The four values that a group's integers can mean are rounded to multiples of the group's new scale.

    They are equally spaced. If the spacing is a multiple of the scale, only the offset is rounded, and its error is
    that of all four. So the spacing is divided by the four largest whole numbers that leave a large enough scale, and
    the scale of the least error is taken.
    """
    q, spacings, offsets = _q2_k_groups(blocks)
    levels = np.arange(4, dtype=np.float32)[:, None, None] * spacings + offsets  # (4, n, 16)
    least: F32 = np.maximum(levels.max(axis=0) / 31, levels.min(axis=0) / -32)
    # A quarter more than the largest needs, so that its group too has a choice of scales.
    d = _f16_not_below(least.max(axis=1, keepdims=True) * np.float32(1.25 / 127))
    unit: F32 = np.where(d == 0, np.float32(1), d.astype(np.float32))
    levels /= unit
    spacings = np.abs(spacings / unit)
    least = np.maximum(np.ceil(least / unit), 1)
    most_steps = np.floor(spacings / least)
    error, scales, steps = np.full_like(least, np.inf), least, np.zeros_like(levels)
    for fewer in range(4):
        scale = np.clip(np.rint(spacings / np.maximum(most_steps - fewer, 1)), least, 127)
        rounded = np.rint(levels / scale)
        its_error = np.square(rounded * scale - levels).sum(axis=0)
        better = its_error < error
        error, scales = np.where(better, its_error, error), np.where(better, scale, scales)
        steps = np.where(better, rounded, steps)
    # The integers of the four values are the bytes of a u32, of which q chooses one.
    table = np.ascontiguousarray(np.moveaxis((steps + 32).astype(np.uint8), 0, 2)).view("<u4")  # (n, 16, 1)
    return _as_q6_k((table >> (q << 3)).astype(np.uint8), scales.astype(np.uint8), d.view(np.uint8))


def _f16_not_below(values: F32) -> F16:
    rounded: F16 = values.astype("<f2")
    return np.where(rounded < values, np.nextafter(rounded, np.float16(np.inf)), rounded)


Q2_K = SourceType("Q2_K", 256, 84, FloatType.Q6_K, _q2_k, _q2_k_as_q6_k)
Q3_K = SourceType("Q3_K", 256, 110, FloatType.Q6_K, _q3_k, _q3_k_as_q6_k)
IQ4_NL = SourceType("IQ4_NL", 32, 18, FloatType.Q80, _iq4_nl, lambda blocks: _as_q80(_iq4_nl(blocks)))
IQ4_XS = SourceType("IQ4_XS", 256, 136, FloatType.Q80, _iq4_xs, lambda blocks: _as_q80(_iq4_xs(blocks)))
MXFP4 = SourceType("MXFP4", 32, 17, FloatType.Q50, _mxfp4, lambda blocks: _as_q50(_mxfp4(blocks)))
TQ1_0 = SourceType("TQ1_0", 256, 54, FloatType.Q40, _tq1_0, lambda blocks: _as_q40(_tq1_0(blocks)))
TQ2_0 = SourceType("TQ2_0", 256, 66, FloatType.Q40, _tq2_0, lambda blocks: _as_q40(_tq2_0(blocks)))
