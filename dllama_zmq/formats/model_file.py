"""An open model of any format: a spec, and any slice of any tensor. Knows no format."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import msgspec
import numpy as np

from dllama_zmq.formats.stored import StoredTensor
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import U8, BlockMatrix, Later
from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec

ALL = slice(None)
_FORGET_BYTES = 1 << 26
"""About this many bytes of a file stay in this process's memory while it is read from front to back."""
_CHUNK_VALUES = 1 << 18
"""Values converted at a time: 1 MB of f32, so that the temporaries stay in a core's cache."""


class ModelFile:
    """An open model. `read` gives each tensor in the type that `spec` names, whatever its type in the file.

    `tensors` are in the order of the model's table; `nbytes` is their total size as read. `notes` are warnings for the
    user. type_names: the format's names of types that have other names here.
    """

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        stored: Mapping[str, StoredTensor],
        type_names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self.spec = spec
        self.tensors: list[TensorSpec] = tensor_table(spec)
        self.nbytes = sum(tensor.nbytes(spec) for tensor in self.tensors)
        self.notes: list[str] = []
        self._types = {tensor.name: tensor.float_type for tensor in self.tensors}
        self._stored, self._type_names = stored, type_names
        self._files = {extent.pages.path: extent.pages for tensor in stored.values() for extent in tensor.extents}
        self._read_bytes = 0

    @property
    def paths(self) -> list[Path]:
        """The files that the weights are in."""
        return list(self._files)

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> BlockMatrix:
        """A slice of a tensor: a read-only view of the file if its bytes need no conversion, else an array.

        A vector is one row. Column bounds must be multiples of the type's `cut_values`.

        Raises UsageError after `close`, FormatError for values that are infinite or NaN, which would make a model's
        answers nonsense.
        """
        matrix = self.read_unchecked(name, rows, columns)
        matrix.check()
        return replace(matrix, unchecked="")

    def read_unchecked(self, name: str, rows: slice = ALL, columns: slice = ALL) -> BlockMatrix:
        """As `read`, for those who go over all values themselves and look at them then: see `BlockMatrix.unchecked`."""
        stored = self._stored[name]
        rows, columns = (slice(*s.indices(n)[:2]) for s, n in zip((rows, columns), stored.shape, strict=True))
        return replace(
            self._read(stored, self._types[name], rows, columns),
            unchecked=f"{stored.where} has values that are infinite or NaN. "
            "The file is damaged; copy or download it again.",
            source=self._source(name, rows, columns),
        )

    def _source(self, name: str, rows: slice, columns: slice) -> str:
        """`BlockMatrix.source` of a slice of a tensor."""
        if not self.identity:
            return ""
        region = f"{rows.start}:{rows.stop},{columns.start}:{columns.stop}"
        return f"{self.identity} {name} {self._types[name].name} {region}"

    def _read(self, stored: StoredTensor, kind: FloatType, rows: slice, columns: slice) -> BlockMatrix:
        n_rows, whole = max(0, rows.stop - rows.start), kind.whole_blocks(columns)
        row_bytes = kind.row_bytes(whole.stop - whole.start)
        if stored.is_view(kind):
            self._before_reading(n_rows * row_bytes)
            return BlockMatrix.of_columns(
                stored.read(rows.start, rows.stop, columns.start, columns.stop, kind), kind, columns
            )
        later = Later((n_rows, row_bytes), lambda: self._converted(stored, kind, rows, columns, (n_rows, row_bytes)))
        return BlockMatrix.of_columns(later, kind, columns)

    def _converted(
        self, stored: StoredTensor, kind: FloatType, rows: slice, columns: slice, shape: tuple[int, int]
    ) -> U8:
        out = np.empty(shape, np.uint8)
        first, last, left, right = rows.start, rows.stop, columns.start, columns.stop
        block = stored.stored.block_values
        chunk_rows = max(1, _CHUNK_VALUES // max(block, right - left))
        for row in range(first, last, chunk_rows):
            end = min(row + chunk_rows, last)
            self._before_reading((end - row) * stored.stored.row_bytes(-(-(right - left) // block) * block))
            out[row - first : end - first] = stored.read(row, end, left, right, kind)
        out.flags.writeable = False
        return out

    def in_file(self, name: str) -> tuple[str, int]:
        """The tensor's type in the file, by the format's name, and its bytes in the file."""
        stored = self._stored[name]
        return self._type_names.get(stored.stored.name, stored.stored.name), stored.nbytes

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding: one tensor in the file, which counts twice in `nbytes`."""
        return self._stored["head"].extents == self._stored["embedding"].extents

    @property
    def n_params(self) -> int:
        """Numbers in the file. A head that is the embedding is not counted again."""
        own = [tensor for tensor in self.tensors if tensor.name != "head" or not self.is_tied]
        return sum(math.prod(tensor.shape(self.spec)) for tensor in own)

    def _before_reading(self, n_bytes: int) -> None:
        """Release the pages read before if there are many."""
        if self._read_bytes > _FORGET_BYTES:
            self.forget_pages()
            self._read_bytes = 0
        self._read_bytes += n_bytes

    def stamps(self) -> list[tuple[bytes, tuple[int, ...]]]:
        """The path of each file, as bytes that are equal in any locale, and its stamp.

        At least one number of the stamp differs if the file was changed after it was opened.
        """
        return sorted((os.fsencode(path), file.stamp) for path, file in self._files.items())

    @cached_property
    def identity(self) -> str:
        """The SHA-256 of all that what `read` returns depends on: files, spec, and the code that reads them.

        Empty for a model without files.
        """
        stamps = self.stamps()
        content = msgspec.json.encode([stamps, self.spec, _code()])
        return hashlib.sha256(content).hexdigest() if stamps else ""

    def forget_pages(self) -> None:
        """Release the files' pages from this process's memory; reading maps them again."""
        for file in self._files.values():
            file.forget_pages()

    def close(self) -> None:
        """Close the files. Views of them stay valid."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@cache
def _code() -> str:
    """A hash of the code that reads tensors: what is kept of them is of no use once they are read as other bytes."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for source in sorted(source for folder in ("formats", "quants") for source in package.glob(f"{folder}/**/*.py")):
        digest.update(source.read_bytes() + b"\0")
    return digest.hexdigest()
