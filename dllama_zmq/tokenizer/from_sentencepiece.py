"""The parts of a tokenizer from a SentencePiece model and its Hugging Face configuration. Knows no file."""

from __future__ import annotations

from dataclasses import replace

from dllama_zmq.errors import UnsupportedModel
from dllama_zmq.tokenizer.config import Config
from dllama_zmq.tokenizer.data import TokenizerParts, checked_ids
from dllama_zmq.tokenizer.encoders import sentencepiece_encoder, with_names
from dllama_zmq.tokenizer.sentencepiece_model import (
    BPE,
    BYTE,
    CHAR,
    CONTROL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    WORD,
    Model,
    piece_bytes,
    read_model,
    without_prefix,
)

_OTHER_KINDS = {WORD: "word", CHAR: "character"}


def parts_of_sentencepiece(data: bytes, config: Config, source: str) -> TokenizerParts:
    """The parts of a `tokenizer.model`. Raises FormatError for damaged bytes, UnsupportedModel for other models."""
    model = read_model(data, source)
    if model.kind not in (UNIGRAM, BPE):
        raise UnsupportedModel(
            f"{source}: a SentencePiece model of kind {_OTHER_KINDS.get(model.kind, model.kind)}; "
            f"this version reads BPE and unigram models."
        )
    return parts_of_model(model, data, config, source)


def parts_of_model(model: Model, data: bytes, config: Config, source: str) -> TokenizerParts:
    """The parts of `model`; `data` is its serialized form."""
    if config.prefix is False and model.dummy_prefix:
        model, data = replace(model, dummy_prefix=False), without_prefix(data)
    plain = sentencepiece_encoder(data, source)
    # After a special token, too, Hugging Face's "legacy" puts a space.
    bare = model.dummy_prefix and not config.legacy
    inside = sentencepiece_encoder(without_prefix(data), source) if bare else plain
    pieces = {token: piece_bytes(piece) for token, piece in enumerate(model.pieces) if piece.kind != UNUSED}
    specials = {piece.text: token for token, piece in enumerate(model.pieces) if piece.kind in (CONTROL, UNKNOWN)}
    silent = set(specials.values())
    ids_by_text = {piece.text: token for token, piece in enumerate(model.pieces)}
    texts: dict[str, int] = {}
    for token, added in config.added.items():
        if token not in pieces:
            pieces[token] = added.content.encode("utf-8", "replace")
        elif ids_by_text.get(added.content) == token and not added.special:
            continue  # an ordinary piece
        if added.special:
            specials[added.content] = token
            silent.add(token)
        else:
            texts[added.content] = token
    named = {**ids_by_text, **texts, **specials}
    bos_id = config.token_id("bos_token", named, source, model.bos_id if model.bos_id >= 0 else None)
    eos_id = config.token_id("eos_token", named, source, model.eos_id if model.eos_id >= 0 else None)
    eos_ids = checked_ids(source, bos_id, config.ends(eos_id, {**texts, **specials}, pieces), pieces)
    for control in {*([] if bos_id is None else [bos_id]), *eos_ids} - silent:
        silent.add(control)
        specials[pieces[control].decode("utf-8", "replace")] = control
        texts.pop(pieces[control].decode("utf-8", "replace"), None)
    add_bos = bos_id is not None and (True if config.add_bos is None else config.add_bos)

    return TokenizerParts(
        source=source,
        pieces=pieces,
        silent=frozenset(silent),
        specials=specials,
        plain=with_names(plain, texts, inside),
        marked=with_names(plain, {**texts, **specials}, inside),
        bos_id=bos_id,
        eos_ids=eos_ids,
        add_bos=add_bos,
        dummy_prefix=model.dummy_prefix,
        each_byte=True,
        kept=frozenset(token for token, piece in enumerate(model.pieces) if piece.kind == BYTE),
        drops_all=model.remove_extra_spaces,
        templates=config.templates,
        words=config.words,
        texts=texts,
        notes=config.notes,
    )
