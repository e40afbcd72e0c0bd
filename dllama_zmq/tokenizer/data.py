"""What a vocabulary is, as plain data, whatever file it came from. Knows no file and no algorithm."""

from __future__ import annotations

from dataclasses import dataclass

N_BYTES = 256


@dataclass(frozen=True)
class TokenizerData:
    """A vocabulary: `pieces[id]` is the text of a token, in bytes, with ' ' for SentencePiece's '▁'.

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
