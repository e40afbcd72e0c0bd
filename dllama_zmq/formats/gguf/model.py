"""Models in GGUF files, memory-mapped; tensors of this package's types are views. See FORMATS.md §4."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.gguf.container import Container
from dllama_zmq.formats.gguf.head import TYPE_NAMES
from dllama_zmq.formats.gguf.names import ROPE_FACTORS, Directory, TensorLocation, half_layout_rows, type_as_read
from dllama_zmq.formats.gguf.spec import check_architecture, read_spec
from dllama_zmq.formats.model_file import ALL, ModelFile
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import F32, U8, BlockMatrix, quantize
from dllama_zmq.quants.k_quants import SourceType
from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec

_CHUNK_VALUES = 1 << 18
"""Values converted at a time, which bounds the memory beside the result."""
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.DOTALL | re.IGNORECASE)
_PERMUTED = re.compile(r"layers\.\d+\.attention\.[qk]")
_MAX_PARTS = 1000


class GGUFFile(ModelFile):
    """A mapped GGUF model with all its parts. Made by `open_gguf`."""

    def __init__(
        self, path: Path, spec: ModelSpec, parts: Sequence[Container], locations: dict[str, TensorLocation]
    ) -> None:
        super().__init__(path, spec)
        self._parts = parts
        self._locations = locations
        self._in_pairs = spec.arch == "mixtral"  # its q and k are interleaved in GGUF files, but in half layout here

    def _read(self, name: str, rows: slice, columns: slice) -> BlockMatrix:
        location, as_read = self._locations[name], self._by_name[name].float_type
        first, last, _ = rows.indices(location.n_rows)
        raw = self._raw(location, first, last, _PERMUTED.fullmatch(name) is not None)
        stored = location.tensor.stored
        if isinstance(stored, FloatType):
            return BlockMatrix(raw, stored).cut(ALL, columns)
        first, last, _ = columns.indices(location.tensor.shape[-1])
        return BlockMatrix(_converted(raw, stored, as_read, first, last), as_read)

    def in_file(self, name: str) -> tuple[str, int]:
        location = self._locations[name]
        stored = location.tensor.stored
        return TYPE_NAMES.get(stored.name, stored.name), location.n_rows * location.tensor.row_bytes

    def _where(self, name: str) -> str:
        location = self._locations[name]
        return f"{self._parts[location.part].path}: tensor {location.tensor.name}"

    def forget_pages(self) -> None:
        for part in self._parts:
            part.pages.forget_pages()

    def close(self) -> None:
        for part in self._parts:
            part.pages.close()

    def _raw(self, location: TensorLocation, first: int, last: int, permuted: bool) -> U8:
        """Stored rows (last - first, row_bytes), in the model's order."""
        tensor, row_bytes = location.tensor, location.tensor.row_bytes
        self._before_reading((last - first) * row_bytes)
        data = self._parts[location.part].pages.view(
            tensor.offset + location.first_row * row_bytes, location.n_rows * row_bytes
        )
        data = data.reshape(location.n_rows, row_bytes)
        if permuted and self._in_pairs:
            return data[half_layout_rows(range(first, last), self.spec.head_dim)]
        return data[first:last]


def open_gguf(path: str | Path) -> GGUFFile:
    """Map and check a GGUF model; `path` may be any of its files. Raises FormatError or UnsupportedModel."""
    path = Path(path)
    with ExitStack() as on_error:
        parts = _open_parts(path, on_error)
        directory = Directory(str(path), [part.tensors for part in parts])
        _check_count(parts[0], len(directory), len(parts))
        check_architecture(parts[0])  # first, because another kind of model would seem to lack tensors
        vocabulary = directory.find("embedding").n_rows
        spec = read_spec(parts[0], vocabulary, _rope_factors(parts, directory))
        if spec.arch == "qwen2" and not directory.has_biases:
            spec = replace(spec, arch="llama")  # without biases it differs only in RoPE's layout, which spec.rope has
        weights = type_as_read(directory.common_type(FloatType.F32), exactly=False)
        table = tensor_table(replace(spec, weight_type=weights))
        locations = {tensor.name: _checked(path, tensor, spec, directory.find(tensor.name)) for tensor in table}
        directory.check_all_used(locations.values())
        kinds = {
            name: type_as_read(location.tensor.stored, _exactly(name, location)) for name, location in locations.items()
        }
        stored = tuple((t.name, kinds[t.name]) for t in table if kinds[t.name] is not t.float_type)
        spec = replace(spec, weight_type=weights, stored=stored)
        try:
            spec.check()
        except FormatError as error:
            raise FormatError(f"{path}: {error}. The metadata cannot be that of a model.") from error
        file = GGUFFile(path, spec, parts, locations)
        on_error.pop_all()
    return file


