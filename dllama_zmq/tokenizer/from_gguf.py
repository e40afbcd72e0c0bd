"""The parts of a tokenizer from the metadata of a GGUF file. Knows no file, only plain values by key.

Source: the keys under `tokenizer.` of ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.threads import converted_by_threads
from dllama_zmq.tokenizer.config import ENDS_TEXTS, MAX_TEMPLATE_CHARS, AddedToken, Config
from dllama_zmq.tokenizer.data import END_OF_TURN, TokenizerParts, checked_ids
from dllama_zmq.tokenizer.encoders import Merge, byte_level_encoder, with_names, written_bytes
from dllama_zmq.tokenizer.from_sentencepiece import parts_of_sentencepiece
from dllama_zmq.tokenizer.pretokenizers import pretokenizer
from dllama_zmq.tokenizer.sentencepiece_model import (
    BYTE,
    BYTE_NAMES,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Model,
    Piece,
    write_model,
)
from dllama_zmq.typed import typed

_TEMPLATE = "tokenizer.chat_template"
_NONE = (-1, (1 << 32) - 1)
"""Ids that mean "no such token"."""
_NO_PRE = (
    "the file does not say how to split text (tokenizer.ggml.pre is missing), so tokens may differ from those that the "
    "model was trained with: get a newer file of the model, or give its tokenizer.json"
)
_NOT_NEEDED = ("padding_token_id", "unknown_token_id")


def parts_of_gguf(metadata: Mapping[str, Any], source: str) -> TokenizerParts:
    """The parts of the tokenizer in a GGUF file."""
    keys = _Keys(metadata, source)
    kind = keys.own.model
    if kind == "llama":
        return _sentencepiece(keys)
    if kind == "gpt2":
        return _byte_level(keys)
    raise UnsupportedModel(
        f"{source}: tokenizer.ggml.model is {kind[:60]!r}; this version reads llama (SentencePiece BPE) and gpt2 "
        f"(byte-level BPE). The tokenizer.json of the same model would do."
    )


@converted_by_threads
class _Metadata(Struct, frozen=True, rename=lambda name: f"tokenizer.ggml.{name}"):
    """The keys that are read."""

    model: str = ""
    pre: str | None = None
    tokens: list[str] = []
    token_type: list[int] = []
    scores: list[float] = []
    merges: list[str] = []
    precompiled_charsmap: list[Annotated[int, Meta(ge=0, le=255)]] = []
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    eom_token_id: int | None = None
    unknown_token_id: int | None = None
    padding_token_id: int | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool = False
    add_space_prefix: bool = True
    remove_extra_whitespaces: bool = False


class _Keys:
    """The metadata of a tokenizer, checked: `own` has those under `tokenizer.ggml.`."""

    def __init__(self, metadata: Mapping[str, Any], source: str) -> None:
        self.source = source
        self.own = typed(metadata, _Metadata, source)
        self.tokens = self.own.tokens
        if not self.tokens:
            raise FormatError(
                f"{source}: this file has no tokenizer (tokenizer.ggml.tokens is missing or empty). The model's "
                "own, such as its tokenizer.json, would do."
            )
        kinds = self.own.token_type or [NORMAL] * len(self.tokens)
        self._check_length("token_type", kinds)
        # 0 is "undefined"; like llama.cpp, treat it and unknown types as normal.
        self.kinds = [kind if NORMAL <= kind <= BYTE else NORMAL for kind in kinds]
        for token, text in enumerate(self.tokens):
            if text in END_OF_TURN:  # whatever its type in the file
                self.kinds[token] = CONTROL
        found = {key: value for key, value in metadata.items() if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")}
        for key, value in found.items():
            if not isinstance(value, str) or len(value) > MAX_TEMPLATE_CHARS:
                raise FormatError(
                    f"{source}: {key} is {repr(value)[:60]}; expected a text of at most {MAX_TEMPLATE_CHARS} "
                    "characters. Get the file again."
                )
        self.templates = {key.removeprefix(_TEMPLATE).removeprefix(".") or "default": found[key] for key in found}

    def wrong(self, key: str, value: object, expected: str) -> FormatError:
        """The error for a wrong value."""
        return FormatError(
            f"{self.source}: tokenizer.ggml.{key} is {repr(value)[:60]}; expected {expected}. Get the file again."
        )

    def token(self, key: str, default: int | None = None) -> int | None:
        """The id at `key`; the default if it is missing or means "no such token". Raises FormatError if it is wrong."""
        value: int | None = getattr(self.own, key)
        if value in (None, *_NONE):
            value = default
        if value is None or (key in _NOT_NEEDED and value >= len(self.tokens)):
            return None
        if not 0 <= value < len(self.tokens):
            raise self.wrong(key, value, f"an id from 0 to {len(self.tokens) - 1}")
        return value

    def scores(self) -> list[float]:
        self._check_length("scores", self.own.scores)
        for token, score in enumerate(self.own.scores):
            if not math.isfinite(score):
                raise self.wrong(f"scores[{token}]", score, "a finite number")
        return self.own.scores

    def merges(self, ids: Container[str]) -> list[Merge]:
        """The merges of pieces in byte-level encoding; no text becomes any other. `ids` has all such pieces."""
        merges = []
        for index, text in enumerate(self.own.merges):
            left, _, right = text.partition(" ")
            if left in ids and right in ids and left + right in ids:
                merges.append((left, right))
            elif not (left and right) or " " in right:
                raise self.wrong(f"merges[{index}]", text, "two pieces and a space between them")
            elif written_bytes(left) is not None and written_bytes(right) is not None:
                raise FormatError(
                    f"{self.source}: tokenizer.ggml.merges[{index}] has pieces that are not tokens: {left[:40]!r} and "
                    f"{right[:40]!r}. Get the file again."
                )
        return merges

    def _check_length(self, key: str, values: list[Any]) -> None:
        if len(values) != len(self.tokens):
            raise FormatError(
                f"{self.source}: tokenizer.ggml.{key} has {len(values)} entries and tokenizer.ggml.tokens "
                f"{len(self.tokens)}; expected the same number. Get the file again."
            )


def _ends(keys: _Keys, eos_id: int | None, specials: Mapping[str, int]) -> tuple[int, ...]:
    """The tokens that end a text or a turn: by the file's keys, then by their names."""
    by_key = [eos_id, keys.token("eot_token_id"), keys.token("eom_token_id")]
    by_name = [specials[name] for name in END_OF_TURN if name in specials]
    return tuple(dict.fromkeys([token for token in (*by_key, *by_name) if token is not None]))


