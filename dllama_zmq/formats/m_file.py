"""`.m` model files: read by memory map, written one tensor at a time: see FORMATS.md §2. Knows no node."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats.files import open_regular, replace_file
from dllama_zmq.formats.m_header import MAX_HEADER_BYTES, data_bytes, header_bytes, read_header
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import ModelSpec, TensorSpec

_COPY_BYTES = 1 << 24


class ModelFile:
    """A model file in the address space: tensors are read-only views of the map, and nothing is copied.

    `tensors` are in file order; `nbytes` is what they take together, without the header.
    """

    def __init__(self, path: Path, spec: ModelSpec, tensors_at: int, pages: mmap.mmap) -> None:
        self.path = path
        self.spec = spec
        self.tensors: list[TensorSpec] = tensor_table(spec)
        self.nbytes = len(pages) - tensors_at
        self._pages: mmap.mmap | None = pages
        self._at: dict[str, tuple[TensorSpec, int]] = {}
        offset = tensors_at
        for tensor in self.tensors:
            self._at[tensor.name] = (tensor, offset)
            offset += tensor.nbytes(spec)

    def tensor(self, name: str) -> BlockMatrix:
        """The tensor as a read-only view of the map; a vector is one row. The view outlives `close`."""
        if self._pages is None:
            raise UsageError(f"{self.path} is closed; open it again to read {name}.")
        tensor, offset = self._at[name]
        data = np.frombuffer(self._pages, np.uint8, tensor.nbytes(self.spec), offset)
        return BlockMatrix(data.reshape(tensor.shape(self.spec)[0], -1), tensor.float_type)

    def forget_pages(self) -> None:
        """Take the file's pages out of this process's memory; they come back when they are read again."""
        if self._pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the map. It stays for as long as a view of it lives."""
        pages, self._pages = self._pages, None
        if pages is not None:
            with suppress(BufferError):  # views live: the last of them takes the map with it
                pages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_m(path: str | Path) -> ModelFile:
    """Map a `.m` file whose header and length have been checked. Raises FormatError or UnsupportedModel."""
    path = Path(path)
    with open_regular(path) as (file, file_bytes):
        spec, tensors_at = read_header(file.read(MAX_HEADER_BYTES), file_bytes, path)
        _check_length(path, spec, tensors_at, file_bytes)
        try:
            pages = mmap.mmap(file.fileno(), file_bytes, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FormatError(
                f"{path}: its {file_bytes} bytes cannot be mapped: {error.strerror}. "
                f"Check the limit of address space (ulimit -v), or copy it to a local disk."
            ) from error
    return ModelFile(path, spec, tensors_at, pages)


def write_m(
    path: str | Path, spec: ModelSpec, tensors: Mapping[str, BlockMatrix] | Iterable[tuple[str, BlockMatrix]]
) -> None:
    """Write a `.m` file; it appears under its name whole or not at all.

    Pairs of name and tensor must come in file order and are held one at a time; a mapping may have any order.
    Raises FormatError where a tensor is missing, of another shape or type, or out of order.
    """
    path = Path(path)
    expected = tensor_table(spec)
    header = header_bytes(spec)
    pairs = _in_file_order(path, expected, tensors) if isinstance(tensors, Mapping) else iter(tensors)
    with replace_file(path) as file:
        file.write(header)
        for want in expected:
            name, matrix = next(pairs, (None, None))
            if matrix is None or name != want.name:
                found = "there are no more tensors" if matrix is None else f"{name} came"
                raise FormatError(f"{path}: {want.name} was to be written next, but {found}. Nothing was written.")
            if (matrix.shape, matrix.float_type) != (want.shape(spec), want.float_type):
                raise FormatError(
                    f"{path}: {name} is {matrix.shape} {matrix.float_type.name}; "
                    f"expected {want.shape(spec)} {want.float_type.name}. Nothing was written."
                )
            rows_at_once = max(1, _COPY_BYTES // max(1, matrix.data.shape[1]))
            for row in range(0, matrix.rows, rows_at_once):
                file.write(np.ascontiguousarray(matrix.data[row : row + rows_at_once]).data)
        extra = next(pairs, None)
        if extra is not None:
            raise FormatError(f"{path}: {extra[0]} comes after the last tensor of this model. Nothing was written.")


def _in_file_order(
    path: Path, expected: list[TensorSpec], tensors: Mapping[str, BlockMatrix]
) -> Iterator[tuple[str, BlockMatrix]]:
    unknown = sorted(tensors.keys() - {tensor.name for tensor in expected})
    if unknown:
        raise FormatError(f"{path}: {unknown[0]} is no tensor of this model. Nothing was written.")
    for tensor in expected:
        if tensor.name in tensors:
            yield tensor.name, tensors[tensor.name]


def _check_length(path: Path, spec: ModelSpec, tensors_at: int, file_bytes: int) -> None:
    expected = tensors_at + data_bytes(spec)
    if file_bytes == expected:
        return
    if file_bytes > expected:
        last = tensor_table(spec)[-1].name
        raise FormatError(
            f"{path}: {file_bytes} bytes long, but its last tensor ({last}) ends at offset {expected}: "
            f"{file_bytes - expected} bytes too many. The file is damaged, or its header is of another model."
        )
    offset = tensors_at
    for tensor in tensor_table(spec):
        nbytes = tensor.nbytes(spec)
        if offset + nbytes > file_bytes:
            raise FormatError(
                f"{path}: offset {offset}: {tensor.name} takes {nbytes} bytes, but {file_bytes - offset} are left. "
                f"The file is {file_bytes} bytes long; expected {expected}. Copy or convert it again."
            )
        offset += nbytes
