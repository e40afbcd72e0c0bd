"""`.t` tokenizer files, to and from TokenizerData. See FORMATS.md §3. Does not encode text.

Every length in a file is checked against the remaining bytes before it is used.
"""

from __future__ import annotations

import enum
import math
import struct
from pathlib import Path

from msgspec import Struct

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.files import read_whole, replace_file
from dllama_zmq.formats.keyed_header import keyed_header, read_pairs
from dllama_zmq.tokenizer.data import N_BYTES, TokenizerData, byte_run

MAGIC = 0x567124
OLD_MAGIC = 0x567123
MAX_FILE_BYTES = 1 << 28
"""Files are read whole, so longer ones are refused: 256 MiB is 20 times the largest known."""
_OLD_HEADER = struct.Struct("<2I3i")  # vocab size, longest token, bos, eos, pad


class Key(enum.IntEnum):
    """The keys of the pairs in a header."""

    VERSION = 0
    VOCAB_SIZE = 1
    MAX_TOKEN_LENGTH = 2
    BOS_ID = 3
    EOS_ID = 4
    PAD_ID = 5
    CHAT_EOS_ID = 6
    CHAT_TEMPLATE_BYTES = 7
    CHAT_STOP_BYTES = 8
    N_EOS_TOKENS = 9
    ADD_BOS = 10


class _Cursor(Struct):
    """Takes bytes from front to back. Raises FormatError if fewer are left."""

    path: Path
    data: bytes
    offset: int = 0

    def left(self) -> int:
        return len(self.data) - self.offset

    def take(self, n_bytes: int, what: str) -> bytes:
        if not 0 <= n_bytes <= self.left():
            raise FormatError(
                f"{self.path}: offset {self.offset}: {what} takes {n_bytes} bytes, but {self.left()} are left. "
                f"The file is cut short or damaged; copy or convert it again."
            )
        self.offset += n_bytes
        return self.data[self.offset - n_bytes : self.offset]


def read_t(path: str | Path) -> TokenizerData:
    """Read a tokenizer file with old or keyed header. Raises FormatError with the offset of the mistake."""
    path = Path(path)
    cursor = _Cursor(path, read_whole(path, MAX_FILE_BYTES))
    magic = int.from_bytes(cursor.take(4, "the magic"), "little")
    if magic == OLD_MAGIC:
        data = _read_old(cursor)
    elif magic == MAGIC:
        data = _read_keyed(cursor)
    else:
        raise FormatError(
            f"{path}: offset 0: magic is {magic:#010x}; expected {MAGIC:#010x} or {OLD_MAGIC:#010x}. "
            f"This is not a .t tokenizer file."
        )
    if cursor.left():
        raise FormatError(
            f"{path}: offset {cursor.offset}: {cursor.left()} bytes follow the last of {len(data.pieces)} tokens; "
            f"expected the end of the file. It is damaged; copy or convert it again."
        )
    _check_ids(data)
    return data


def write_t(path: str | Path, data: TokenizerData) -> None:
    """Write a tokenizer file with keyed header, complete or not at all."""
    path = Path(path)
    if len(data.pieces) != len(data.scores) or not all(data.pieces):
        raise FormatError(
            f"{path}: {len(data.pieces)} pieces and {len(data.scores)} scores; expected one score for each piece, and "
            "no empty piece. Nothing was written."
        )
    _check_ids(data)
    template = (data.chat_template or "").encode()
    values = {
        Key.VERSION: 1,
        Key.VOCAB_SIZE: len(data.pieces),
        Key.MAX_TOKEN_LENGTH: data.max_token_length,
        Key.BOS_ID: data.bos_id,
        Key.N_EOS_TOKENS: len(data.eos_ids),
        Key.ADD_BOS: int(data.add_bos),
    }
    if data.chat_template is not None:
        values[Key.CHAT_TEMPLATE_BYTES] = len(template)
    with replace_file(path) as file:
        file.write(keyed_header(MAGIC, values) + template)
        file.write(struct.pack(f"<{len(data.eos_ids)}i", *data.eos_ids))
        for piece, score in zip(_raw_bytes(data.pieces), data.scores, strict=True):
            file.write(struct.pack("<fI", score, len(piece)) + piece)


def _read_old(cursor: _Cursor) -> TokenizerData:
    n_tokens, _, bos_id, eos_id, _ = _OLD_HEADER.unpack(cursor.take(_OLD_HEADER.size, "the old header"))
    pieces, scores = _read_vocabulary(cursor, n_tokens)
    return TokenizerData(pieces, scores, bos_id, (eos_id,), True, None, str(cursor.path))