def _sentencepiece(keys: _Keys) -> TokenizerParts:
    kinds = _sentencepiece_kinds(keys)
    seen: set[str] = set()
    pieces: list[Piece] = []
    added: dict[int, AddedToken] = {}
    for token, (text, score, kind) in enumerate(zip(keys.tokens, keys.scores(), kinds, strict=True)):
        if kind == USER_DEFINED and text and SPACE not in text:
            added[token] = AddedToken(text, special=False)  # llama.cpp and Hugging Face split a text at these first
            text = ""
        if kind != UNKNOWN and (not text or "\x00" in text or text in seen):
            text, kind = f" {token}", UNUSED  # names must be unique; encoded text has no spaces, so none matches
        seen.add(text)
        pieces.append(Piece(text, score, kind))
    bos_id = keys.token("bos_token_id", 1 if len(pieces) > 2 else None)
    eos_id = keys.token("eos_token_id", 2 if len(pieces) > 2 else None)
    whole = pieces if UNKNOWN in kinds else [*pieces, Piece("<unk>" if "<unk>" not in seen else " unk", 0.0, UNKNOWN)]
    model = Model(
        whole,
        byte_fallback=BYTE in kinds,
        dummy_prefix=keys.own.add_space_prefix,
        remove_extra_spaces=keys.own.remove_extra_whitespaces,
        charsmap=bytes(keys.own.precompiled_charsmap),
        bos_id=-1 if bos_id is None else bos_id,
        eos_id=-1 if eos_id is None else eos_id,
    )
    specials = {piece.text: token for token, piece in enumerate(pieces) if piece.kind == CONTROL}
    config = Config(
        words=_words(keys),
        added=added,
        add_bos=keys.own.add_bos_token is not False,
        add_eos=keys.own.add_eos_token,
        end_ids=_ends(keys, eos_id, specials),
        templates=keys.templates,
    )
    none = -1
    ends = (none if token is None else token for token in (bos_id, eos_id))
    return parts_of_sentencepiece(write_model(model), config, keys.source, *ends)


