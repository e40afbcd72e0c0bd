"""The parts of a tokenizer from a Hugging Face tokenizer.json, run by the tokenizers library. Knows no file.

Source: the serialization of huggingface/tokenizers. What the library does not check is checked here.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.tokenizer.bounded import BoundedEncoders
from dllama_zmq.tokenizer.config import ENDS_TEXTS, MAX_TOKEN_ID, Config
from dllama_zmq.tokenizer.data import END_OF_TURN, Encoder, TokenizerParts, checked_ids
from dllama_zmq.tokenizer.encoders import library_encoder, library_errors, to_bytes
from dllama_zmq.tokenizer.json_file import AddedEntry, JsonFile, Steps, read_json
from dllama_zmq.tokenizer.sentencepiece_model import SPACE, printed

if TYPE_CHECKING:
    import tokenizers

_OTHER_PREFIX = (
    "tokenizer_config.json has add_prefix_space: false, but this file puts a space before a text, and so does this "
    "version; if the answers make no sense, correct the wrong one"
)
_MANY_BEFORE = "it puts {} tokens before a text, but this version only the first; write the others into the prompt"
_DROPOUT = (
    "it has a dropout of {:g}, which is for training: the same text would be other tokens each time; it is switched off"
)
_BYTE_LEVEL_DECODERS = ("ByteLevel", "Fuse")
_SPACED_DECODERS = ("Metaspace", "Replace", "ByteFallback", "Fuse", "Strip")
_ADDED_DEFAULTS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def parts_of_json(text: str, config: Config, source: str) -> TokenizerParts:
    """The parts of a tokenizer.json: BPE or unigram, byte-level or with SentencePiece's '▁'."""
    file, steps = read_json(text, source)
    byte_level = any(step["type"] == "ByteLevel" for step in (*steps.decoder, *steps.pre_tokenizer))
    if not byte_level and not _is_spaced(steps):
        raise UnsupportedModel(
            f"{source}: a decoder of {[step['type'] for step in steps.decoder]}; this version reads byte-level "
            f"tokenizers (ByteLevel) and those with SentencePiece's spaces (Metaspace, or Replace of '▁')."
        )
    known = _BYTE_LEVEL_DECODERS if byte_level else _SPACED_DECODERS
    for step in steps.decoder:
        if step["type"] not in known:
            raise UnsupportedModel(
                f"{source}: the decoder has a step {step['type'][:40]!r}; this version supports {', '.join(known)}."
            )
    return _parts(file, text, steps, byte_level, config, source)


def _parts(file: JsonFile, text: str, steps: Steps, byte_level: bool, config: Config, source: str) -> TokenizerParts:
    notes = list(config.notes)
    if file.model.dropout:
        notes.append(_DROPOUT.format(file.model.dropout))
    text = _with_config(file, text, config)
    ids = vocabulary_of(file)
    for added in file.added_tokens:
        # The library ignores the ids of added tokens: it uses the vocabulary's, or the next free one.
        ids.setdefault(added.content, added.id)
        if ids[added.content] != added.id or not added.content:
            raise FormatError(
                f"{source}: added token {added.content[:60]!r} has the ids {added.id} and {ids[added.content]}; "
                "expected one. Get the file again."
            )
    for piece, token in ids.items():
        if not 0 <= token < MAX_TOKEN_ID:
            raise FormatError(f"{source}: token {piece[:60]!r} has the id {token}; expected 0 to {MAX_TOKEN_ID - 1}.")
    library = _load(text if steps.quick else _without_patterns(text), source)
    specials = {added.content: added.id for added in file.added_tokens if added.special}
    texts = {added.content: added.id for added in file.added_tokens if not added.special}
    for added in file.added_tokens:
        if library.token_to_id(added.content) != added.id:
            raise FormatError(
                f"{source}: added token {added.content[:60]!r} has id {added.id}, but the library gives it "
                f"{library.token_to_id(added.content)}; the ids before it have gaps."
            )
    bytes_of = to_bytes if byte_level else printed
    pieces = {token: bytes_of(piece) for piece, token in ids.items()}
    before, after = _tokens_around(library, source)
    begun = [token for token in before if token in specials.values()]
    by_processor = begun[0] if begun else None
    if len(begun) > 1:
        notes.append(_MANY_BEFORE.format(len(begun)))
    if after and not config.add_eos:
        notes.append(ENDS_TEXTS)
    if config.prefix is False and not byte_level and _puts_space(steps):
        notes.append(_OTHER_PREFIX)
    bos_id = config.token_id("bos_token", ids, source, by_processor)
    eos_id = config.token_id("eos_token", ids, source, None)
    eos_ids = checked_ids(source, bos_id, config.ends(eos_id, specials, pieces), pieces)
    add_bos = bos_id is not None and (by_processor == bos_id if config.add_bos is None else config.add_bos)
    unnamed = _without_special_names(text, file, specials, source)
    plain_encoder, special_encoder = _encoders(text, unnamed, steps.quick, library, source)

    return TokenizerParts(
        source=source,
        pieces=pieces,
        silent=frozenset(specials.values()),
        specials=specials,
        plain_encoder=plain_encoder,
        special_encoder=special_encoder,
        bos_id=bos_id,
        eos_ids=eos_ids,
        add_bos=add_bos,
        each_byte=not byte_level,
        dummy_prefix=not byte_level and _puts_space(steps),
        templates=config.templates,
        words=config.words,
        texts=texts,
        notes=tuple(notes),
    )


def vocabulary_of(file: JsonFile) -> dict[str, int]:
    """The model's pieces with their ids."""
    vocabulary = file.model.vocab
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    return {piece: token for token, (piece, _) in enumerate(vocabulary)}


