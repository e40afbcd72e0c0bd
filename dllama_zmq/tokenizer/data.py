"""What a vocabulary is, as plain data, and what a tokenizer is made of. Knows no file and no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from dllama_zmq.errors import FormatError

N_BYTES = 256

Encoder: TypeAlias = Callable[[str], list[int]]


@dataclass(frozen=True)
class TokenizerData:
    """A vocabulary as a `.t` file has it: `pieces[id]` is the text of a token, in bytes, ' ' for SentencePiece's '▁'.

    A SentencePiece vocabulary holds its 256 byte pieces as one raw byte each, in order: see `byte_run`.
    `source` names the file it came from, for messages.
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


@dataclass(frozen=True)
class TokenizerParts:
    """What a tokenizer is made of, whatever kind of file it came from.

    pieces: each token's text by id; ids may be missing. silent: tokens that print nothing. specials: tokens by the
    names that stand for them where the caller asks. plain: encodes text, in which such names are text; marked: encodes
    text in which they are tokens. to_data: the `.t` form, or UnsupportedModel.
    dummy_prefix: `plain` puts a space before a text. drops_all: decoding drops every space at the start. kept: tokens
    whose space is never the one that was put. each_byte: how bytes that are no UTF-8 are shown, see IncrementalDecoder.
    words: names of tokens that chat templates use (`bos_token`, ...). texts: tokens by the names that stand for them in
    any text. notes: sentences for the user about what is odd in the file and was settled here.
    """

    source: str
    pieces: Mapping[int, bytes]
    silent: frozenset[int]
    specials: Mapping[str, int]
    plain: Encoder
    marked: Encoder
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    dummy_prefix: bool
    to_data: Callable[[], TokenizerData]
    each_byte: bool = False
    kept: frozenset[int] = frozenset()
    drops_all: bool = False
    templates: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def byte_run(pieces: list[bytes]) -> int | None:
    """The id of byte 0x00 where the 256 byte pieces stand one after another, as SentencePiece has them; else None.

    They may be raw bytes or the text `<0xNN>`: converters differ.
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
    """The EOS ids, each once. Raises FormatError where one of them or the BOS is no token, or there is no EOS."""
    ends = tuple(dict.fromkeys(eos_ids))
    for name, token in (("bos id", bos_id), *(("eos id", eos) for eos in ends)):
        if token is not None and token not in pieces:
            raise FormatError(
                f"{source}: {name} is {token}, which is no token of this vocabulary. Get the files again."
            )
    if not ends:
        raise FormatError(f"{source}: no EOS id is given; generation would never end. Get the files again.")
    return ends


END_OF_TURN = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
)  # fmt: skip
"""Names of special tokens that end an answer in every model that has them; the first five also end a turn."""
