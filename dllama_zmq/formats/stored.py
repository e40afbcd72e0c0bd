"""Tensors of mapped files, read in the type and row order of this package. Knows no file format.

A tensor is stored in one or several extents (Meta's shards), in any type of `quants`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats.mapped import MappedFile
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import F32, U8, SourceType, StoredType, dequantize, quantize
from dllama_zmq.spec import FloatType, ModelSpec

I64: TypeAlias = npt.NDArray[np.int64]
RowOrder: TypeAlias = Callable[[I64], I64]
"""Row numbers of a tensor to those of the same rows in the file."""

_LARGEST = {
    FloatType.F16: 65519.0,  # larger ones round to infinity
    FloatType.Q40: 8 * 65504.0,  # the scale is an f16
    FloatType.Q80: 127 * 65504.0,
}
"""The largest magnitude that a type can hold."""


def interleaved(head_dim: int) -> RowOrder:
    """For RoPE's rows in half layout in the file, read interleaved: j and j + head_dim / 2 become 2j and 2j + 1."""
    return lambda rows: rows - rows % head_dim + rows % head_dim // 2 + rows % 2 * (head_dim // 2)


def halved(head_dim: int) -> RowOrder:
    """For RoPE's rows interleaved in the file, read in half layout: the inverse of `interleaved`."""
    half = head_dim // 2
    return lambda rows: rows - rows % head_dim + rows % half * 2 + rows % head_dim // half


class Extent(Struct, frozen=True):
    """A contiguous matrix in a mapped file: `rows` rows of `columns` values. Its bounds have been checked."""

    pages: MappedFile
    offset: int
    rows: int
    columns: int
    stored: StoredType

    def bytes(self) -> U8:
        """A view (rows, bytes of a row) of the file. Raises UsageError if the file is closed."""
        row_bytes = self.stored.row_bytes(self.columns)
        return self.pages.view(self.offset, self.rows * row_bytes).reshape(self.rows, row_bytes)


