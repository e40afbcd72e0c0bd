"""`.m` model files: read by memory map, written one tensor at a time. See FORMATS.md §2. Knows no node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.files import replace_file
from dllama_zmq.formats.keyed_header import MAX_HEADER_BYTES
from dllama_zmq.formats.m_header import data_bytes, header_bytes, read_header
from dllama_zmq.formats.mapped import MappedFile, closed_on_error
from dllama_zmq.formats.model_file import ModelFile
from dllama_zmq.formats.stored import Extent, StoredTensor
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import ModelSpec

_CHUNK_BYTES = 1 << 24


def open_m(path: str | Path) -> ModelFile:
    """Map a `.m` file and check its header and length. Raises FormatError or UnsupportedModel."""
    pages = MappedFile(Path(path))
    with closed_on_error([pages]):
        head = pages.view(0, min(pages.nbytes, MAX_HEADER_BYTES)).tobytes()
        spec, tensors_at = read_header(head, pages.nbytes, pages.path)
        _check_length(pages.path, spec, tensors_at, pages.nbytes)
    stored = {}
    for tensor in tensor_table(spec):
        extent = Extent(pages, tensors_at, *tensor.shape(spec), tensor.float_type)
        stored[tensor.name] = StoredTensor(f"{pages.path}: tensor {tensor.name}", (extent,))
        tensors_at += tensor.nbytes(spec)
    return ModelFile(pages.path, spec, stored)


def write_m(
    path: str | Path, spec: ModelSpec, tensors: Mapping[str, BlockMatrix] | Iterable[tuple[str, BlockMatrix]]
) -> None:
    """Write a `.m` file, complete or not at all.

    Pairs of name and tensor must come in file order, and only one is in memory at a time; a mapping may have any order.
    Raises FormatError if a tensor is missing, has another shape or type, or is out of order.
    """
    path = Path(path)
    expected = tensor_table(spec)
    header = header_bytes(spec)
    if isinstance(tensors, Mapping):
        order = {tensor.name: i for i, tensor in enumerate(expected)}
        tensors = sorted(tensors.items(), key=lambda item: order.get(item[0], len(order)))
    pairs = iter(tensors)
    with replace_file(path) as file:
        file.write(header)
        for want in expected:
            name, matrix = next(pairs, (None, None))
            if matrix is None or name != want.name:
                found = "there are no more tensors" if matrix is None else f"{name} came"
                raise FormatError(f"{path}: expected {want.name} next, but {found}. Nothing was written.")
            if (matrix.shape, matrix.float_type) != (want.shape(spec), want.float_type):
                raise FormatError(
                    f"{path}: {name} is {matrix.shape} {matrix.float_type.name}; "
                    f"expected {want.shape(spec)} {want.float_type.name}. Nothing was written."
                )
            chunk_rows = max(1, _CHUNK_BYTES // max(1, matrix.data.shape[1]))
            for row in range(0, matrix.rows, chunk_rows):
                file.write(np.ascontiguousarray(matrix.data[row : row + chunk_rows]).data)
        extra = next(pairs, None)
        if extra is not None:
            raise FormatError(
                f"{path}: {extra[0]} comes after the last tensor, or is of another model. Nothing was written."
            )


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
