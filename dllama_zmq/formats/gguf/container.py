"""The GGUF container: metadata and descriptions of tensors, read from front to back. See FORMATS.md §4.

Knows no model. No number in the file decides how much is allocated; the limits below bound what is read.
Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.kinds import GGUF_MAGIC
from dllama_zmq.formats.mapped import MappedFile, closed_on_error
from dllama_zmq.quants import StoredType
from dllama_zmq.quants.low_bits import IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, TQ1_0, TQ2_0
from dllama_zmq.spec import FloatType

MAX_METADATA_BYTES = 1 << 26
MAX_PAIRS = 1 << 14
MAX_TENSORS = 1 << 16
MAX_ITEMS = 1 << 21
"""Items of all arrays together. Tokens, scores, types and merges of the largest vocabularies are about 10^6."""
MAX_NAME_BYTES = 1 << 10

TYPES: dict[int, StoredType] = {
    0: FloatType.F32, 1: FloatType.F16, 2: FloatType.Q40, 3: FloatType.Q41, 6: FloatType.Q50,
    7: FloatType.Q51, 8: FloatType.Q80, 10: Q2_K, 11: Q3_K, 12: FloatType.Q4_K, 13: FloatType.Q5_K, 14: FloatType.Q6_K,
    20: IQ4_NL, 23: IQ4_XS, 30: FloatType.BF16, 34: TQ1_0, 35: TQ2_0, 39: MXFP4,
}  # fmt: skip
OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
TYPE_NAMES = {"Q40": "Q4_0", "Q41": "Q4_1", "Q50": "Q5_0", "Q51": "Q5_1", "Q80": "Q8_0"}
"""ggml's names of types that have other names here."""
_NUMBERS = dict(zip([0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12], "BbHhIif?Qqd", strict=True))
"""Metadata types of single numbers, as format letters of struct and NumPy."""
_SCALARS = {kind: struct.Struct(f"<{letter}") for kind, letter in _NUMBERS.items()}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class ArrayLocation(Struct, frozen=True):
    """Location of an array in the metadata. It is read only when needed, because vocabularies are long."""

    kind: int
    count: int
    offset: int


class Tensor(Struct, frozen=True):
    """A tensor of the file, described at offset `at`. `shape` has the slowest axis first; a vector has one number."""

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int
    at: int

    @property
    def stored(self) -> StoredType:
        """Its type, one that is read."""
        return TYPES[self.type_number]

    @property
    def type_name(self) -> str:
        """ggml's name of its type, also of one that is not read."""
        if self.type_number in TYPES:
            return TYPE_NAMES.get(self.stored.name, self.stored.name)
        return OTHER_TYPES.get(self.type_number, f"type {self.type_number}")

    @property
    def row_bytes(self) -> int:
        return self.stored.row_bytes(self.shape[-1])

    @property
    def n_rows(self) -> int:
        """Rows of all matrices together."""
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return self.n_rows * self.row_bytes


