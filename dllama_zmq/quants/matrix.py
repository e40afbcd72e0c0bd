"""A matrix of quantized blocks; slices by rows and by whole blocks of columns are views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dllama_zmq.quants.blocks import F32, U8, dequantize, quantize
from dllama_zmq.spec import FloatType

_F32 = np.dtype("<f4")
_CHUNK_BYTES = 1 << 20
"""Bytes checked at a time: the temporaries stay in a core's cache."""
_EXPONENT = {FloatType.F16: 0x7C00, FloatType.BF16: 0x7F80}
"""The bits of the exponent: all are set in an infinity and in a NaN."""


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """`data` is uint8 (rows, row_bytes(columns)), a view of a mapped file or an array."""

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
        """A view of the sub-matrix. Column bounds must fall on whole blocks, as those of a plan do."""
        first, last, _ = columns.indices(self.columns)
        return BlockMatrix(
            self.data[rows, self.float_type.row_bytes(first) : self.float_type.row_bytes(last)], self.float_type
        )

    def contiguous(self) -> BlockMatrix:
        """Itself if its bytes are contiguous, else a contiguous copy."""
        return BlockMatrix(np.ascontiguousarray(self.data), self.float_type)

    def dequantize(self) -> F32:
        """The whole matrix as float32 (rows, columns): for small matrices and for tests."""
        return dequantize(self.data, self.float_type)

    @property
    def is_finite(self) -> bool:
        """Whether no value is infinite or a NaN. For quantized blocks, scales and offsets decide that."""
        if self.data.nbytes <= _CHUNK_BYTES:  # such as the row of an embedding, which is read for each token
            return _is_finite(self.data, self.float_type)
        chunk_rows = max(1, _CHUNK_BYTES // max(1, self.data.shape[1]))
        return all(
            _is_finite(self.data[row : row + chunk_rows], self.float_type) for row in range(0, self.rows, chunk_rows)
        )


def _is_finite(data: U8, kind: FloatType) -> bool:
    if not data.size:
        return True
    if kind is FloatType.F32:
        return bool(np.isfinite(data.view(_F32)).all())
    if kind in _EXPONENT:
        mask = _EXPONENT[kind]
        return int((data.view("<u2") & mask).max()) != mask
    blocks = data.reshape(len(data), -1, kind.block_bytes)
    # The upper byte of the scale; for Q41 also that of the offset.
    return all(int((blocks[:, :, at] & 0x7C).max()) != 0x7C for at in ((1, 3) if kind is FloatType.Q41 else (1,)))
