"""The keyed header of `.m` and `.t` files: magic, size, and pairs of key and value. See FORMATS.md §2 and §3."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from dllama_zmq.errors import FormatError

MAX_HEADER_BYTES = 8 + 8 * 1024

K = TypeVar("K", bound=enum.IntEnum)


def read_pairs(head: bytes, file_bytes: int, path: Path, keys: type[K]) -> tuple[list[tuple[K, int, int]], int]:
    """Key, value and the value's offset of each pair, and the offset after the header.

    `head` is the whole file or its first MAX_HEADER_BYTES. Raises FormatError for a wrong size or an unknown key.
    """
    size = int.from_bytes(head[4:8], "little", signed=True)
    if size % 8 or not 8 <= size <= MAX_HEADER_BYTES:
        raise FormatError(
            f"{path}: offset 4: header size is {size}; expected 8 + 8 for each pair, at most {MAX_HEADER_BYTES}."
        )
    if size > file_bytes:
        raise FormatError(
            f"{path}: offset 4: header size is {size}, but the file ends at {file_bytes}. It is cut short."
        )
    pairs = []
    for offset in range(8, size, 8):
        number, value = struct.unpack_from("<2i", head, offset)
        if number not in keys._value2member_map_:
            raise FormatError(
                f"{path}: offset {offset}: header key {number} is unknown. The file is damaged, or newer than this "
                "version reads."
            )
        pairs.append((keys(number), value, offset + 4))
    return pairs, size


def keyed_header(magic: int, values: Mapping[K, int]) -> bytes:
    """The header with these pairs."""
    words = [word for key, value in values.items() for word in (int(key), value)]
    return struct.pack(f"<Ii{len(words)}i", magic, 8 + 4 * len(words), *words)
