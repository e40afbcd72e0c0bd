"""The raw frames of a message as arrays, arrays as frames, and the headers of sums."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, TypeAlias, cast

import msgspec
import numpy as np
import numpy.typing as npt

from dllama_zmq.bus.messages import PROTOCOL, ArrayHead, ArrayType, Frame, Partial, Sum, wire_name
from dllama_zmq.errors import ProtocolError
from dllama_zmq.kernels import Kernels
from dllama_zmq.quants import F32, U8, dequantize, quantize
from dllama_zmq.spec import SYNC_FLOAT, Sync

Array: TypeAlias = npt.NDArray[Any]
EncodedArray: TypeAlias = tuple[ArrayHead, Frame]

_PLAIN: dict[str, np.dtype[Any]] = {"i32": np.dtype("<i4"), "f64": np.dtype("<f8"), "u8": np.dtype("u1")}


def encode_floats(values: F32, wire: Sync) -> EncodedArray:
    """Encode `values` (rows, columns) in a float type of the wire: head and frame."""
    data = quantize(values, SYNC_FLOAT[wire])
    return ArrayHead(wire, *values.shape), _bytes_of(data)


def encode_plain(values: Array, wire: Literal["i32", "f64", "u8"]) -> EncodedArray:
    """Encode `values` (rows, columns) without rounding: head and frame."""
    data = np.ascontiguousarray(values, dtype=_PLAIN[wire])
    return ArrayHead(wire, *data.shape), _bytes_of(data)


def _bytes_of(data: Array) -> Frame:
    return data.data.cast("B") if data.size else b""  # Python casts no empty view


def encoded_bytes(head: ArrayHead, frame: Frame, wire: Sync, shape: tuple[int, int]) -> U8:
    """The bytes of `frame`, (rows, bytes of a row). Raises ProtocolError unless `head` has this type and shape."""
    _check_head(head, wire, shape)
    return np.frombuffer(frame, np.uint8).reshape(shape[0], -1)


def decode_array(head: ArrayHead, frame: Frame, wire: ArrayType, shape: tuple[int, int]) -> Array:
    """Decode `frame`; floats become float32, read-only. Raises ProtocolError unless `head` has this type and shape."""
    if wire == "f32" or wire == "f16" or wire == "q80":
        return dequantize(encoded_bytes(head, frame, wire, shape), SYNC_FLOAT[wire]).reshape(shape)
    _check_head(head, wire, shape)
    return np.frombuffer(frame, _PLAIN[wire]).reshape(shape)


def to_wire(partial: F32 | U8, kernels: Kernels, sync: Sync) -> U8:
    """A partial sum (T, D) encoded in the type of the bus; unchanged if the product has written it so."""
    return cast(U8, partial) if partial.dtype == np.uint8 else kernels.encode(cast(F32, partial), sync)


def stage_header(kind: type[Sum | Partial], epoch: int, step: int, head: ArrayHead) -> Callable[[int], bytes]:
    """A function from the number of a stage to the header that `encode` makes of its Sum or Partial."""
    before = b"\x96" + b"".join(map(_encoded, (PROTOCOL, wire_name(kind.__name__), epoch, step)))
    after = msgspec.msgpack.encode([head])
    return lambda stage: before + _encoded(stage) + after


@lru_cache(maxsize=4096)
def _encoded(value: int | str) -> bytes:
    return msgspec.msgpack.encode(value)


def _check_head(head: ArrayHead, wire: ArrayType, shape: tuple[int, int]) -> None:
    if head.type != wire or (head.rows, head.columns) != shape:
        raise ProtocolError(
            f"an array of {head.rows} x {head.columns} {head.type}; expected {shape[0]} x {shape[1]} {wire}"
        )
