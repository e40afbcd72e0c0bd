"""The safetensors container, memory-mapped: names, types, shapes and offsets, of one file or of a folder's shards.

Knows no model. Format: https://huggingface.co/docs/safetensors. FORMATS.md §5 says why the package safetensors is not
used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.files import MAX_JSON_BYTES, read_json
from dllama_zmq.formats.mapped import MappedFile, closed_on_error
from dllama_zmq.typed import typed_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_FILES = 512
"""Shards of one model. Each is a memory map, and a process may have a limited number of them."""
_VALUE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64, "F4": 4,
}  # fmt: skip
_Size = Annotated[int, Meta(ge=0, lt=1 << 62)]


class Entry(Struct, frozen=True):
    """A tensor of a file. Its values begin at `offset` of `pages`, and lie within the file."""

    pages: MappedFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def where(self) -> str:
        """File and name, as the beginning of an error."""
        return f"{self.pages.path}: tensor {self.name}"


class _Stored(Struct, frozen=True):
    """A tensor in the header; all None for `__metadata__`, which is ignored."""

    dtype: str | None = None
    shape: Annotated[list[_Size], Meta(max_length=8)] | None = None
    data_offsets: tuple[_Size, _Size] | None = None


class _Index(Struct, frozen=True):
    weight_map: dict[str, str]


def read_shards(folder: Path) -> dict[str, Entry]:
    """The tensors of a model's folder, by name: those of its index, else of `model.safetensors`, else of all files.

    An index is ignored if none of its files exists but `model.safetensors` does: it is left over from other weights.
    Raises FormatError if a shard is missing or damaged, or if two shards have the same tensor.
    """
    index, single = folder / INDEX, folder / SINGLE
    if index.exists():
        weight_map = read_json(index, _Index).weight_map
        if not single.exists() or any((folder / Path(name).name).exists() for name in set(weight_map.values())):
            return _indexed(folder, index, weight_map)
    paths = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    if not paths:
        raise _no_weights(folder)
    return _read_all(paths)


def _indexed(folder: Path, index: Path, weight_map: Mapping[str, str]) -> dict[str, Entry]:
    files = sorted(set(weight_map.values()))
    for name in files:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,250}", name):
            raise FormatError(f"{index}: {name[:80]!r} is not a plain file name. The index is damaged.")
        if not (folder / name).exists():
            raise FormatError(f"{index}: the shard {name} is not in the folder. Download the rest of the model.")
    entries = _read_all([folder / name for name in files])
    for tensor, name in weight_map.items():
        if tensor not in entries or entries[tensor].pages.path.name != name:
            raise FormatError(
                f"{index}: the tensor {tensor[:80]} is missing from {name}. "
                "The files are not of one model; download it again."
            )
    return entries


def _read_all(paths: list[Path]) -> dict[str, Entry]:
    if len(paths) > MAX_FILES:
        raise FormatError(f"{paths[0].parent}: {len(paths)} safetensors files; expected at most {MAX_FILES}.")
    entries: dict[str, Entry] = {}
    opened: list[MappedFile] = []
    with closed_on_error(opened):
        for path in paths:
            opened.append(MappedFile(path))
            for name, entry in _entries(opened[-1]).items():
                if name in entries:
                    raise FormatError(
                        f"{entry.where} is in {entries[name].pages.path.name} too. "
                        "A folder may have the files of one model only."
                    )
                entries[name] = entry
    return entries


def _entries(pages: MappedFile) -> dict[str, Entry]:
    path, head = pages.path, pages.view(0, min(pages.nbytes, 32)).tobytes()
    if len(head) < 8:
        raise FormatError(f"{path}: {pages.nbytes} bytes long; a safetensors file begins with 8 bytes of header size.")
    n_header = int.from_bytes(head[:8], "little")
    if n_header > MAX_JSON_BYTES:
        raise FormatError(
            f"{path}: offset 0: a header of {n_header} bytes; expected at most {MAX_JSON_BYTES}. "
            "This is not a safetensors file, or it is damaged."
        )
    data_at = 8 + n_header
    if data_at > pages.nbytes:
        raise FormatError(
            f"{path}: offset 0: a header of {n_header} bytes, but the file ends at {pages.nbytes}. "
            "It is cut short; download it again."
        )
    header = typed_json(pages.view(8, n_header).tobytes(), dict[str, _Stored], f"{path}: header")
    entries = {}
    extents = []
    while header:  # frees each entry at once: there may be tens of thousands
        name, stored = header.popitem()
        if name == "__metadata__":
            continue
        first, last = _extent(name, stored, pages.nbytes - data_at, f"{path}: tensor {name[:200]}")
        extents.append((first, last, name))
        entries[name] = Entry(pages, name, stored.dtype or "", tuple(stored.shape or ()), data_at + first)
    _check_cover(path, extents, data_at, pages.nbytes)
    return entries


def _extent(name: str, stored: _Stored, n_data: int, where: str) -> tuple[int, int]:
    """First and last byte of a tensor in the data. Raises FormatError if they do not fit its shape."""
    if len(name) > 512:
        raise FormatError(f"{where}...: a name of {len(name)} characters. The header is damaged.")
    if stored.dtype is None or stored.shape is None or stored.data_offsets is None:
        raise FormatError(f"{where}: has no dtype, shape or data_offsets in the header. It is damaged.")
    first, last = stored.data_offsets
    if not first <= last <= n_data:
        raise FormatError(
            f"{where}: bytes {first} to {last} of {n_data} bytes of data. The file is cut short, or damaged."
        )
    bits = _VALUE_BITS.get(stored.dtype)
    if bits is not None and math.prod(stored.shape) * bits != (last - first) * 8:
        raise FormatError(
            f"{where}: {stored.shape} {stored.dtype[:20]} takes {math.prod(stored.shape) * bits // 8} bytes, "
            f"but its offsets, {first} to {last}, have room for {last - first}. The header is damaged."
        )
    return first, last


def _check_cover(path: Path, extents: list[tuple[int, int, str]], data_at: int, file_bytes: int) -> None:
    """Raise FormatError unless the tensors cover every byte of the data once, as the format demands."""
    end, before = 0, "the header"
    for first, last, name in sorted(extents):
        if first < end:
            raise FormatError(
                f"{path}: offset {data_at + first}: the tensors {before} and {name} overlap. It is damaged."
            )
        if first > end:
            raise FormatError(
                f"{path}: offset {data_at + end}: {first - end} bytes between {before} and {name} belong to no tensor; "
                "the header is damaged, or names one tensor twice."
            )
        end, before = last, name
    if data_at + end != file_bytes:
        raise FormatError(
            f"{path}: offset {data_at + end}: {file_bytes - data_at - end} bytes after {before} belong to no tensor; "
            "the header is damaged, or names one tensor twice."
        )


def _no_weights(folder: Path) -> FormatError:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        return UnsupportedModel(
            f"{folder}: it has only PyTorch pickles (.bin), which this version does not read. "
            "Get the model's safetensors, or save it again with save_pretrained of a current transformers."
        )
    if any(folder.glob("*.safetensors.index.json")):
        return FormatError(f"{folder}: it has an index but no shard. Download the .safetensors files too.")
    return FormatError(f"{folder}: it has no .safetensors file. Download the weights too.")
