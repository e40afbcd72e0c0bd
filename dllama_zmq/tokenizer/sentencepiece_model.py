"""A SentencePiece BPE model in its serialized form. Knows no file and does not encode.

protobuf is not used: the classes generated for sentencepiece work with few of its versions. Field numbers are those of
sentencepiece's src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct

from msgspec import Struct

SPACE = "▁"  # how SentencePiece writes a space inside a piece
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BPE = 2


class Piece(Struct, frozen=True):
    text: str
    score: float
    kind: int


class Model(Struct, frozen=True):
    """The needed fields of a ModelProto; the defaults are Llama's, not the format's."""

    pieces: list[Piece]
    byte_fallback: bool = True
    dummy_prefix: bool = True
    remove_extra_spaces: bool = False
    charsmap: bytes = b""
    bos_id: int = 1
    eos_id: int = 2


def byte_name(value: int) -> str:
    return f"<0x{value:02X}>"


BYTE_NAMES = {byte_name(value): value for value in range(256)}


def printed(name: str) -> bytes:
    """What a piece prints: a byte piece its byte, another its text with a space for each '▁'."""
    if name in BYTE_NAMES:
        return bytes([BYTE_NAMES[name]])
    return name.replace(SPACE, " ").encode("utf-8", "replace")


def write_model(model: Model) -> bytes:
    """The serialized ModelProto. One piece must have the kind UNKNOWN."""
    unknown = next(token for token, piece in enumerate(model.pieces) if piece.kind == UNKNOWN)
    trainer = _message(
        (3, _BPE),
        (4, len(model.pieces)),
        (35, model.byte_fallback),
        (40, unknown),
        (41, model.bos_id),
        (42, model.eos_id),
        (43, -1),  # pad_id: none
    )
    normalizer = _message(
        (1, b"user_defined" if model.charsmap else b"identity"),
        *([(2, model.charsmap)] if model.charsmap else []),
        (3, model.dummy_prefix),
        (4, model.remove_extra_spaces),
        (5, True),  # escape_whitespaces
    )
    entries = [
        (1, _message((1, piece.text.encode()), (2, float(piece.score)), (3, piece.kind))) for piece in model.pieces
    ]
    return _message(*entries, (2, trainer), (3, normalizer))


def without_prefix(data: bytes) -> bytes:
    """The serialized model `data`, with add_dummy_prefix off."""
    return data + _message((3, _message((3, False))))  # the last of repeated fields wins


def _message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """Fields in protobuf's encoding: int as varint, float as 32 bits, bytes with their length."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, bytes):
            out += _varint(number << 3 | 2) + _varint(len(value)) + value
        elif isinstance(value, float):
            out += _varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            out += _varint(number << 3) + _varint(value)
    return bytes(out)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative number is its two's complement in 64 bits
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
