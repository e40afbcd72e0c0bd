"""Blocks of the types that no kernel computes with, of random bytes, for tests."""

from __future__ import annotations

import math

import numpy as np
from gguf_writer import TYPE_IDS, FileTensor

from dllama_zmq.quants import U8, SourceType
from dllama_zmq.quants.low_bits import IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, TQ1_0, TQ2_0

# The bytes of a block where its f16 scale is, and the RMS of random integers under a scale of 1.
_SCALES: dict[SourceType, tuple[int, float]] = {
    Q2_K: (80, 14),
    Q3_K: (108, 44),
    IQ4_NL: (0, 67),
    IQ4_XS: (0, 1250),
    MXFP4: (0, 5.9),
    TQ1_0: (52, 0.82),
    TQ2_0: (64, 1.1),
}
LOW_BITS = list(_SCALES)


def random_blocks(rng: np.random.Generator, kind: SourceType, rows: int, columns: int, size: float) -> U8:
    """Bytes (rows, row_bytes(columns)) of random integers and scales, whose values have an RMS of about `size`."""
    data = rng.integers(0, 256, (rows, kind.row_bytes(columns)), dtype=np.uint8)
    blocks = data.reshape(-1, kind.block_bytes)
    at, spread = _SCALES[kind]
    if kind is MXFP4:
        blocks[:, 0] = 128 + round(math.log2(size / spread))
        return data
    blocks[:, at : at + 2] = np.array([size / spread], "<f2").view(np.uint8)
    if kind is Q2_K:  # an offset too, so that about half of the values are negative
        blocks[:, 82:84] = np.array([1.5 * size / spread], "<f2").view(np.uint8)
    return data


def low_bit_tensor(name: str, kind: SourceType, data: U8) -> FileTensor:
    """A matrix of a file, of bytes (rows, row_bytes(columns))."""
    return FileTensor(name, [kind.values_in(data.shape[1]), len(data)], TYPE_IDS[kind.name], data.tobytes())
