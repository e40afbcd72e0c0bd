"""The parts of a tokenizer from the vocabulary of a `.t` file, and back. See FORMATS.md §3. Knows no file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.tokenizer.data import N_BYTES, TokenizerData, TokenizerParts, byte_run, checked_ids
from dllama_zmq.tokenizer.encoders import (
    Merge,
    byte_level_encoder,
    rank_merges,
    sentencepiece_encoder,
    with_names,
)
from dllama_zmq.tokenizer.pretokenizers import PreTokenizer, inferred
from dllama_zmq.tokenizer.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Model,
    Piece,
    byte_name,
    piece_bytes,
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
    plain = sentencepiece_encoder(write_model(model), data.source)
    names = _names(data.pieces, controls)
    pieces = dict(enumerate(data.pieces))
    return TokenizerParts(
        source=data.source,
        pieces=pieces,
        silent=frozenset(controls),
        specials=names,
        plain=plain,
        marked=with_names(plain, names),
        bos_id=data.bos_id,
        eos_ids=checked_ids(data.source, data.bos_id, data.eos_ids, pieces),
        add_bos=data.add_bos,
        dummy_prefix=True,
        each_byte=True,
        kept=frozenset({first_byte + ord(" ")}),
        to_data=lambda parts: data,
        templates=_templates(data),
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
    merges, reached = rank_merges(ranks)
    bpe = byte_level_encoder(ranks, merges, inferred(regular), data.source, whole=not reached)
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
        plain=with_names(bpe, texts),
        marked=with_names(bpe, named),
        bos_id=data.bos_id if has_bos else None,
        eos_ids=checked_ids(data.source, data.bos_id, data.eos_ids, pieces),
        add_bos=data.add_bos,
        dummy_prefix=False,
        to_data=lambda parts: data,
        templates=_templates(data),
    )


def _names(pieces: Sequence[bytes], tokens: Iterable[int]) -> dict[str, int]:
    return {pieces[token].decode("utf-8", "replace"): token for token in tokens}


def _templates(data: TokenizerData) -> dict[str, str]:
    return {} if data.chat_template is None else {"default": data.chat_template}


def sentencepiece_data(model: Model, extra: Mapping[int, bytes], parts: TokenizerParts) -> TokenizerData:
    """The `.t` form of a SentencePiece model with the added tokens `extra`; `parts` has the rest.

    Raises UnsupportedModel if that would encode differently.
    """
    n_model = len(model.pieces)
    reasons = {
        "it is a unigram model": model.kind != 2,
        "it has no byte pieces in a row": byte_run([piece_bytes(piece) for piece in model.pieces]) is None,
        "it puts no space before a text": not model.dummy_prefix,
        "it removes extra spaces": model.remove_extra_spaces,
        "it normalizes text": bool(model.charsmap),
        "it has pieces that are found whole in a text": any(piece.kind == USER_DEFINED for piece in model.pieces),
        "it has no BOS": parts.bos_id is None,
        "its added tokens leave gaps": sorted(extra) != list(range(n_model, n_model + len(extra))),
    }
    refuse_t(parts.source, [reason for reason, holds in reasons.items() if holds])
    pieces = [piece_bytes(piece) for piece in model.pieces]
    for token, piece in enumerate(model.pieces):
        if piece.kind == UNKNOWN:
            pieces[token] = UNKNOWN_PIECE
    pieces += [extra[token] for token in sorted(extra)]
    scores = [0.0 if piece.kind == CONTROL else piece.score for piece in model.pieces] + [0.0] * len(extra)
    return _data(pieces, scores, parts, 0)


def byte_level_data(
    ids: Mapping[bytes, int],
    merges: Sequence[Merge],
    added: Mapping[int, bytes],
    pre: PreTokenizer,
    whole: bool,
    parts: TokenizerParts,
) -> TokenizerData:
    """The `.t` form of a byte-level vocabulary; `parts` has what is not in the other arguments.

    ids: the pieces that text becomes. added: all other tokens. Raises UnsupportedModel if the file would encode
    differently.
    """
    ranks = {token: piece for piece, token in ids.items()}
    n_regular = len(ranks)
    order = [ids[left + right] for left, right in merges if left + right in ids]
    made = {left + right for left, right in merges}
    guess = inferred(list(ids))
    other_split = (guess.splits, guess.nfc) != (pre.splits, pre.nfc)
    unreached = [piece for piece in ids if len(piece) > 1 and piece not in made]
    n_all = max([*added, n_regular - 1]) + 1
    reasons = {
        "its ordinary tokens are not the first ones": set(ranks) != set(range(n_regular)),
        "its merges are not in the order of its tokens": any(a > b for a, b in itertools.pairwise(order)),
        "it has tokens that no merge makes": bool(unreached) and not whole,
        f"it splits text as {pre.name}, and a .t file of this vocabulary would be read as {guess.name}": other_split,
        "it has no special token": not added,
        "its BOS is not the first of its special tokens": parts.bos_id is not None
        and any(token < parts.bos_id for token in added),
        "its special tokens have wide gaps": n_all - n_regular > 2 * len(added) + 64,
    }
    refuse_t(parts.source, [reason for reason, holds in reasons.items() if holds])
    pieces = [ranks[token] for token in range(n_regular)]
    pieces += [added.get(token) or b"<|unused_%d|>" % token for token in range(n_regular, n_all)]
    scores = [-float(token) for token in range(n_all)]
    return _data(pieces, scores, parts, n_regular)


def _data(pieces: list[bytes], scores: list[float], parts: TokenizerParts, no_bos_id: int) -> TokenizerData:
    bos_id = no_bos_id if parts.bos_id is None else parts.bos_id
    add_bos = parts.add_bos and parts.bos_id is not None
    return TokenizerData(pieces, scores, bos_id, parts.eos_ids, add_bos, parts.templates.get("default"), parts.source)


def refuse_t(source: str, reasons: Sequence[str]) -> None:
    """Raise UnsupportedModel if there are `reasons` why a `.t` file would encode differently."""
    if reasons:
        raise UnsupportedModel(
            f"{source}: a .t file of this tokenizer would encode differently: {'; '.join(reasons)}. "
            f"Use the tokenizer's own file."
        )
