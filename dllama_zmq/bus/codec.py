"""Messages to frames, and frames to messages that have been checked.

A message is one msgpack header frame `[protocol, kind, field, field, ...]` and, for kinds whose last field is `arrays`,
one raw frame for each array head in it. Nothing is read from a frame before its length is what the head says.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dllama_zmq.bus.header import array_head, read_array_head, read_integer, read_short_text
from dllama_zmq.bus.messages import PROTOCOL, ArrayHead, Frame, Kinds, Message, wire_name
from dllama_zmq.errors import ProtocolError

MAX_HEADER_BYTES = 1024 * 1024

_VERSION = msgspec.msgpack.encode(PROTOCOL)


def encode(message: Message, arrays: Sequence[Frame] = ()) -> list[Frame]:
    """The frames of `message`; `arrays` are the raw frames that its heads describe."""
    fields = msgspec.msgpack.encode(message)
    n_fields, at = read_array_head(fields)
    return [array_head(n_fields + 1) + _VERSION + fields[at:], *arrays]


def decode(frames: Sequence[Frame], allowed: Kinds) -> tuple[Message, list[Frame]]:
    """A message of one of the kinds `allowed` and its raw array frames, each of the length that its head says.

    Raises ProtocolError on anything else, whatever the bytes are. Time and memory are bounded by the header's length:
    fields are read as their types, and further ones are skipped, not built.
    """
    if not frames or len(frames[0]) > MAX_HEADER_BYTES:
        raise ProtocolError(f"a header of {len(frames[0]) if frames else 0} bytes; expected 1 to {MAX_HEADER_BYTES}")
    header = bytes(frames[0])
    try:
        n_fields, at = read_array_head(header)
    except ValueError:
        raise ProtocolError("a header that is not an array of protocol, kind and fields") from None
    try:
        protocol, at = read_integer(header, at)
    except ValueError:
        raise ProtocolError(f"a protocol that is no integer; expected the integer {PROTOCOL}") from None
    if protocol != PROTOCOL:
        raise ProtocolError(f"protocol {protocol}; this side speaks {PROTOCOL}: use one version on all nodes")
    if n_fields < 2:
        raise ProtocolError("a header without a kind")
    try:
        message = allowed.decoder.decode(array_head(n_fields - 1) + header[at:])
    except (msgspec.ValidationError, RecursionError) as error:
        kind = read_short_text(header, at)
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


def _check_length(head: ArrayHead, frame: Frame) -> None:
    try:
        expected = head.nbytes
    except ValueError as error:
        raise ProtocolError(f"an array head that no array has: {error}") from None
    if len(frame) != expected:
        raise ProtocolError(
            f"an array frame of {len(frame)} bytes; {head.rows} x {head.columns} {head.type} take {expected}"
        )
