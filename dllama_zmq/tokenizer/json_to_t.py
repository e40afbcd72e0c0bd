"""The vocabulary of a tokenizer.json in `.t` form, if that encodes the same. Knows no file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from dllama_zmq.errors import UnsupportedModel
from dllama_zmq.tokenizer.data import TokenizerData, TokenizerParts
from dllama_zmq.tokenizer.encoders import to_bytes
from dllama_zmq.tokenizer.from_t import byte_level_data, refuse_t, sentencepiece_data
from dllama_zmq.tokenizer.json_file import JsonFile, Steps
from dllama_zmq.tokenizer.pretokenizers import GPT2_SPLIT, PreTokenizer
from dllama_zmq.tokenizer.sentencepiece_model import BYTE, BYTE_NAMES, CONTROL, NORMAL, SPACE, UNKNOWN, Model, Piece


def t_of_json(file: JsonFile, steps: Steps, byte_level: bool, parts: TokenizerParts) -> TokenizerData:
    """The `.t` form of `parts`, which were made of `file`. Raises UnsupportedModel if it would encode differently."""
    pre, vocab = splits(steps), file.model.vocab
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in file.model.merges]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if not byte_level and isinstance(vocab, dict):
        model = _sentencepiece_model(file, vocab, merges, steps, parts.source)
        return sentencepiece_data(model, {}, parts)
    if pre is None or isinstance(vocab, list):
        raise UnsupportedModel(
            f"{parts.source}: a .t file can hold byte-level vocabularies that are split only by patterns, and "
            f"SentencePiece's BPE; this is neither. Use the tokenizer's own file."
        )
    added = {entry.id: entry.content.encode("utf-8", "replace") for entry in file.added_tokens}
    ids = {to_bytes(piece): token for piece, token in vocab.items() if token not in added}
    ranked = [(to_bytes(left), to_bytes(right)) for left, right in merges]
    return byte_level_data(ids, ranked, added, pre, file.model.ignore_merges, parts)


def splits(steps: Steps) -> PreTokenizer | None:
    """The pre-tokenizer as patterns; None if it has other steps."""
    found: list[str] = []
    for step in steps.pre_tokenizer:
        pattern = step.get("pattern")
        if step["type"] == "Split" and isinstance(pattern, dict) and "Regex" in pattern:
            if step.get("behavior") != "Isolated" or step.get("invert"):
                return None
            found.append(pattern["Regex"])
        elif step["type"] == "Digits" and step.get("individual_digits"):
            found.append(r"\p{N}")
        elif step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            found += [GPT2_SPLIT] if step.get("use_regex", True) else []
        else:
            return None
    normalizer = [step["type"] for step in steps.normalizer]
    if normalizer not in ([], ["NFC"]):
        return None
    return PreTokenizer("its own patterns do", tuple(found), nfc=bool(normalizer))


def _sentencepiece_model(
    file: JsonFile, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], steps: Steps, source: str
) -> Model:
    """The SentencePiece model that encodes as this file does.

    The score of a piece is the rank of its merges. SentencePiece merges any two pieces that make a piece, so all such
    merges must be listed, one after another for each piece.
    """
    groups = [piece for piece, _ in itertools.groupby(left + right for left, right in merges)]
    scores = {piece: -float(rank) for rank, piece in enumerate(groups)}
    n_cuts = sum(piece[:n] in vocab and piece[n:] in vocab for piece in vocab for n in range(1, len(piece)))
    prefixed = [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    reasons = {
        "its merges are not those of a SentencePiece model": n_cuts != len(set(merges)) or len(scores) != len(groups),
        "it normalizes or splits text": steps.normalizer != prefixed or bool(steps.pre_tokenizer),
        "it has no bytes to fall back to": not file.model.byte_fallback or not BYTE_NAMES.keys() <= vocab.keys(),
        "its ids have gaps": sorted(vocab.values()) != list(range(len(vocab))),
        "it has no unknown token": file.model.unk_token not in vocab,
        "it has tokens beside its vocabulary, or found in any text": any(
            entry.content not in vocab or not entry.special for entry in file.added_tokens
        ),
    }
    refuse_t(source, [reason for reason, holds in reasons.items() if holds])
    specials = {entry.content for entry in file.added_tokens}
    pieces: list[Piece] = []
    for piece, token in sorted(vocab.items(), key=lambda item: item[1]):
        kind = CONTROL if piece in specials else BYTE if piece in BYTE_NAMES else NORMAL
        score = scores.get(piece, -float(len(merges) + token)) if kind == NORMAL else 0.0
        pieces.append(Piece(piece, score, UNKNOWN if piece == file.model.unk_token else kind))
    return Model(pieces)
