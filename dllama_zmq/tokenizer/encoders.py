"""Text to token ids, by the library that defines each kind of vocabulary. Knows no BOS, no decoding and no file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import sentencepiece
import tiktoken

from dllama_zmq.errors import FormatError
from dllama_zmq.tokenizer.data import TokenizerData
from dllama_zmq.tokenizer.sentencepiece_model import model_bytes

Encoder: TypeAlias = Callable[[str], list[int]]

# Source: Meta's llama-models, models/llama3/tokenizer.py (pat_str).
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sentencepiece_encoder(data: TokenizerData, first_byte: int) -> Encoder:
    """An encoder by SentencePiece's BPE. The byte pieces begin at id `first_byte`."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model_bytes(data, first_byte))
    except (RuntimeError, OSError) as error:
        raise FormatError(f"{data.source}: SentencePiece refuses this vocabulary: {error} Convert it again.") from error

    def encode(text: str) -> list[int]:
        tokens: list[int] = processor.EncodeAsIds(text)
        return tokens

    return encode


def byte_level_encoder(data: TokenizerData) -> Encoder:
    """An encoder by byte-level BPE, where a token's rank is its id and text is split as Llama 3 splits it.

    Tokens from the BOS on are special: no text becomes one of them.
    """
    regular = data.pieces[: data.bos_id]
    ranks = {piece: token for token, piece in enumerate(regular)}
    if len(ranks) != len(regular):
        twice = next(piece for token, piece in enumerate(regular) if ranks[piece] != token)
        raise FormatError(f"{data.source}: two tokens are {twice!r}; expected each piece once. Convert it again.")
    return tiktoken.Encoding("llama3", pat_str=_LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens={}).encode_ordinary
