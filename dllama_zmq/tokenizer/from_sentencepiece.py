"""The parts of a tokenizer from a SentencePiece model and its Hugging Face configuration. Knows no file."""

from __future__ import annotations

import math

from dllama_zmq.errors import FormatError
from dllama_zmq.tokenizer.config import Config
from dllama_zmq.tokenizer.data import TokenizerParts, checked_ids
from dllama_zmq.tokenizer.encoders import sentencepiece_library, with_names
from dllama_zmq.tokenizer.sentencepiece_model import SPACE, printed, without_prefix


def parts_of_sentencepiece(
    data: bytes, config: Config, source: str, bos_id: int | None = None, eos_id: int | None = None
) -> TokenizerParts:
    """The parts of the serialized model `data`. Raises FormatError if it is damaged.

    bos_id, eos_id: used if `config` does not name them; None means those of the model.
    """
    if config.prefix is False:
        data = without_prefix(data)
    library = sentencepiece_library(data, source)
    ids = range(library.GetPieceSize())
    try:
        names: list[str] = library.IdToPiece(list(ids))
    except UnicodeDecodeError as error:
        raise FormatError(f"{source}: a piece is not UTF-8 text. The file is damaged; get it again.") from error
    if not all(math.isfinite(library.GetScore(token)) for token in ids):
        raise FormatError(f"{source}: a piece has a score that is no number. The file is damaged; get it again.")
    puts_space = library.Normalize("a").startswith(SPACE)
    plain_encoder = inside = library.EncodeAsIds
    if puts_space and not config.legacy:  # after a special token, too, Hugging Face's "legacy" puts a space
        inside = sentencepiece_library(without_prefix(data), source).EncodeAsIds
    pieces = {token: printed(name) for token, name in enumerate(names) if not library.IsUnused(token)}
    in_bytes = frozenset(token for token in pieces if library.IsByte(token))
    specials = {names[token]: token for token in pieces if library.IsControl(token) or library.IsUnknown(token)}
    silent = set(specials.values())
    ids_by_text = {name: token for token, name in enumerate(names)}
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
    given = (library.bos_id() if bos_id is None else bos_id), (library.eos_id() if eos_id is None else eos_id)
    bos_id, eos_id = (
        config.token_id(key, named, source, token if token >= 0 else None)
        for key, token in zip(("bos_token", "eos_token"), given, strict=True)
    )
    eos_ids = checked_ids(source, bos_id, config.ends(eos_id, {**texts, **specials}, pieces), pieces)
    for control in {*([] if bos_id is None else [bos_id]), *eos_ids} - silent:
        silent.add(control)
        specials[pieces[control].decode("utf-8", "replace")] = control
        texts.pop(pieces[control].decode("utf-8", "replace"), None)
    return TokenizerParts(
        source=source,
        pieces=pieces,
        silent=frozenset(silent),
        specials=specials,
        plain_encoder=with_names(plain_encoder, texts, inside),
        special_encoder=with_names(plain_encoder, {**texts, **specials}, inside),
        bos_id=bos_id,
        eos_ids=eos_ids,
        add_bos=bos_id is not None and config.add_bos is not False,
        dummy_prefix=puts_space,
        each_byte=True,
        kept=in_bytes,
        drops_all=SPACE * 2 not in library.Normalize("a  b"),
        templates=config.templates,
        words=config.words,
        texts=texts,
        notes=config.notes,
    )
