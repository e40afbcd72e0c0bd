"""The GGUF container: metadata and the locations of tensors, with all bounds checked. See FORMATS.md §4.

Knows no model. Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.gguf.head import ArrayLocation, Head, Tensor
from dllama_zmq.formats.mapped import MappedFile, closed_on_error


class Container:
    """A mapped file. Raises FormatError if it is damaged, UnsupportedModel for an unknown version or type."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pages = MappedFile(path)
        with closed_on_error([self.pages]):
            self._head = Head(self.pages)
            n_tensors, n_pairs = self._head.counts()
            self.metadata = self._head.pairs(n_pairs)
            self.tensors = self._tensors(n_tensors)

    def array(self, key: str) -> list[Any]:
        """The items of an array in the metadata. Raises FormatError if a string is not UTF-8."""
        return self._head.array(key, self.metadata[key])

    def tokenizer(self) -> bytes:
        """The file's tokenizer as a GGUF file of its own, without tensors."""
        return self._head.only("tokenizer.")

    def plain_metadata(self, lists: bool) -> dict[str, Any]:
        """The metadata as plain values; arrays become lists, or are left out without `lists`."""
        return {
            key: self.array(key) if isinstance(value, ArrayLocation) else value
            for key, value in self.metadata.items()
            if lists or not isinstance(value, ArrayLocation)
        }

    def _tensors(self, count: int) -> dict[str, Tensor]:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise FormatError(
                f"{self.path}: general.alignment is {alignment!r}; expected a power of two. The file is damaged."
            )
        tensors: dict[str, Tensor] = {}
        for tensor in self._head.tensors(count):
            self._head.check_type(tensor)
            if tensor.name in tensors:
                raise FormatError(
                    f"{self.path}: tensor {tensor.name} occurs twice; expected each name once. The file is damaged."
                )
            tensors[tensor.name] = tensor
        data_at = -(-self._head.at // alignment) * alignment
        placed = {name: replace(t, offset=self._offset(t, data_at, alignment)) for name, t in tensors.items()}
        self.pages.check_apart((t.offset, t.nbytes, f"tensor {t.name}") for t in placed.values())
        return placed

    def _offset(self, tensor: Tensor, data_at: int, alignment: int) -> int:
        """The offset of the tensor in the file. Raises FormatError if it does not fit into the file."""
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


def contents(path: Path) -> tuple[str, int, dict[str, int]]:
    """The architecture, number of tensors, and values by ggml's type names, of any GGUF file, from its head.

    Raises FormatError if the head is damaged.
    """
    pages = MappedFile(path)
    try:
        head = Head(pages)
        n_tensors, n_pairs = head.counts()
        architecture = head.pairs(n_pairs).get("general.architecture")
        values: Counter[str] = Counter()
        for tensor in head.tensors(n_tensors):
            values[tensor.type_name] += math.prod(tensor.shape)
    finally:
        pages.close()
    return architecture if isinstance(architecture, str) else "", n_tensors, values
