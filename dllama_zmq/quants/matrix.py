"""A matrix of blocks; slices by rows and by 32 columns are views."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dllama_zmq.errors import FormatError
from dllama_zmq.quants.blocks import dequantize, quantize
from dllama_zmq.quants.parts import F32, U8
from dllama_zmq.spec import FloatType

_F32 = np.dtype("<f4")
_CHUNK_BYTES = 1 << 20
"""Bytes checked at a time: the temporaries stay in a core's cache."""
_EXPONENT = {FloatType.F16: 0x7C00, FloatType.BF16: 0x7F80}
"""The bits of the exponent: all are set in an infinity and in a NaN."""
_F16_AT = {
    FloatType.Q41: (0, 2),
    FloatType.Q51: (0, 2),
    FloatType.Q4_K: (0, 2),
    FloatType.Q5_K: (0, 2),
    FloatType.Q6_K: (208,),
}
"""The bytes of a block where its f16 scale and offset are, if not the first one."""


class Later:
    """The bytes (rows, bytes of a row) of a matrix that `read` returns; it is called when they are first needed.

    That spares a matrix to be read whose tiles are kept from an earlier start.
    """

    def __init__(self, shape: tuple[int, int], read: Callable[[], U8]) -> None:
        self.shape, self._read = shape, read

    @cached_property
    def data(self) -> U8:
        """The bytes. Raises what reading raises."""
        return self._read()


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """`content` is uint8 (rows, whole blocks): a view of a mapped file, an array, or one that is read later.

    before, behind: values of the first block before the first column, and of the last block behind the last column.
    unchecked: what a FormatError says if a value is infinite or NaN, as long as nobody has looked; empty: all are known
    to be finite. Who goes over all the bytes looks, so that a model's weights are read once: `check`, `dequantize`, and
    back ends as they take the matrix.
    source: names the bytes, by a hash of them or of all that they are read from: equal sources, equal bytes. Empty if
    nothing is known.
    """

    content: U8 | Later
    float_type: FloatType
    before: int = 0
    behind: int = 0
    unchecked: str = ""
    source: str = ""

    @classmethod
    def from_array(cls, values: F32, float_type: FloatType) -> BlockMatrix:
        """Quantize `values` (rows, columns)."""
        return cls(quantize(values, float_type), float_type)

    @classmethod
    def of_columns(cls, content: U8 | Later, float_type: FloatType, columns: slice) -> BlockMatrix:
        """The `columns` (with bounds) of a wider matrix, from `content` (rows, the blocks in which they lie)."""
        whole = float_type.whole_blocks(columns)
        return cls(content, float_type, columns.start - whole.start, whole.stop - columns.stop)

    @property
    def data(self) -> U8:
        """The bytes (rows, whole blocks). Raises what reading raises, if they are read now."""
        return self.content.data if isinstance(self.content, Later) else self.content

    @property
    def rows(self) -> int:
        return int(self.content.shape[0])

    @property
    def columns(self) -> int:
        row_bytes: int = self.content.shape[1]
        return self.float_type.values_in(row_bytes) - self.before - self.behind

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) in values."""
        return self.rows, self.columns

    @property
    def nbytes(self) -> int:
        return math.prod(self.content.shape)

    def cut(self, rows: slice, columns: slice) -> BlockMatrix:
        """A view of the sub-matrix. Column bounds must be multiples of the type's `cut_values`, as a plan's are."""
        first, last, _ = columns.indices(self.columns)
        kind, wanted = self.float_type, slice(self.before + first, self.before + last)
        if first % kind.cut_values or last % kind.cut_values:
            raise ValueError(f"columns {first} to {last} of {kind.name} are not multiples of {kind.cut_values}")
        whole = kind.whole_blocks(wanted)
        data = self.data[rows, kind.row_bytes(whole.start) : kind.row_bytes(whole.stop)]
        return replace(BlockMatrix.of_columns(data, kind, wanted), unchecked=self.unchecked)

    def contiguous(self) -> BlockMatrix:
        """Itself if its bytes are contiguous, else a contiguous copy."""
        return replace(self, content=np.ascontiguousarray(self.data))

    def dequantize(self) -> F32:
        """The whole matrix as float32 (rows, columns): for small matrices and for tests. Raises as `check` does."""
        self.check()
        values = dequantize(self.data, self.float_type)
        return values[:, self.before : values.shape[1] - self.behind]

    def check(self) -> None:
        """Raise FormatError if it is unchecked and has a value that is infinite or NaN."""
        if self.unchecked and not self.is_finite:
            raise FormatError(self.unchecked)

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
    # The upper byte of each f16.
    return all(int((blocks[:, :, at + 1] & 0x7C).max()) != 0x7C for at in _F16_AT.get(kind, (0,)))