def _with_config(file: JsonFile, text: str, config: Config) -> str:
    """`text` with changes from the files beside it and without dropout; `file` is changed in the same way.

    Tokens that only tokenizer_config.json has are added, as in transformers. Tokens that end texts become special: they
    print nothing, and no prompt contains them by accident.
    """
    ids = vocabulary_of(file) | {entry.content: entry.id for entry in file.added_tokens}
    changed = False
    for token, added in sorted(config.added.items()):
        if added.content not in ids and token == max(ids.values(), default=-1) + 1:
            file.added_tokens.append(AddedEntry(token, added.content, added.special))
            ids[added.content] = token
            changed = True
    ends = {config.words.get("bos_token"), config.words.get("eos_token")}
    if config.end_ids is None:
        ends |= set(END_OF_TURN)
    end_ids = {*(config.end_ids or ()), *config.some_ends}
    for entry in file.added_tokens:
        if not entry.special and (entry.content in ends or entry.id in end_ids):
            entry.special = changed = True
    if not changed and not file.model.dropout:
        return text
    data = json.loads(text)
    data["model"]["dropout"] = None
    known = {entry.get("content"): entry for entry in data.get("added_tokens", [])}
    data["added_tokens"] = [
        {
            **_ADDED_DEFAULTS,
            **known.get(entry.content, {}),
            "id": entry.id,
            "content": entry.content,
            "special": entry.special,
        }
        for entry in file.added_tokens
    ]
    return json.dumps(data)


def _load(text: str, source: str) -> tokenizers.Tokenizer:
    import tokenizers  # here, so that only a root with such a file pays for the import

    with library_errors(FormatError, f"{source}: the tokenizers library refuses this file", ". Get it again."):
        loaded = tokenizers.Tokenizer.from_str(text)
    loaded.no_truncation()  # settings of the training; transformers, too, switches both off
    loaded.no_padding()
    return loaded


def _without_patterns(text: str) -> str:
    """The file without its patterns, for everything but encoding."""
    return json.dumps(json.loads(text) | {"normalizer": None, "pre_tokenizer": None})


def _encoders(
    text: str, unnamed: str | None, quick: bool, library: tokenizers.Tokenizer, source: str
) -> tuple[Encoder, Encoder]:
    """An encoder for which names of special tokens are text, and one for which they are tokens.

    unnamed: the file in which they are text, if the library's flag is not enough (`_without_special_names`). quick: as
    `Steps.quick`.
    """
    if not quick:
        encoders = BoundedEncoders([text] if unnamed is None else [text, unnamed], source)
        return encoders.encoder(0, True) if unnamed is None else encoders.encoder(1), encoders.encoder(0)
    lock = Lock()
    special_encoder = library_encoder(library, source, lock=lock)
    if unnamed is None:
        return library_encoder(library, source, names_are_text=True, lock=lock), special_encoder
    return library_encoder(_load(unnamed, source), source), special_encoder


def _without_special_names(text: str, file: JsonFile, specials: Mapping[str, int], source: str) -> str | None:
    """The file in which names of special tokens are text; None if the library's flag is enough.

    A unigram model, and a BPE model with ignore_merges, finds such names in its vocabulary. There they are replaced by
    random names.
    """
    vocab = file.model.vocab
    within = {name for name in specials if name in (vocab if isinstance(vocab, dict) else dict(vocab))}
    if not within or (isinstance(vocab, dict) and not file.model.ignore_merges):
        return None
    secret = secrets.token_hex(16)

    def renamed(piece: str) -> str:
        return f"{secret} {specials[piece]}" if piece in within and piece != file.model.unk_token else piece

    unnamed = json.loads(text)
    ordinary = [entry for entry in file.added_tokens if not entry.special]
    unnamed["added_tokens"] = [entry for entry in unnamed["added_tokens"] if not entry.get("special")]
    unnamed["post_processor"] = None
    if isinstance(vocab, dict):
        unnamed["model"]["vocab"] = {renamed(piece): token for piece, token in vocab.items()}
        unnamed["model"]["vocab"].update((entry.content, entry.id) for entry in ordinary)
    else:
        unnamed["model"]["vocab"] = [[renamed(piece), score] for piece, score in vocab]
    other = _load(json.dumps(unnamed | {"normalizer": None, "pre_tokenizer": None}), source)
    if any(other.token_to_id(entry.content) != entry.id for entry in ordinary):
        raise UnsupportedModel(
            f"{source}: it has added tokens beyond a vocabulary with special tokens; use a .t or .model file."
        )
    return json.dumps(unnamed)


def _tokens_around(library: tokenizers.Tokenizer, source: str) -> tuple[list[int], list[int]]:
    """The tokens that the file's post-processor puts before a text, and after it."""
    with library_errors(FormatError, f"{source}: the tokenizers library cannot run this file", ". Get it again."):
        ids: list[int] = library.encode("a", add_special_tokens=True).ids
        alone: list[int] = library.encode("a", add_special_tokens=False).ids
    n_before = next((n for n in range(len(ids) + 1) if ids[n : n + len(alone)] == alone), 0) if alone else 1
    return ids[:n_before], ids[n_before + len(alone) :]


def _is_spaced(steps: Steps) -> bool:
    return any(
        step["type"] == "Metaspace" or (step["type"] == "Replace" and step.get("pattern") == {"String": SPACE})
        for step in steps.decoder
    )


def _puts_space(steps: Steps) -> bool:
    """Whether the decoder drops the first space of a text."""
    return any(
        (step["type"] == "Strip" and step.get("content") == " " and step.get("start"))
        or (
            step["type"] == "Metaspace"
            and step.get("prepend_scheme", "always") != "never"
            and step.get("add_prefix_space", True)
        )
        for step in steps.decoder
    )
