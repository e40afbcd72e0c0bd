"""Tensors of other programs' files, converted to the type and row order of this package. Knows no file format.

A tensor is stored in one or several extents (Meta's shards) as F32, F16 or BF16. Requested rows are converted a few at
a time, so that only the result needs memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats.mapped import MappedFile
from dllama_zmq.formats.model_file import ModelFile
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import F32, U8, BlockMatrix, dequantize, quantize
from dllama_zmq.spec import FloatType, ModelSpec

_CHUNK_VALUES = 1 << 18
"""Values converted at a time: 1 MB of f32, so that the temporaries stay in a core's cache."""
_LARGEST = {
    FloatType.F16: 65519.0,  # larger ones round to infinity
    FloatType.Q40: 8 * 65504.0,  # the scale is an f16
    FloatType.Q80: 127 * 65504.0,
}
"""The largest magnitude that a type can hold."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A contiguous matrix in a mapped file: `rows` rows of `columns` values. Its bounds have been checked."""

    pages: MappedFile
    offset: int
    rows: int
    columns: int
    float_type: FloatType

    def bytes(self) -> U8:
        """A view (rows, bytes of a row) of the file. Raises UsageError if the file is closed."""
        row_bytes = self.float_type.row_bytes(self.columns)
        return self.pages.view(self.offset, self.rows * row_bytes).reshape(self.rows, row_bytes)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor: extents of one type, concatenated along `axis`. `where` is its file and name, for errors.

    interleave: rows per head if rows are stored in RoPE's half layout and read interleaved (one extent only); else 0.
    """

    where: str
    extents: tuple[Extent, ...]
    axis: Literal[0, 1] = 0
    interleave: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the whole tensor."""
        first = self.extents[0]
        if self.axis == 0:
            return sum(extent.rows for extent in self.extents), first.columns
        return first.rows, sum(extent.columns for extent in self.extents)

    @property
    def float_type(self) -> FloatType:
        return self.extents[0].float_type

    def read(self, first: int, last: int, columns: slice) -> U8:
        """Rows `first` to `last`, reordered, in the stored type; a view if possible."""
        left, right, _ = columns.indices(self.shape[1])
        rows: slice | npt.NDArray[np.int64] = slice(first, last)
        if self.interleave:
            row = np.arange(first, last)
            in_head = row % self.interleave
            rows = row - in_head + in_head // 2 + in_head % 2 * (self.interleave // 2)
        if len(self.extents) == 1:
            return self._cut(self.extents[0], rows, left, right)
        if self.axis == 1:
            return np.concatenate(
                [self._cut(extent, rows, a, b) for extent, a, b in self._covering(left, right)], axis=1
            )
        return np.concatenate(
            [self._cut(extent, slice(a, b), left, right) for extent, a, b in self._covering(first, last)], axis=0
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
    def _cut(extent: Extent, rows: slice | npt.NDArray[np.int64], left: int, right: int) -> U8:
        size = extent.float_type.block_bytes
        cut: U8 = extent.bytes()[rows, left * size : right * size]
        return cut


class ConvertedModel(ModelFile):
    """A model that reads its tensors from `stored`, each in the spec's type."""

    def __init__(self, path: Path, spec: ModelSpec, stored: Mapping[str, StoredTensor]) -> None:
        super().__init__(path, spec)
        self._stored = stored
        self._files = {extent.pages.path: extent.pages for tensor in stored.values() for extent in tensor.extents}

    def _read(self, name: str, rows: slice, columns: slice) -> BlockMatrix:
        stored, kind = self._stored[name], self._by_name[name].float_type
        first, last, _ = rows.indices(stored.shape[0])
        if stored.float_type is kind and not stored.interleave and len(stored.extents) == 1:
            return BlockMatrix(stored.read(first, last, columns), kind)
        left, right, _ = columns.indices(stored.shape[1])
        out = np.empty((max(0, last - first), kind.row_bytes(right - left)), np.uint8)
        chunk_rows = max(1, _CHUNK_VALUES // max(1, right - left))
        for row in range(first, last, chunk_rows):
            end = min(row + chunk_rows, last)
            self._before_reading((end - row) * stored.float_type.row_bytes(right - left))
            data = stored.read(row, end, columns)
            out[row - first : end - first] = _converted(data, stored, kind)
        out.flags.writeable = False
        return BlockMatrix(out, kind)

    def in_file(self, name: str) -> tuple[str, int]:
        stored = self._stored[name]
        rows, columns = stored.shape
        return stored.float_type.name, rows * stored.float_type.row_bytes(columns)

    def _where(self, name: str) -> str:
        return self._stored[name].where

    def forget_pages(self) -> None:
        for file in self._files.values():
            file.forget_pages()

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def with_types(path: Path, spec: ModelSpec, stored: Mapping[str, StoredTensor], weights: FloatType | None) -> ModelSpec:
    """`spec` with the types in which tensors are read: `weights` for matrices, or their stored types.

    The embedding keeps its type, because only single rows of it are read. Norms, biases and routers are F32.
    Raises UsageError if the widths do not fit `weights`.
    """
    table = tensor_table(replace(spec, weight_type=FloatType.Q40))
    types = {tensor.name: stored[tensor.name].float_type for tensor in table if tensor.float_type is FloatType.Q40}
    weight_type = weights if weights is not None else Counter(types.values()).most_common(1)[0][0]
    spec = replace(spec, weight_type=weight_type)
    others = {"embedding": stored["embedding"].float_type}
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
            raise
        raise UsageError(f"{path}: the weights cannot be {weights.name}: {error}. Choose f16 or f32.") from error
    return spec


def check_shapes(spec: ModelSpec, stored: Mapping[str, StoredTensor], source: str) -> None:
    """Raise FormatError if a tensor has another shape than the numbers in the file `source` imply."""
    for tensor in tensor_table(spec):
        found, expected = stored[tensor.name].shape, tensor.shape(spec)
        if found != expected:
            raise FormatError(
                f"{stored[tensor.name].where} is {found[0]} x {found[1]}; by {source} it is "
                f"{expected[0]} x {expected[1]}. The files are damaged, or not of one model."
            )


def _converted(data: U8, stored: StoredTensor, kind: FloatType) -> U8:
    """Convert stored rows to `kind`. Raises FormatError for values that `kind` cannot hold."""
    if stored.float_type is kind:
        return data
    values = dequantize(data, stored.float_type)
    if kind is not FloatType.F32:  # F32 holds every F16 and BF16 exactly
        _check_values(values, stored, kind)
    return quantize(values, kind)


def _check_values(values: F32, stored: StoredTensor, kind: FloatType) -> None:
    largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))  # NaN if a value is
    if largest <= _LARGEST.get(kind, math.inf) and math.isfinite(largest):
        return
    if math.isfinite(largest):
        raise FormatError(
            f"{stored.where} has values up to {largest:g}, which {kind.name} cannot hold. Read the weights as f32."
        )
    raise FormatError(
        f"{stored.where} has values that are infinite or NaN, which {kind.name} cannot hold. "
        "It is damaged; copy or download it again."
    )
