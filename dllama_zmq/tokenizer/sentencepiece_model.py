"""A SentencePiece BPE model of a vocabulary, in the bytes that the library loads. Knows no file and encodes nothing.

Written out here, since the generated classes beside the library run with few versions of protobuf and fail with others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from dllama_zmq.tokenizer.data import N_BYTES, TokenizerData

UNKNOWN_PIECE = b"<unk>"
_SPACE = "▁"  # how SentencePiece writes a space inside a piece
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_BPE = 2


def model_bytes(data: TokenizerData, first_byte: int) -> bytes:
    """A serialized ModelProto, set up as Llama's: text unchanged, a space put before it, bytes for what has no piece.

    The byte pieces begin at id `first_byte`. Field numbers: sentencepiece's src/sentencepiece_model.proto.
    """
    pieces = list(_typed_pieces(data, first_byte))
    unknown = next(token for token, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN)
    trainer = _message(
        (3, _BPE),
        (4, len(pieces)),
        (35, True),  # byte_fallback
        (40, unknown),
        (41, data.bos_id),
        (42, data.eos_ids[0]),
        (43, -1),  # pad_id: none
    )
    normalizer = _message(
        (1, b"identity"),
        (3, True),  # add_dummy_prefix
        (4, False),  # remove_extra_whitespaces
        (5, True),  # escape_whitespaces
    )
    entries = [(1, _message((1, text.encode()), (2, score), (3, kind))) for text, score, kind in pieces]
    return _message(*entries, (2, trainer), (3, normalizer))


def _typed_pieces(data: TokenizerData, first_byte: int) -> Iterable[tuple[str, float, int]]:
    """Each token's name in the model, its score and its kind; then an unknown piece, if the vocabulary has none."""
    unknown = data.pieces.index(UNKNOWN_PIECE) if UNKNOWN_PIECE in data.pieces else len(data.pieces)
    controls = {data.bos_id, *data.eos_ids}
    byte_names = [f"<0x{value:02X}>" for value in range(N_BYTES)]
    seen = {"<unk>", *byte_names}
    for token, (piece, score) in enumerate(zip(data.pieces, map(float, data.scores), strict=True)):
        text = _text(piece)
        if token == unknown:
            yield "<unk>", score, _UNKNOWN
        elif first_byte <= token < first_byte + N_BYTES:
            yield byte_names[token - first_byte], score, _BYTE
        elif token in controls or text is None or text in seen:
            # The library wants names unlike each other; no text matches one with a space, for a text's become '▁'.
            yield f" {token}", score, _CONTROL
        else:
            seen.add(text)
            yield text, score, _NORMAL
    if unknown == len(data.pieces):
        yield "<unk>", 0.0, _UNKNOWN  # the library wants one; with all the bytes there it is never the answer


def _text(piece: bytes) -> str | None:
    """The piece as SentencePiece has it, or None where it is none: no UTF-8 text, or with a NUL in it."""
    if b"\x00" in piece:
        return None
    try:
        return piece.decode().replace(" ", _SPACE)
    except UnicodeDecodeError:
        return None


def _message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """Fields in protobuf's encoding: an int as varint, a float as 32 bits, bytes with their length."""
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
