"""Messages to frames, and frames to messages that have been checked.

A message is one msgpack header frame `[protocol, kind, field, field, ...]` and, for kinds whose last field is `arrays`,
one raw frame for each array head in it. Nothing is read from a frame before its length is what the head says.

What stands before the typed fields of a header, the head of its array and the protocol, is read and written by hand
(https://github.com/msgpack/msgpack/blob/master/spec.md): msgspec wants the kind first.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from dllama_zmq.bus.messages import PROTOCOL, ArrayHead, Frame, Kinds, Message, wire_name
from dllama_zmq.errors import ProtocolError

MAX_HEADER_BYTES = 1024 * 1024

_VERSION = msgspec.msgpack.encode(PROTOCOL)
_ARRAY_HEAD_BYTES = {0xDC: 3, 0xDD: 5}  # by the first byte, of arrays of 16 items or more
_INTEGER_BYTES = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}  # and of those beyond a byte


def encode(message: Message, arrays: Sequence[Frame] = ()) -> list[Frame]:
    """The frames of `message`; `arrays` are the raw frames that its heads describe."""
    fields = msgspec.msgpack.encode(message)
    n_fields, at = _read_array_head(fields)
    return [_array_head(n_fields + 1) + _VERSION + fields[at:], *arrays]


def decode(frames: Sequence[Frame], allowed: Kinds) -> tuple[Message, list[Frame]]:
    """A message of one of the kinds `allowed` and its raw array frames, each of the length that its head says.

    Raises ProtocolError on anything else, whatever the bytes are. Time and memory are bounded by the header's length:
    fields are read as their types, and further ones are skipped, not built.
    """
    if not frames or len(frames[0]) > MAX_HEADER_BYTES:
        raise ProtocolError(f"a header of {len(frames[0]) if frames else 0} bytes; expected 1 to {MAX_HEADER_BYTES}")
    header = bytes(frames[0])
    try:
        n_fields, at = _read_array_head(header)
    except ValueError:
        raise ProtocolError("a header that is not an array of protocol, kind and fields") from None
    try:
        end = at + _INTEGER_BYTES.get(header[at], 1)
        protocol, at = msgspec.msgpack.decode(header[at:end], type=int), end
    except (IndexError, msgspec.MsgspecError):
        raise ProtocolError(f"a protocol that is no integer; expected the integer {PROTOCOL}") from None
    if protocol != PROTOCOL:
        raise ProtocolError(f"protocol {protocol}; this side speaks {PROTOCOL}: use one version on all nodes")
    if n_fields < 2:
        raise ProtocolError("a header without a kind")
    try:
        message = allowed.decoder.decode(_array_head(n_fields - 1) + header[at:])
    except (msgspec.ValidationError, RecursionError) as error:
        kind = _short_text(header, at)
        if kind not in allowed:
            raise ProtocolError(f"a message {kind!r:.40}; expected one of {', '.join(allowed)}") from None
        raise ProtocolError(f"a message {kind!r} that is not as agreed: {str(error)[:300]}") from None
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: a string that is not UTF-8
        raise ProtocolError(f"a header that is not msgpack: {str(error)[:300]}") from None
    heads: list[ArrayHead] = getattr(message, "arrays", [])
    arrays = list(frames[1:])
    if len(arrays) != len(heads):
        raise ProtocolError(f"{len(arrays)} array frames; the {kind_of(message)} header names {len(heads)}")
    for head, frame in zip(heads, arrays, strict=True):
        _check_length(head, frame)
    return message, arrays


def kind_of(message: Message) -> str:
    """The kind of a message as it is on the wire."""
    return wire_name(type(message).__name__)


def _array_head(n_items: int) -> bytes:
    """The bytes that msgpack writes before the items of an array."""
    if n_items < 16:
        return bytes([0x90 | n_items])
    return struct.pack(">BH", 0xDC, n_items) if n_items < 1 << 16 else struct.pack(">BI", 0xDD, n_items)


def _read_array_head(data: bytes) -> tuple[int, int]:
    """The number of items in the array with which `data` begins, and where the first one is. Raises ValueError."""
    first = data[0] if data else 0
    if first & 0xF0 == 0x90:
        return first & 0x0F, 1
    end = _ARRAY_HEAD_BYTES.get(first, 0)
    if not 0 < end <= len(data):
        raise ValueError("no array")
    return int.from_bytes(data[1:end]), end


def _short_text(data: bytes, at: int) -> str:
    """The string of at most 31 bytes at `at`; empty if there is none."""
    n_bytes = data[at] & 0x1F if at < len(data) and data[at] & 0xE0 == 0xA0 else 0
    return data[at + 1 : at + 1 + n_bytes].decode(errors="replace")


def _check_length(head: ArrayHead, frame: Frame) -> None:
    try:
        expected = head.nbytes
    except ValueError as error:
        raise ProtocolError(f"an array head that no array has: {error}") from None
    if len(frame) != expected:
        raise ProtocolError(
            f"an array frame of {len(frame)} bytes; {head.rows} x {head.columns} {head.type} take {expected}"
        )