def _sentencepiece_kinds(keys: _Keys) -> list[int]:
    """The kinds of the tokens. Byte tokens are found by name if all 256 exist; only one unknown token stays."""
    kinds = list(keys.kinds)
    ids = {text: token for token, text in reversed(list(enumerate(keys.tokens)))}
    if ids.keys() >= BYTE_NAMES.keys():
        for name in BYTE_NAMES:
            kinds[ids[name]] = BYTE
    unknown = [token for token, kind in enumerate(kinds) if kind == UNKNOWN]
    chosen = keys.token("unknown_token_id")
    if not unknown and chosen is not None and kinds[chosen] == CONTROL:  # as Gemma's files call it
        unknown, kinds[chosen] = [chosen], UNKNOWN
    needed = (keys.token("bos_token_id", 1), keys.token("eos_token_id", 2)) if len(kinds) > 2 else ()
    for token in unknown:  # the library allows one; the others only pad the vocabulary
        if token != (chosen if chosen in unknown else unknown[0]):
            kinds[token] = CONTROL if token in needed else UNUSED
    return kinds


def _byte_level(keys: _Keys) -> TokenizerParts:
    pre = pretokenizer(keys.own.pre or "default", keys.source)
    ids: dict[str, int] = {}
    pieces: dict[int, bytes] = {}
    named: dict[int, dict[str, int]] = {CONTROL: {}, USER_DEFINED: {}}
    for token, (text, kind) in enumerate(zip(keys.tokens, keys.kinds, strict=True)):
        if not text or kind == UNUSED:
            continue
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            pieces[token] = text.encode("utf-8", "replace")
            named[USER_DEFINED if kind == USER_DEFINED else CONTROL][text] = token
        elif (written := written_bytes(text)) is None:
            pieces[token] = text.encode("utf-8", "replace")  # is printed, but no text becomes it
        else:
            pieces[token] = written
            if text in ids:
                raise FormatError(
                    f"{keys.source}: tokenizer.ggml.tokens[{token}] is {text[:60]!r}, as another before it; "
                    f"expected each piece once. Get the file again."
                )
            ids[text] = token
    bpe = byte_level_encoder(ids, keys.merges(ids), pre, keys.source)
    bos_id, eos_id = keys.token("bos_token_id"), keys.token("eos_token_id")
    specials, texts = named[CONTROL], named[USER_DEFINED]
    for control in (bos_id, eos_id, keys.token("eot_token_id"), keys.token("eom_token_id")):
        if control is not None and texts.pop(keys.tokens[control], None) is not None:
            specials[keys.tokens[control]] = control
    eos_ids = checked_ids(keys.source, bos_id, _ends(keys, eos_id, specials), pieces)
    add_bos = (pre.whole if keys.own.add_bos_token is None else keys.own.add_bos_token) and bos_id is not None
    notes = [*([] if keys.own.pre is not None else [_NO_PRE]), *([ENDS_TEXTS] if keys.own.add_eos_token else [])]
    return TokenizerParts(
        source=keys.source,
        pieces=pieces,
        silent=frozenset({*specials.values(), *eos_ids}),
        specials=specials,
        plain_encoder=with_names(bpe, texts),
        special_encoder=with_names(bpe, {**texts, **specials}),
        bos_id=bos_id,
        eos_ids=eos_ids,
        add_bos=add_bos,
        templates=keys.templates,
        words=_words(keys),
        texts=texts,
        notes=tuple(notes),
    )


def _words(keys: _Keys) -> dict[str, str]:
    ids = {
        "bos_token": keys.token("bos_token_id"),
        "eos_token": keys.token("eos_token_id"),
        "unk_token": keys.token("unknown_token_id"),
        "pad_token": keys.token("padding_token_id"),
    }
    return {word: keys.tokens[token] for word, token in ids.items() if token is not None}
