"""A SentencePiece model, to and from its serialized form. Knows no file and does not encode.

protobuf is not used: the classes generated for sentencepiece work with few of its versions. Field numbers are those of
sentencepiece's src/sentencepiece_model.proto.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from dllama_zmq.errors import FormatError

SPACE = "▁"  # how SentencePiece writes a space inside a piece
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4
MAX_PIECES = 1 << 22


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Model:
    """The needed fields of a ModelProto; the defaults are Llama's, not the format's."""

    pieces: list[Piece]
    kind: int = BPE
    byte_fallback: bool = True
    dummy_prefix: bool = True
    remove_extra_spaces: bool = False
    charsmap: bytes = b""
    bos_id: int = 1
    eos_id: int = 2


def byte_name(value: int) -> str:
    return f"<0x{value:02X}>"


BYTE_NAMES = {byte_name(value): value for value in range(256)}


def piece_bytes(piece: Piece) -> bytes:
    """The output of a piece: a byte for a byte piece, else text with a space for each '▁'."""
    if piece.kind == BYTE and piece.text in BYTE_NAMES:
        return bytes([BYTE_NAMES[piece.text]])
    return piece.text.replace(SPACE, " ").encode("utf-8", "replace")


def write_model(model: Model) -> bytes:
    """The serialized ModelProto. One piece must have the kind UNKNOWN."""
    unknown = next(token for token, piece in enumerate(model.pieces) if piece.kind == UNKNOWN)
    trainer = _message(
        (3, model.kind),
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


def read_model(data: bytes, source: str) -> Model:
    """Parse a serialized ModelProto. Raises FormatError with the offset of a mistake."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value, offset in _fields(data, 0, source):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            pieces.append(_piece(value, offset, source))
            if len(pieces) > MAX_PIECES:
                raise FormatError(f"{source}: more than {MAX_PIECES} pieces; no language model has such a vocabulary.")
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(
                (inner, content) for inner, content, _ in _fields(value, offset, source)
            )
    kinds = [piece.kind for piece in pieces]
    if kinds.count(UNKNOWN) != 1:
        raise FormatError(
            f"{source}: {kinds.count(UNKNOWN)} of {len(pieces)} pieces are <unk>; expected one. "
            f"This is not a SentencePiece model, or it is damaged; copy it again."
        )

    def number_of(fields: dict[int, int | bytes], key: int, default: int) -> int:
        value = fields.get(key, default)
        if not isinstance(value, int):
            return default
        return value - (1 << 64) if value >> 63 else value

    charsmap = normalizer.get(2, b"")
    return Model(
        pieces,
        kind=number_of(trainer, 3, UNIGRAM),
        byte_fallback=bool(number_of(trainer, 35, 0)),
        dummy_prefix=bool(number_of(normalizer, 3, 1)),
        remove_extra_spaces=bool(number_of(normalizer, 4, 1)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        bos_id=number_of(trainer, 41, 1),
        eos_id=number_of(trainer, 42, 2),
    )


def _piece(data: bytes, offset: int, source: str) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value, at in _fields(data, offset, source):
        if number == 1 and isinstance(value, bytes):
            try:
                text = value.decode()
            except UnicodeDecodeError as error:
                raise FormatError(f"{source}: offset {at}: a piece is not UTF-8 text. The file is damaged.") from error
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    if not text or "\x00" in text or not math.isfinite(score) or not NORMAL <= kind <= BYTE:
        raise FormatError(
            f"{source}: offset {offset}: a piece has the text {text[:40]!r}, score {score} and kind {kind}; expected "
            f"text, a number and {NORMAL} to {BYTE}. The file is damaged; copy it again."
        )
    return Piece(text, score, kind)


def _fields(data: bytes, base: int, source: str) -> Iterator[tuple[int, int | bytes, int]]:
    """The fields of a message: number, value (int for a varint, else bytes), offset of the value in the file."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at, base, source)
        kind = tag & 7
        if kind == 0:
            number, at = _read_varint(data, at, base, source)
            yield tag >> 3, number, base + at
            continue
        if kind == 2:
            length, at = _read_varint(data, at, base, source)
        else:
            length = {1: 8, 5: 4}.get(kind, -1)
        if not 0 <= length <= len(data) - at:
            raise FormatError(
                f"{source}: offset {base + at}: a field takes {length} bytes, {len(data) - at} are left. "
                f"This is not a SentencePiece model, or it is damaged; copy it again."
            )
        yield tag >> 3, data[at : at + length], base + at
        at += length


def _read_varint(data: bytes, at: int, base: int, source: str) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if at + index >= len(data):
            break
        byte = data[at + index]
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value & ((1 << 64) - 1), at + index + 1
    raise FormatError(f"{source}: offset {base + at}: a number does not end. The file is damaged; copy it again.")


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
