"""The first bytes of a msgpack array, read and written by hand: the head of a header before its typed fields.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

from __future__ import annotations

import struct

_ARRAYS = {0xDC: ">H", 0xDD: ">I"}
_INTEGERS = {
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
"""How `struct` reads what follows the first byte."""


def array_head(n_items: int) -> bytes:
    """The bytes that msgpack writes before the items of an array."""
    if n_items < 16:
        return bytes([0x90 | n_items])
    return struct.pack(">BH", 0xDC, n_items) if n_items < 1 << 16 else struct.pack(">BI", 0xDD, n_items)


def read_array_head(data: bytes) -> tuple[int, int]:
    """The number of items in the array with which `data` begins, and where the first one is. Raises ValueError."""
    if data and data[0] & 0xF0 == 0x90:
        return data[0] & 0x0F, 1
    return _read(_ARRAYS, data, 0)


def read_integer(data: bytes, at: int) -> tuple[int, int]:
    """The integer at `at`, and where it ends. Raises ValueError."""
    first = data[at] if at < len(data) else 0xC0
    if first < 0x80 or first >= 0xE0:
        return first if first < 0x80 else first - 256, at + 1
    return _read(_INTEGERS, data, at)


def read_short_text(data: bytes, at: int) -> str:
    """The string of at most 31 bytes at `at`; empty if there is none."""
    n_bytes = data[at] & 0x1F if at < len(data) and data[at] & 0xE0 == 0xA0 else 0
    return data[at + 1 : at + 1 + n_bytes].decode(errors="replace")


def _read(formats: dict[int, str], data: bytes, at: int) -> tuple[int, int]:
    form = formats.get(data[at]) if at < len(data) else None
    if form is None or len(data) < at + 1 + struct.calcsize(form):
        raise ValueError(f"no such number at byte {at}")
    number: int = struct.unpack_from(form, data, at + 1)[0]
    return number, at + 1 + struct.calcsize(form)