class StoredTensor(Struct, frozen=True):
    """A tensor: extents of one type, concatenated along `axis`. `where` is its file and name, for errors.

    order: the rows' order in the file, if it differs (one extent only). shift: what is added to the file's values,
    which are read as F32.
    """

    where: str
    extents: tuple[Extent, ...]
    axis: Literal[0, 1] = 0
    order: RowOrder | None = None
    shift: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the whole tensor."""
        first = self.extents[0]
        if self.axis == 0:
            return sum(extent.rows for extent in self.extents), first.columns
        return first.rows, sum(extent.columns for extent in self.extents)

    @property
    def stored(self) -> StoredType:
        """The type in the file."""
        return self.extents[0].stored

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        rows, columns = self.shape
        return rows * self.stored.row_bytes(columns)

    def is_view(self, kind: FloatType) -> bool:
        """Whether its slices are views of the file when they are read as `kind`."""
        return self.stored is kind and self.order is None and len(self.extents) == 1 and not self.shift

    def read(self, first: int, last: int, left: int, right: int, kind: FloatType) -> U8:
        """Rows `first` to `last` and the blocks in which columns `left` to `right` lie, as `kind`; a view if possible.

        Raises FormatError for values that `kind` cannot hold.
        """
        wanted = kind.whole_blocks(slice(left, right))
        block = self.stored.block_values
        whole = wanted.start // block * block, -(-wanted.stop // block) * block
        skip, width = kind.row_bytes(wanted.start - whole[0]), kind.row_bytes(wanted.stop - wanted.start)
        return self._converted(self._bytes(first, last, *whole), kind)[:, skip : skip + width]

    def _bytes(self, first: int, last: int, left: int, right: int) -> U8:
        """Rows in their order and whole blocks of columns, in the stored type."""
        if len(self.extents) == 1:
            rows = slice(first, last) if self.order is None else self.order(np.arange(first, last))
            return self._cut(self.extents[0], rows, left, right)
        by_rows = self.axis == 0
        return np.concatenate(
            [
                self._cut(extent, slice(a, b), left, right) if by_rows else self._cut(extent, slice(first, last), a, b)
                for extent, a, b in self._covering(*((first, last) if by_rows else (left, right)))
            ],
            axis=self.axis,
        )

    def _covering(self, first: int, last: int) -> list[tuple[Extent, int, int]]:
        """The extents of `first` to `last` along the axis, with the bounds inside each."""
        found, start = [], 0
        for extent in self.extents:
            length = extent.rows if self.axis == 0 else extent.columns
            if start < last and first < start + length:
                found.append((extent, max(first - start, 0), min(last - start, length)))
            start += length
        return found or [(self.extents[0], 0, 0)]

    @staticmethod
    def _cut(extent: Extent, rows: slice | I64, left: int, right: int) -> U8:
        cut: U8 = extent.bytes()[rows, extent.stored.row_bytes(left) : extent.stored.row_bytes(right)]
        return cut

    def _converted(self, data: U8, kind: FloatType) -> U8:
        if self.stored is kind and not self.shift:
            return data
        if isinstance(self.stored, SourceType):
            data = np.ascontiguousarray(data)
            if kind is self.stored.read_as:
                return self.stored.convert(data)
            return quantize(self.stored.dequantize(data), kind)
        values = dequantize(data, self.stored)
        if self.shift:
            values = values + np.float32(self.shift)
        if kind is not FloatType.F32:  # F32 holds every F16 and BF16 exactly
            self._check_values(values, kind)
        return quantize(values, kind)

    def _check_values(self, values: F32, kind: FloatType) -> None:
        largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))  # NaN if a value is
        if largest <= _LARGEST.get(kind, math.inf) and math.isfinite(largest):
            return
        if math.isfinite(largest):
            raise FormatError(
                f"{self.where} has values up to {largest:g}, which {kind.name} cannot hold. Read the weights as f32."
            )
        raise FormatError(
            f"{self.where} has values that are infinite or NaN, which {kind.name} cannot hold. "
            "It is damaged; copy or download it again."
        )


def with_types(path: Path, spec: ModelSpec, stored: Mapping[str, StoredTensor], weights: FloatType | None) -> ModelSpec:
    """`spec` with the types in which tensors are read: `weights` for matrices, or their stored types.

    The embedding keeps its type, because only single rows of it are read. Norms, biases and routers are F32. A type
    without kernels is read as another one; the embedding and routers then as F32, without rounding.
    Raises UsageError if the widths do not fit `weights`, FormatError if they do not fit the stored types.
    """
    table = tensor_table(replace(spec, weight_type=FloatType.Q40))
    types = {tensor.name: _as_read(tensor.name, stored) for tensor in table if tensor.float_type is FloatType.Q40}
    weight_type = weights if weights is not None else Counter(types.values()).most_common(1)[0][0]
    spec = replace(spec, weight_type=weight_type)
    others = {"embedding": _as_read("embedding", stored)}
    if weights is None:
        others |= types
    exceptions = tuple(
        (tensor.name, others[tensor.name])
        for tensor in tensor_table(spec)
        if others.get(tensor.name, tensor.float_type) is not tensor.float_type
    )
    spec = replace(spec, stored=exceptions)
    try:
        spec.check()
    except FormatError as error:
        if weights is None:
            raise FormatError(f"{path}: {error}. The metadata cannot be that of a model.") from error
        raise UsageError(f"{path}: the weights cannot be {weights.name}: {error}. Choose f16 or f32.") from error
    return spec


def _as_read(name: str, stored: Mapping[str, StoredTensor]) -> FloatType:
    kind = stored[name].stored
    if isinstance(kind, FloatType):
        return kind
    return FloatType.F32 if name == "embedding" or name.endswith(".router") else kind.read_as


def check_shapes(spec: ModelSpec, stored: Mapping[str, StoredTensor], source: str) -> None:
    """Raise FormatError if a tensor has another shape than the numbers in the file `source` imply."""
    for tensor in tensor_table(spec):
        found, expected = stored[tensor.name].shape, tensor.shape(spec)
        if found != expected:
            raise FormatError(
                f"{stored[tensor.name].where} is {found[0]} x {found[1]}; by {source} it is "
                f"{expected[0]} x {expected[1]}. The files are damaged, or not of one model."
            )
