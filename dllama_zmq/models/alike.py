"""Sums that are the same bits on every CPU: for what goes into x, which must be equal on all nodes.

Rows become whole numbers with few enough bits that float64 adds their products exactly, in any order.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dllama_zmq.quants import F32

F64 = npt.NDArray[np.float64]


def norm_alike(x: F32, gain: F32, eps: float) -> F32:
    """RMS norm of x (T, D) with gain (D,), the same bits on every CPU.

    For a norm whose result goes into x, which must be equal on all nodes. x becomes whole numbers, whose squares
    float64 adds exactly in any order. Each remaining operation rounds once, as IEEE 754 prescribes.
    """
    values, steps = whole_rows(x, whole_bits(x.shape[1]))
    squares: F64 = np.square(values).sum(axis=1) * np.square(steps)
    scale = (1.0 / np.sqrt(squares / x.shape[1] + eps)).astype(np.float32)
    normed: F32 = x * scale[:, None] * gain
    return normed


def whole_bits(width: int) -> int:
    """Bits of whole numbers such that float64 holds the sum of `width` products of two of them."""
    return (53 - math.ceil(math.log2(width))) // 2


def whole_rows(rows: F32, bits: int) -> tuple[F64, F64]:
    """Rows (T, D) as whole numbers up to 2^bits, and each row's unit (T,), a power of two."""
    exponents = np.frexp(np.abs(rows).max(axis=1))[1] - bits
    return np.rint(np.ldexp(rows.astype(np.float64), -exponents[:, None])), np.ldexp(1.0, exponents)