def _read_keyed(cursor: _Cursor) -> TokenizerData:
    path = cursor.path
    pairs, cursor.offset = read_pairs(cursor.data, len(cursor.data), path, Key)
    values = {key: value for key, value, _ in pairs}
    eos_ids = [value for key, value, _ in pairs if key in (Key.EOS_ID, Key.CHAT_EOS_ID)]
    for key in (Key.VERSION, Key.VOCAB_SIZE, Key.BOS_ID):
        if key not in values:
            raise FormatError(f"{path}: the header has no key {key.value} ({key.name.lower()}). Convert it again.")
    if values[Key.VERSION] != 1:
        raise FormatError(f"{path}: tokenizer version {values[Key.VERSION]}; this version reads 1. Convert it again.")
    for key in (Key.CHAT_TEMPLATE_BYTES, Key.CHAT_STOP_BYTES, Key.N_EOS_TOKENS):
        if values.get(key, 0) < 0:
            raise FormatError(f"{path}: key {key.value} ({key.name.lower()}) is {values[key]}; expected 0 or more.")
    template = _read_template(cursor, values)
    cursor.take(values.get(Key.CHAT_STOP_BYTES, 0), "the chat stop")
    n_eos = values.get(Key.N_EOS_TOKENS, 0)
    listed = cursor.take(4 * n_eos, "the list of EOS ids")
    eos_ids += struct.unpack(f"<{n_eos}i", listed)
    pieces, scores = _read_vocabulary(cursor, values[Key.VOCAB_SIZE])
    add_bos = values.get(Key.ADD_BOS, 1)  # models of files older than this key need it
    if add_bos not in (0, 1):
        raise FormatError(f"{path}: key {Key.ADD_BOS.value} (add_bos) is {add_bos}; expected 0 or 1.")
    return TokenizerData(
        pieces, scores, values[Key.BOS_ID], tuple(dict.fromkeys(eos_ids)), bool(add_bos), template, str(path)
    )


def _read_template(cursor: _Cursor, values: dict[Key, int]) -> str | None:
    offset = cursor.offset
    raw = cursor.take(values.get(Key.CHAT_TEMPLATE_BYTES, 0), "the chat template")
    try:
        return raw.decode() or None
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{cursor.path}: offset {offset + error.start}: the chat template is not UTF-8 text."
        ) from error


def _read_vocabulary(cursor: _Cursor, n_tokens: int) -> tuple[list[bytes], list[float]]:
    path = cursor.path
    smallest = 9  # f32 score, u32 length, one byte
    if not 1 <= n_tokens <= cursor.left() // smallest:
        raise FormatError(
            f"{path}: the header says {n_tokens} tokens; the {cursor.left()} bytes from offset {cursor.offset} hold "
            f"1 to {cursor.left() // smallest}. The file is cut short or damaged; copy or convert it again."
        )
    pieces: list[bytes] = []
    scores: list[float] = []
    for token in range(n_tokens):
        at = cursor.offset
        score, length = struct.unpack("<fI", cursor.take(8, f"token {token}"))
        if length < 1 or not math.isfinite(score):
            raise FormatError(
                f"{path}: offset {at}: token {token} has score {score} and {length} bytes of text; expected a number "
                "and at least one byte."
            )
        pieces.append(cursor.take(length, f"the text of token {token}"))
        scores.append(score)
    return _raw_bytes(pieces), scores


def _raw_bytes(pieces: list[bytes]) -> list[bytes]:
    """The pieces, with each byte piece as one raw byte: some converters write the text `<0xNN>`."""
    first = byte_run(pieces)
    if first is None:
        return pieces
    return [*pieces[:first], *(bytes([value]) for value in range(N_BYTES)), *pieces[first + N_BYTES :]]


def _check_ids(data: TokenizerData) -> None:
    for name, token in (("bos_id", data.bos_id), *(("eos id", eos) for eos in data.eos_ids)):
        if not 0 <= token < len(data.pieces):
            raise FormatError(
                f"{data.source}: {name} is {token}; expected 0 to {len(data.pieces) - 1}, the ids of its tokens. "
                f"Convert it again."
            )
    if not data.eos_ids:
        raise FormatError(f"{data.source}: no EOS id is given; generation would never end. Convert it again.")
