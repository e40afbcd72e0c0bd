"""The parts of a tokenizer from the vocabulary of a `.t` file. See FORMATS.md §3. Knows no file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from dllama_zmq.errors import FormatError
from dllama_zmq.tokenizer.config import Config
from dllama_zmq.tokenizer.data import N_BYTES, TokenizerData, TokenizerParts, byte_run, checked_ids
from dllama_zmq.tokenizer.encoders import rank_encoder, with_names
from dllama_zmq.tokenizer.from_sentencepiece import parts_of_sentencepiece
from dllama_zmq.tokenizer.pretokenizers import inferred
from dllama_zmq.tokenizer.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    Model,
    Piece,
    byte_name,
    write_model,
)

UNKNOWN_PIECE = b"<unk>"
_BRACKETED = re.compile(rb"<.+>|\[.+\]", re.DOTALL)
_CONTROL_NAME = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)


def parts_of_t(data: TokenizerData) -> TokenizerParts:
    """The parts of a SentencePiece or byte-level vocabulary. Raises FormatError for any other kind."""
    first_byte = byte_run(data.pieces)
    return _byte_level(data) if first_byte is None else _sentencepiece(data, first_byte)


def _sentencepiece(data: TokenizerData, first_byte: int) -> TokenizerParts:
    controls = {data.bos_id, *data.eos_ids}
    if controls & set(range(first_byte, first_byte + N_BYTES)):
        raise FormatError(f"{data.source}: BOS or EOS is one of the byte pieces at {first_byte}. Convert again.")
    if b" " not in data.pieces[:first_byte] + data.pieces[first_byte + N_BYTES :]:
        raise FormatError(f"{data.source}: a SentencePiece vocabulary without a piece for ' '. Convert it again.")
    if UNKNOWN_PIECE in data.pieces:
        controls.add(data.pieces.index(UNKNOWN_PIECE))
    controls |= {
        token
        for token, (piece, score) in enumerate(zip(data.pieces, data.scores, strict=True))
        if score == 0 and len(piece) > 2 and _BRACKETED.fullmatch(piece)
    } - set(range(first_byte, first_byte + N_BYTES))
    model = Model(_typed_pieces(data, first_byte, controls), bos_id=data.bos_id, eos_id=data.eos_ids[0])
    config = Config(add_bos=data.add_bos, end_ids=data.eos_ids, templates=_templates(data))
    parts = parts_of_sentencepiece(write_model(model), config, data.source, data.bos_id, data.eos_ids[0])
    names = _names(data.pieces, controls)
    return replace(
        parts,
        pieces=dict(enumerate(data.pieces)),
        silent=frozenset(controls),
        specials=names,
        special_encoder=with_names(parts.plain_encoder, names),
    )


def _typed_pieces(data: TokenizerData, first_byte: int, controls: set[int]) -> list[Piece]:
    """The pieces of the model, followed by an unknown piece if the vocabulary has none."""
    unknown = data.pieces.index(UNKNOWN_PIECE) if UNKNOWN_PIECE in data.pieces else len(data.pieces)
    typed: list[Piece] = []
    seen = {"<unk>", *map(byte_name, range(N_BYTES))}
    for token, (piece, score) in enumerate(zip(data.pieces, map(float, data.scores), strict=True)):
        text = _text(piece)
        if token == unknown:
            typed.append(Piece("<unk>", score, UNKNOWN))
        elif first_byte <= token < first_byte + N_BYTES:
            typed.append(Piece(byte_name(token - first_byte), score, BYTE))
        elif token in controls or text is None or text in seen:
            # Names must be unique. No text matches one with a space, because its spaces become '▁'.
            typed.append(Piece(f" {token}", score, CONTROL))
        else:
            seen.add(text)
            typed.append(Piece(text, score, NORMAL))
    if unknown == len(data.pieces):
        typed.append(Piece("<unk>", 0.0, UNKNOWN))  # the library needs one; with all byte pieces it is never used
    return typed


def _text(piece: bytes) -> str | None:
    """The piece in SentencePiece's form; None if it has a NUL or is not UTF-8."""
    if b"\x00" in piece:
        return None
    try:
        return piece.decode().replace(" ", SPACE)
    except UnicodeDecodeError:
        return None


def _byte_level(data: TokenizerData) -> TokenizerParts:
    regular = data.pieces[: data.bos_id]
    missing = N_BYTES - len({piece for piece in regular if len(piece) == 1})
    if missing:
        raise FormatError(
            f"{data.source}: this version does not read this kind of vocabulary: it is neither SentencePiece's, with "
            f"256 consecutive byte pieces, nor byte-level ({missing} of the 256 bytes are missing before the BOS, "
            f"{data.bos_id}). Convert the tokenizer of a Llama, Mistral or Qwen model."
        )
    ranks = {piece: token for token, piece in enumerate(regular)}
    if len(ranks) != len(regular):
        twice = next(piece for token, piece in enumerate(regular) if ranks[piece] != token)
        raise FormatError(f"{data.source}: two tokens are {twice!r}; expected each piece once. Convert it again.")
    bpe = rank_encoder(ranks, inferred(regular), data.source)
    ends = {data.bos_id, *data.eos_ids}
    named = _names(data.pieces, range(data.bos_id, len(data.pieces)))
    specials = {name: token for name, token in named.items() if token in ends or _CONTROL_NAME.fullmatch(name)}
    texts = {name: token for name, token in named.items() if name not in specials}
    silent = frozenset({*ends, *range(data.bos_id, len(data.pieces))} - set(texts.values()))
    pieces = dict(enumerate(data.pieces))
    # A model without a BOS has its first special token as bos_id, and that is an EOS.
    has_bos = data.add_bos or data.bos_id not in data.eos_ids
    return TokenizerParts(
        source=data.source,
        pieces=pieces,
        silent=silent,
        specials=specials,
        plain_encoder=with_names(bpe, texts),
        special_encoder=with_names(bpe, named),
        bos_id=data.bos_id if has_bos else None,
        eos_ids=checked_ids(data.source, data.bos_id, data.eos_ids, pieces),
        add_bos=data.add_bos,
        templates=_templates(data),
    )


def _names(pieces: Sequence[bytes], tokens: Iterable[int]) -> dict[str, int]:
    return {pieces[token].decode("utf-8", "replace"): token for token in tokens}


def _templates(data: TokenizerData) -> dict[str, str]:
    return {} if data.chat_template is None else {"default": data.chat_template}
