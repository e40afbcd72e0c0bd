"""A matrix kept in the blocks it is stored in, cut by rows and by whole blocks of columns without a copy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dllama_zmq.quants.blocks import F32, U8, dequantize, quantize
from dllama_zmq.spec import FloatType


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
