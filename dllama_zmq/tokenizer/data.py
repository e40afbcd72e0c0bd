"""Vocabularies and the parts of a tokenizer as plain data. Knows no file and no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from msgspec import Struct, field

from dllama_zmq.errors import FormatError

N_BYTES = 256

Encoder: TypeAlias = Callable[[str], list[int]]


class TokenizerData(Struct, frozen=True):
    """The vocabulary of a `.t` file. `pieces[id]` is a token's text in bytes, with ' ' for SentencePiece's '▁'.

    The 256 byte pieces of a SentencePiece vocabulary are raw bytes, in order (see `byte_run`). `source` is the
    file, for messages.
    """

    pieces: list[bytes]
    scores: list[float]
    bos_id: int
    eos_ids: tuple[int, ...]
    add_bos: bool = True
    chat_template: str | None = None
    source: str = "tokenizer"

    @property
    def max_token_length(self) -> int:
        """Bytes of the longest piece."""
        return max(map(len, self.pieces), default=0)


class TokenizerParts(Struct, frozen=True):
    """The parts of a tokenizer, from any kind of file.

    Vocabulary: pieces: the text of each token by id, with gaps. silent: tokens that print nothing. specials: special
    tokens by name. texts: added tokens by name, which are recognized in any text. Encoding: plain_encoder: names of
    special tokens are ordinary text. special_encoder: they become these tokens. Decoding: dummy_prefix: `plain_encoder`
    puts a space before a text. drops_all: all spaces at the start are dropped. kept: tokens whose space is never
    dropped. each_byte: one U+FFFD for each byte that is not UTF-8 (see IncrementalDecoder). words: names of tokens for
    chat templates, by key (`bos_token`, ...). notes: warnings about the file, for the user.
    """

    source: str
    pieces: Mapping[int, bytes]
    silent: frozenset[int]
    specials: Mapping[str, int]
    plain_encoder: Encoder
    special_encoder: Encoder
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    dummy_prefix: bool = False
    each_byte: bool = False
    kept: frozenset[int] = frozenset()
    drops_all: bool = False
    templates: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def byte_run(pieces: list[bytes]) -> int | None:
    """The id of byte 0x00 if the 256 byte pieces are consecutive, as in SentencePiece; else None.

    A byte piece is a raw byte or the text `<0xNN>`: converters differ.
    """
    for first, piece in enumerate(pieces[: len(pieces) - N_BYTES + 1]):
        if piece in (b"\x00", b"<0x00>") and all(
            pieces[first + value] in (bytes([value]), b"<0x%02X>" % value) for value in range(N_BYTES)
        ):
            return first
    return None


def checked_ids(
    source: str, bos_id: int | None, eos_ids: Iterable[int], pieces: Mapping[int, bytes]
) -> tuple[int, ...]:
    """The EOS ids without duplicates. Raises FormatError if there is none, or if one of them or the BOS is no token."""
    ends = tuple(dict.fromkeys(eos_ids))
    for name, token in (("bos id", bos_id), *(("eos id", eos) for eos in ends)):
        if token is not None and token not in pieces:
            raise FormatError(
                f"{source}: {name} is {token}, which is not a token of this vocabulary. Get the files again."
            )
    if not ends:
        raise FormatError(f"{source}: no EOS id is given; generation would never end. Get the files again.")
    return ends


END_OF_TURN = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
)
"""Special tokens that end an answer in every model that has them; the first five also end a turn."""