def gguf_metadata(path: str | Path, lists: bool = True) -> dict[str, Any]:
    """The metadata of a GGUF file as plain values; without `lists`, without arrays. Of a split model, its first file's.

    Raises FormatError or UnsupportedModel.
    """
    with ExitStack() as files:
        return _open_parts(Path(path), files)[0].plain_metadata(lists)


def gguf_tokenizer(path: Path) -> bytes:
    """The tokenizer of a GGUF model as a GGUF file of its own. Raises FormatError or UnsupportedModel."""
    with ExitStack() as files:
        return _open_parts(path, files)[0].tokenizer()


def _open_parts(path: Path, files: ExitStack) -> list[Container]:
    """Open all files of the model of `path`, in order; `files` closes them."""
    given = _opened(path, files)
    count = _whole(given, "split.count", 1)
    if count <= 1:
        return [given]
    name = _SPLIT_NAME.fullmatch(path.name)
    if count > _MAX_PARTS or name is None or int(name[3]) != count:
        raise FormatError(
            f"{path}: it is one of {count} files of a model, which are found by their names; expected NAME-00001-of-"
            f"{count:05}.gguf and so on, at most {_MAX_PARTS}. Restore its original name."
        )
    paths = [path.with_name(f"{name[1]}-{i + 1:05}-of-{count:05}{name[4]}") for i in range(count)]
    for missing in (p for p in paths if not p.exists()):
        raise FormatError(f"{missing} is missing, one of the {count} files of this model. Download it too.")
    parts = [given if p == path else _opened(p, files) for p in paths]
    for i, part in enumerate(parts):
        number, total = _whole(part, "split.no", 0), _whole(part, "split.count", 1)
        if (number, total) != (i, count):
            raise FormatError(
                f"{part.path}: its metadata says part {number + 1} of {total}, but its name says {i + 1} of {count}. "
                "Download the files again."
            )
    return parts


def _opened(path: Path, files: ExitStack) -> Container:
    container = Container(path)
    files.callback(container.pages.close)
    return container


def _whole(file: Container, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if not isinstance(value, int):
        raise FormatError(f"{file.path}: {key} is not a whole number. The file is damaged; download it again.")
    return value


def _check_count(first: Container, found: int, n_parts: int) -> None:
    expected = _whole(first, "split.tensors.count", found)
    if n_parts > 1 and found != expected:
        raise FormatError(
            f"{first.path}: the {n_parts} files have {found} tensors together; expected {expected} "
            "(split.tensors.count). Get all parts of the same model."
        )


def _checked(path: Path, tensor: TensorSpec, spec: ModelSpec, location: TensorLocation) -> TensorLocation:
    found, expected = location.shape, tensor.shape(spec)
    if found != expected:
        raise FormatError(
            f"{path}: tensor {location.tensor.name} has {found[0]} rows of {found[1]} values for {tensor.name}; "
            f"by the metadata it has {expected[0]} of {expected[1]}. The file is damaged."
        )
    return location


def _exactly(name: str, location: TensorLocation) -> bool:
    """Whether a tensor of another type is read as F32, without rounding: that is cheap for these."""
    return name == "embedding" or name.endswith(".router") or location.is_vector


def _rope_factors(parts: Sequence[Container], directory: Directory) -> F32 | None:
    location = directory.get(ROPE_FACTORS)
    if location is None:
        return None
    if location.tensor.stored is not FloatType.F32 or not location.is_vector or location.shape[1] > 1 << 14:
        raise FormatError(
            f"{parts[0].path}: {ROPE_FACTORS} is {location.shape}, {location.tensor.stored.name}; expected F32."
        )
    values: F32 = parts[location.part].pages.view(location.tensor.offset, location.tensor.nbytes).view("<f4").copy()
    return values


def _converted(raw: U8, stored: SourceType, as_read: FloatType, first: int, last: int) -> U8:
    """Columns `first` to `last` of rows of `stored`, converted to `as_read`."""
    block = stored.block_values
    raw = raw[:, stored.row_bytes(first // block * block) : stored.row_bytes(-(-last // block) * block)]
    out = np.empty((len(raw), as_read.row_bytes(last - first)), np.uint8)
    skip = as_read.row_bytes(first % block)
    chunk_rows = max(1, _CHUNK_VALUES // max(block, last - first))
    for row in range(0, len(raw), chunk_rows):
        chunk = np.ascontiguousarray(raw[row : row + chunk_rows])
        made = quantize(stored.dequantize(chunk), as_read) if as_read is FloatType.F32 else stored.convert(chunk)
        out[row : row + chunk_rows] = made[:, skip : skip + out.shape[1]]
    return out
