"""Any model that can be read, as a `.m` file: tensor after tensor, a few rows at a time. Knows no source format."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats.files import replace_file
from dllama_zmq.formats.m_header import data_bytes, header_bytes
from dllama_zmq.formats.m_keys import M_TYPES
from dllama_zmq.formats.model_file import ModelFile
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec

_VALUES_AT_ONCE = 1 << 22


def m_spec(spec: ModelSpec, weights: FloatType | None) -> ModelSpec:
    """The numbers of the `.m` file that holds `spec` with all weights of one type: as given, else as they are where a
    `.m` file has that type, else Q40.

    Raises FormatError where the numbers fit no model with that type.
    """
    if weights is None:
        weights = spec.weight_type if spec.weight_type in M_TYPES and not _mixed(spec) else FloatType.Q40
    spec = replace(spec, weight_type=weights, stored=())
    spec.check()
    return spec


def convert_model(
    source: ModelFile, path: Path, weights: FloatType | None, on_progress: Callable[[int, int], None]
) -> ModelSpec:
    """Write `source` to `path` as a `.m` file; it appears under its name whole or not at all. Returns its numbers.

    on_progress: bytes written, and bytes in all. Raises FormatError where a `.m` file cannot hold the model, UsageError
    where the disk has no room.
    """
    try:
        spec = m_spec(source.spec, weights)
    except FormatError as error:
        raise FormatError(f"{source.path}: {error}. Choose --weights f16 or f32.") from error
    header = header_bytes(spec)
    total = len(header) + data_bytes(spec)
    _check_room(path, total)
    with replace_file(path) as file:
        written = file.write(header)
        for tensor in tensor_table(spec):
            for rows in _rows(source, tensor, spec):
                written += file.write(rows)
                on_progress(written, total)
            source.forget_pages()
    return spec


def _rows(source: ModelFile, tensor: TensorSpec, spec: ModelSpec) -> Iterator[memoryview]:
    """A tensor in the type that `tensor` says, a few rows at a time."""
    rows, columns = tensor.shape(spec)
    rows_at_once = max(1, _VALUES_AT_ONCE // columns)
    for row in range(0, rows, rows_at_once):
        part = source.read(tensor.name, slice(row, min(row + rows_at_once, rows)))
        if part.float_type is not tensor.float_type:
            part = BlockMatrix.from_array(part.dequantize(), tensor.float_type)
        yield np.ascontiguousarray(part.data).data


def _mixed(spec: ModelSpec) -> bool:
    """Whether tensors are of several types; what every `.m` has in F32 may be of any."""
    table = {tensor.name: tensor for tensor in tensor_table(replace(spec, stored=()))}
    return any(table[name].float_type is not FloatType.F32 for name, _ in spec.stored)


def _check_room(path: Path, n_bytes: int) -> None:
    try:
        free = shutil.disk_usage(path.absolute().parent).free
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}. Check its folder.") from error
    if n_bytes > free:
        raise UsageError(
            f"{path} takes {n_bytes >> 20} MB, but its disk has {free >> 20} MB free. "
            "Make room, or choose smaller --weights."
        )
