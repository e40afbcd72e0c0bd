"""A GGUF file as its container says: metadata and the places of tensors, all bounds checked. See FORMATS.md §4.

Knows no model. Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.gguf.head import OTHER_TYPES, TYPE_NAMES, TYPES, ArrayPlace, Head, Tensor
from dllama_zmq.formats.mapped import MappedFile


class Container:
    """One mapped file. Raises FormatError where it is damaged, UnsupportedModel for versions and types of others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pages = MappedFile(path)
        try:
            self._head = Head(self.pages)
            n_tensors, n_pairs = self._head.counts()
            self.metadata = self._head.pairs(n_pairs)
            self.tensors = self._tensors(n_tensors)
        except BaseException:
            self.pages.close()
            raise

    def array(self, key: str) -> list[Any]:
        """The items of an array of the metadata. Raises FormatError where a string is not UTF-8."""
        return self._head.array(key, self.metadata[key])

    def plain_metadata(self, lists: bool) -> dict[str, Any]:
        """Every pair as a plain value; arrays as lists, or left out."""
        return {
            key: self.array(key) if isinstance(value, ArrayPlace) else value
            for key, value in self.metadata.items()
            if lists or not isinstance(value, ArrayPlace)
        }

    def _tensors(self, count: int) -> dict[str, Tensor]:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise FormatError(
                f"{self.path}: general.alignment is {alignment!r}; expected a power of two. The file is damaged."
            )
        tensors: dict[str, Tensor] = {}
        for tensor in self._head.tensors(count):
            if tensor.name in tensors:
                raise FormatError(
                    f"{self.path}: tensor {tensor.name} is there twice; expected each name once. The file is damaged."
                )
            tensors[tensor.name] = tensor
        data_at = -(-self._head.at // alignment) * alignment
        placed = {
            name: Tensor(name, t.shape, t.stored, self._offset(t, data_at, alignment)) for name, t in tensors.items()
        }
        for before, after in pairwise(sorted(placed.values(), key=lambda tensor: tensor.offset)):
            if before.offset + before.nbytes > after.offset:
                raise FormatError(
                    f"{self.path}: offset {after.offset}: tensor {after.name} begins before {before.name} ends, at "
                    f"{before.offset + before.nbytes}; tensors may not overlap. The file is damaged."
                )
        return placed

    def _offset(self, tensor: Tensor, data_at: int, alignment: int) -> int:
        """Where the tensor begins in the file, checked to be there whole."""
        if tensor.offset % alignment:
            raise FormatError(
                f"{self.path}: tensor {tensor.name} begins {tensor.offset} bytes into the data; expected a multiple of "
                f"the alignment, {alignment}. The file is damaged."
            )
        offset = data_at + tensor.offset
        if offset + tensor.nbytes > self.pages.nbytes:
            raise FormatError(
                f"{self.path}: offset {offset}: tensor {tensor.name} takes {tensor.nbytes} bytes, but the file ends at "
                f"{self.pages.nbytes}. It is cut short; copy or download it again."
            )
        return offset


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a file, whether or not it can be run: values of tensors by the names of their types."""

    architecture: str
    n_tensors: int
    n_values: dict[str, int]


def contents(path: Path) -> Contents:
    """What the head of a GGUF file says. Raises FormatError where it is damaged."""
    pages = MappedFile(path)
    try:
        head = Head(pages)
        n_tensors, n_pairs = head.counts()
        architecture = head.pairs(n_pairs).get("general.architecture")
        values: dict[str, int] = {}
        for entry in head.entries(n_tensors):
            known = TYPES.get(entry.type_number)
            name = OTHER_TYPES.get(entry.type_number, f"type {entry.type_number}") if known is None else known.name
            name = TYPE_NAMES.get(name, name)
            values[name] = values.get(name, 0) + math.prod(entry.shape)
    finally:
        pages.close()
    return Contents(architecture if isinstance(architecture, str) else "", n_tensors, values)