class Container:
    """A mapped file. Raises FormatError if its head is damaged, UnsupportedModel for an unknown version.

    metadata: numbers, strings, and the locations of arrays, by key. tensors: of any type, with offsets from the start
    of the data; `placed` checks them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pages = MappedFile(path)
        with closed_on_error([self.pages]):
            self._end = min(self.pages.nbytes, MAX_METADATA_BYTES)
            self._bytes = self.pages.view(0, self._end).data
            self._at = 0
            self._spans: dict[str, tuple[int, int]] = {}  # the bytes of each metadata pair
            self._items_left = MAX_ITEMS
            n_tensors, n_pairs = self._counts()
            self.metadata = self._pairs(n_pairs)
            self.tensors = [self._tensor(i, n_tensors) for i in range(n_tensors)]

    def array(self, key: str) -> list[Any]:
        """The items of an array in the metadata. Raises FormatError if a string is not UTF-8."""
        array = self.metadata[key]
        if array.kind != _STRING:
            numbers: list[Any] = np.frombuffer(
                self._bytes, f"<{_NUMBERS[array.kind]}", array.count, array.offset
            ).tolist()
            return numbers
        at, data, length = array.offset, self._bytes, _U64.unpack_from
        texts = []
        try:
            for _ in range(array.count):
                (n,) = length(data, at)
                at += 8 + n
                texts.append(str(data[at - n : at], "utf-8"))
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{self.path}: {key}: string {len(texts)} is not UTF-8 ({error.reason}). The file is damaged, or was "
                "written by a faulty converter; convert the model again."
            ) from None
        return texts

    def plain_metadata(self, lists: bool) -> dict[str, Any]:
        """The metadata as plain values; arrays become lists, or are left out without `lists`."""
        return {
            key: self.array(key) if isinstance(value, ArrayLocation) else value
            for key, value in self.metadata.items()
            if lists or not isinstance(value, ArrayLocation)
        }

    def tokenizer(self) -> bytes:
        """The file's tokenizer as a GGUF file of its own, without tensors."""
        spans = [span for key, span in self._spans.items() if key.startswith("tokenizer.")]
        pairs = b"".join(bytes(self._bytes[first:last]) for first, last in spans)
        return GGUF_MAGIC + struct.pack("<I2Q", 3, 0, len(spans)) + pairs

    def placed(self) -> dict[str, Tensor]:
        """The tensors by name, with their offsets in the file.

        Raises UnsupportedModel for a type that is not read, FormatError if one does not fit into the file.
        """
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise FormatError(
                f"{self.path}: general.alignment is {alignment!r}; expected a power of two. The file is damaged."
            )
        data_at = -(-self._at // alignment) * alignment
        placed: dict[str, Tensor] = {}
        for tensor in self.tensors:
            self._check_type(tensor)
            if tensor.name in placed:
                raise FormatError(
                    f"{self.path}: tensor {tensor.name} occurs twice; expected each name once. The file is damaged."
                )
            placed[tensor.name] = replace(tensor, offset=self._offset(tensor, data_at, alignment))
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

    def _check_type(self, tensor: Tensor) -> None:
        """Raise UnsupportedModel if the tensor's type is not read, FormatError if its rows are not whole blocks."""
        where = f"{self.path}: offset {tensor.at}: tensor {tensor.name}"
        if tensor.type_number in OTHER_TYPES:
            raise UnsupportedModel(
                f"{where} is of type {tensor.type_name}, which this version does not read. "
                "Get the model's Q4_K_M or Q8_0 file, or quantize it again."
            )
        if tensor.type_number not in TYPES:
            raise UnsupportedModel(
                f"{where} is of the unknown type {tensor.type_number}. "
                "The file is damaged or newer than this version; get the model's Q4_K_M or Q8_0 file."
            )
        if tensor.shape[-1] % tensor.stored.block_values:
            raise FormatError(
                f"{where} has rows of {tensor.shape[-1]} values; {tensor.stored.name} needs whole blocks of "
                f"{tensor.stored.block_values}. The file is damaged."
            )

    def _counts(self) -> tuple[int, int]:
        """The number of tensors and the number of metadata pairs."""
        magic = bytes(self._bytes[:4])
        if magic != GGUF_MAGIC:
            raise FormatError(
                f"{self.path}: offset 0: the file begins with {magic!r}; expected {GGUF_MAGIC!r}. It is not a GGUF."
            )
        self._at = 4
        version = self._u32("the version")
        if version & 0xFFFF == 0 and version:
            raise UnsupportedModel(f"{self.path}: a GGUF file of big-endian numbers. Get the little-endian file.")
        if version not in (2, 3):
            raise UnsupportedModel(
                f"{self.path}: offset 4: GGUF version {version}; this version reads 2 and 3. Get a newer file."
            )
        n_tensors, n_pairs = self._u64("the number of tensors"), self._u64("the number of metadata pairs")
        for what, count, limit in (("tensors", n_tensors, MAX_TENSORS), ("metadata pairs", n_pairs, MAX_PAIRS)):
            if count > limit:
                raise FormatError(f"{self.path}: the header announces {count} {what}; expected at most {limit}.")
        return n_tensors, n_pairs

    def _pairs(self, count: int) -> dict[str, Any]:
        """Metadata by key: numbers, strings, or the locations of arrays."""
        pairs: dict[str, Any] = {}
        for i in range(count):
            start = self._at
            key = self._name(f"key {i + 1} of {count}")
            if key in pairs:
                raise FormatError(f"{self.path}: offset {start}: key {key} occurs twice; expected each key once.")
            pairs[key] = self._value(key, self._u32(f"the type of {key}"))
            self._spans[key] = start, self._at
        return pairs

    def _tensor(self, i: int, count: int) -> Tensor:
        start = self._at
        name = self._name(f"the name of tensor {i + 1} of {count}")
        n_axes = self._u32(f"the number of axes of {name}")
        if not 1 <= n_axes <= 4:
            raise FormatError(f"{self.path}: offset {start}: tensor {name} has {n_axes} axes; expected 1 to 4.")
        axes = [self._u64(f"the shape of {name}") for _ in range(n_axes)]
        number = self._u32(f"the type of {name}")
        offset = self._u64(f"the offset of {name}")
        while len(axes) > 1 and axes[-1] == 1:
            axes.pop()
        if not 0 < math.prod(axes) < 1 << 50:
            raise FormatError(
                f"{self.path}: offset {start}: tensor {name} has the shape {axes}; expected positive numbers "
                "that a file can hold. The file is damaged."
            )
        return Tensor(name, tuple(reversed(axes)), number, offset, start)

    def _value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            scalar = _SCALARS[kind]
            start = self._take(scalar.size, key)
            return scalar.unpack_from(self._bytes, start)[0]
        if kind == _STRING:
            return self._text(key, MAX_METADATA_BYTES)
        if kind != _ARRAY:
            raise FormatError(f"{self.path}: offset {self._at - 4}: {key} is of type {kind}; expected 0 to 12.")
        item_kind, count = self._u32(f"the type of {key}"), self._u64(f"the length of {key}")
        where = f"{self.path}: offset {self._at - 12}"
        if item_kind == _ARRAY:
            raise FormatError(f"{where}: {key} is an array of arrays, which no model needs.")
        if item_kind != _STRING and item_kind not in _SCALARS:
            raise FormatError(f"{where}: {key} has items of type {item_kind}; expected 0 to 12.")
        if count > self._items_left:
            raise FormatError(
                f"{self.path}: offset {self._at - 8}: {key} has {count} items; expected at most "
                f"{MAX_ITEMS} in all arrays."
            )
        self._items_left -= count
        array = ArrayLocation(item_kind, count, self._at)
        if item_kind == _STRING:
            self._skip_strings(key, count)
        else:
            self._take(count * _SCALARS[item_kind].size, key)
        return array

    def _skip_strings(self, key: str, count: int) -> None:
        at, data, length, last = self._at, self._bytes, _U64.unpack_from, self._end - 8
        for i in range(count):  # a vocabulary has 10^5 strings: no call here that can be avoided
            if at > last:
                self._at = at
                self._take(8, f"string {i} of {key}")
            at += 8 + length(data, at)[0]
        self._at = at
        self._take(0, f"the last string of {key}")

    def _name(self, what: str) -> str:
        start = self._at
        name = self._text(what, MAX_NAME_BYTES)
        if not name.isprintable():
            raise FormatError(f"{self.path}: offset {start}: {what} is {name!r}; expected printable text.")
        return name

    def _text(self, what: str, max_bytes: int) -> str:
        start, n = self._at, self._u64(f"the length of {what}")
        if n > max_bytes:
            raise FormatError(f"{self.path}: offset {start}: {what} is {n} bytes long; expected at most {max_bytes}.")
        at = self._take(n, what)
        try:
            return str(self._bytes[at : at + n], "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.path}: offset {at}: {what} is not UTF-8 ({error.reason}).") from None

    def _u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self._bytes, self._take(4, what))[0]
        return value

    def _u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self._bytes, self._take(8, what))[0]
        return value

    def _take(self, n: int, what: str) -> int:
        """Skip `n` bytes and return their offset. Raises FormatError if fewer are left."""
        start = self._at
        if start + n > self._end:
            end = (
                f"the file ends at {self._end}"
                if self._end == self.pages.nbytes
                else f"metadata may not go beyond {self._end}"
            )
            advice = "It is cut short or damaged; copy or download it again."
            raise FormatError(f"{self.path}: offset {start}: {what} takes {n} bytes, but {end}. {advice}")
        self._at = start + n
        return start
