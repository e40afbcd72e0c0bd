"""Converts any readable model to a `.m` file, a few rows at a time. Knows no source format."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats.files import replace_file
from dllama_zmq.formats.m_header import data_bytes, header_bytes
from dllama_zmq.formats.m_keys import M_TYPES
from dllama_zmq.formats.model_file import ModelFile
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec

_CHUNK_VALUES = 1 << 22


def m_spec(spec: ModelSpec, weights: FloatType | None) -> ModelSpec:
    """`spec` with all weights in one type: `weights`, else their own if a `.m` file can have it, else Q40.

    Raises FormatError if the model's widths do not fit that type.
    """
    if weights is None:
        weights = spec.weight_type if spec.weight_type in M_TYPES and not _mixed(spec) else FloatType.Q40
    spec = replace(spec, weight_type=weights, stored=())
    spec.check()
    return spec


def convert_model(
    source: ModelFile, path: Path, weights: FloatType | None, on_progress: Callable[[int, int], None]
) -> ModelSpec:
    """Write `source` to `path` as a `.m` file, complete or not at all, and return its spec.

    on_progress: called with bytes written and total bytes. Raises FormatError if a `.m` file cannot hold the model,
    UsageError if the disk has no room.
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
    """The rows of a tensor in the type of `tensor`, a few at a time."""
    rows, columns = tensor.shape(spec)
    chunk_rows = max(1, _CHUNK_VALUES // columns)
    for row in range(0, rows, chunk_rows):
        chunk = source.read(tensor.name, slice(row, min(row + chunk_rows, rows)))
        if chunk.float_type is not tensor.float_type:
            chunk = BlockMatrix.from_array(chunk.dequantize(), tensor.float_type)
        yield np.ascontiguousarray(chunk.data).data


def _mixed(spec: ModelSpec) -> bool:
    """Whether the weights are of several types. Tensors that are F32 in any `.m` file do not count."""
    table = {tensor.name: tensor for tensor in tensor_table(replace(spec, stored=()))}
    return any(table[name].float_type is not FloatType.F32 for name, _ in spec.stored)


def _check_room(path: Path, n_bytes: int) -> None:
    folder = path.absolute().parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}. Check its folder, {folder}.") from error
    if n_bytes > free:
        raise UsageError(
            f"{path} takes {n_bytes >> 20} MB, but its disk has {free >> 20} MB free. "
            "Make room, or choose smaller --weights."
        )
