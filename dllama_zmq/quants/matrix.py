"""A matrix kept in the blocks it is stored in, cut by rows and by whole blocks of columns without a copy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dllama_zmq.quants.blocks import F32, U8, dequantize, quantize
from dllama_zmq.spec import FloatType

_CHECKED_BYTES = 1 << 20
"""Looked at at a time, so that what is made in between stays in a core's cache."""
_EXPONENT = {FloatType.F16: 0x7C00, FloatType.BF16: 0x7F80}
"""The bits that are all set in what is infinite or no number."""


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """`data` is uint8 (rows, row_bytes(columns)); a view of a mapped file or an array of its own."""

    data: U8
    float_type: FloatType

    @classmethod
    def from_array(cls, values: F32, float_type: FloatType) -> BlockMatrix:
        """Quantize `values` (rows, columns)."""
        return cls(quantize(values, float_type), float_type)

    @property
    def rows(self) -> int:
        return len(self.data)

    @property
    def columns(self) -> int:
        row_bytes: int = self.data.shape[1]
        return row_bytes // self.float_type.block_bytes * self.float_type.block_values

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) in values."""
        return self.rows, self.columns

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def cut(self, rows: slice, columns: slice) -> BlockMatrix:
        """The sub-matrix as a view. Column bounds must fall on whole blocks (the plan sees to it)."""
        first, last, _ = columns.indices(self.columns)
        return BlockMatrix(
            self.data[rows, self.float_type.row_bytes(first) : self.float_type.row_bytes(last)], self.float_type
        )

    def contiguous(self) -> BlockMatrix:
        """Itself where its bytes lie in one piece, else a copy that does."""
        return BlockMatrix(np.ascontiguousarray(self.data), self.float_type)

    def dequantize(self) -> F32:
        """The whole matrix as float32 (rows, columns): for small matrices and for tests."""
        return dequantize(self.data, self.float_type)

    @property
    def is_finite(self) -> bool:
        """Whether all values are numbers that are not infinite: of blocks, by their scales and offsets alone."""
        rows_at_once = max(1, _CHECKED_BYTES // max(1, self.data.shape[1]))
        return all(
            _is_finite(self.data[row : row + rows_at_once], self.float_type)
            for row in range(0, self.rows, rows_at_once)
        )


def _is_finite(data: U8, kind: FloatType) -> bool:
    if not data.size:
        return True
    if kind is FloatType.F32:
        values = data.view("<f4")
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return math.isfinite(float(values.max()) - float(values.min()))  # either is NaN where a value is
    if kind in _EXPONENT:
        mask = _EXPONENT[kind]
        return int((data.view("<u2") & mask).max()) != mask
    blocks = data.reshape(len(data), -1, kind.block_bytes)
    # The upper bytes of the f16 at a block's start: of Q41 two, the scale and the offset.
    return all(int((blocks[:, :, at] & 0x7C).max()) != 0x7C for at in ((1, 3) if kind is FloatType.Q41 else (1,)))
