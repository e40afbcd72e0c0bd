"""Random weights of a model's shape, for measurements of speed, memory and traffic. Knows no file.

Blocks are drawn directly instead of being quantized, as fast as a disk writes, and one tensor is in memory at a time.
Their scale keeps the size of activations from layer to layer; the text of such a model is noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from msgspec import Struct
from numpy.random import SFC64, Generator

from dllama_zmq.models import tensor_table
from dllama_zmq.quants import F32, U8, BlockMatrix, quantize
from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec

_SCALE_RMS = math.sqrt(13 / 12)  # of scales, uniform over ±[0.5, 1.5]


class _RandomBlocks(Struct, frozen=True):
    """Values of blocks of random bytes in which only d, and m or dmin, are chosen.

    rms: of the values where d is 1. at: the byte of d. offset: m or dmin, at byte 2, where d is 1; for about as many
    values above zero as below.
    """

    rms: float
    at: int = 0
    offset: float | None = None


def _k_rms(levels: int) -> float:
    """Of s·q - (levels - 1) / 2·o, with s and o uniform over 0..63, q over 0..levels - 1."""
    mean, square = (levels - 1) / 2, (levels - 1) * (2 * levels - 1) / 6
    return math.sqrt(63 * 127 / 6 * (square + mean**2) - 2 * (63 / 2 * mean) ** 2)


_RANDOM = {
    FloatType.Q40: _RandomBlocks(math.sqrt(21.5)),  # -8..7
    FloatType.Q41: _RandomBlocks(math.sqrt(21.5), offset=-8),
    FloatType.Q50: _RandomBlocks(math.sqrt(85.5)),  # -16..15
    FloatType.Q51: _RandomBlocks(math.sqrt(85.5), offset=-16),
    FloatType.Q80: _RandomBlocks(math.sqrt(127 * 128 / 3)),  # -127..127
    FloatType.Q4_K: _RandomBlocks(_k_rms(16), offset=7.5),
    FloatType.Q5_K: _RandomBlocks(_k_rms(32), offset=15.5),
    FloatType.Q6_K: _RandomBlocks(math.sqrt(5461.5 * 341.5), at=208),  # -128..127 times -32..31
}


def random_tensors(spec: ModelSpec, seed: int) -> Iterator[tuple[str, BlockMatrix]]:
    """Every tensor of the model in file order, one at a time. The same seed gives the same bytes."""
    rng = Generator(SFC64(seed))
    for tensor in tensor_table(spec):
        yield tensor.name, random_matrix(rng, tensor, spec)


def random_matrix(rng: Generator, tensor: TensorSpec, spec: ModelSpec) -> BlockMatrix:
    """A tensor whose product with a vector of RMS 1 has an RMS of about 1, or less if it is added to the residual."""
    rows, columns = tensor.shape(spec)
    if tensor.axes[0] == "one":
        gain = np.float32(0.1) * rng.standard_normal((1, columns), dtype=np.float32)
        if not tensor.name.endswith("_bias"):
            gain += 1
        return BlockMatrix.from_array(gain, tensor.float_type)
    is_embedding = tensor.root_only
    rms = 1.0 if is_embedding else 1 / math.sqrt(columns)
    if tensor.axes[0] == "embed":  # added to the residual, twice a layer
        rms /= math.sqrt(2 * spec.n_layers)
    return BlockMatrix(random_blocks(rng, tensor.float_type, rows, columns, rms), tensor.float_type)


def random_blocks(rng: Generator, float_type: FloatType, rows: int, columns: int, rms: float) -> U8:
    """The bytes of (rows, columns) values of `float_type` whose RMS is about `rms`."""
    if not float_type.is_quantized:
        return _random_floats(rng, float_type, rows, columns, rms)
    row_bytes = float_type.row_bytes(columns)
    n_bytes = rows * row_bytes
    words = rng.integers(0, 1 << 64, size=-(-n_bytes // 8), dtype=np.uint64)
    data: U8 = words.view(np.uint8)[:n_bytes].reshape(rows, row_bytes)
    blocks = data.reshape(rows, -1, float_type.block_bytes)
    if float_type is FloatType.Q80:
        values = blocks[..., 2:].view(np.int8)
        np.maximum(values, -127, out=values)  # Q80 writers make no -128
    drawn = _RANDOM[float_type]
    unit = rms / _SCALE_RMS / drawn.rms
    # Scales of either sign: the mean of -8..7 is -0.5, which would add up over a row.
    scales = 2 * rng.random(blocks.shape[:2], dtype=np.float32) - 1
    scales += np.copysign(np.float32(0.5), scales)
    blocks[..., drawn.at : drawn.at + 2] = (scales * np.float32(unit)).astype("<f2")[..., None].view(np.uint8)
    if drawn.offset is not None:
        blocks[..., 2:4] = (scales * np.float32(drawn.offset * unit)).astype("<f2")[..., None].view(np.uint8)
    return data


def _random_floats(rng: Generator, float_type: FloatType, rows: int, columns: int, rms: float) -> U8:
    values: F32 = rng.standard_normal((rows, columns), dtype=np.float32)
    values *= np.float32(rms)
    return quantize(values, float_type)
