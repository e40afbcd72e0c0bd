"""Text to tokens and back, for one vocabulary. Knows no file, no chat and no model but its vocabulary's size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dllama_zmq.errors import FormatError, RequestError
from dllama_zmq.spec import ModelSpec
from dllama_zmq.tokenizer.data import N_BYTES, TokenizerData, byte_run
from dllama_zmq.tokenizer.decoder import IncrementalDecoder
from dllama_zmq.tokenizer.encoders import Encoder, byte_level_encoder, sentencepiece_encoder
from dllama_zmq.tokenizer.sentencepiece_model import UNKNOWN_PIECE


class Tokenizer:
    """One vocabulary's encoder and decoder. Make it with `from_data`."""

    def __init__(self, data: TokenizerData, encoder: Encoder, silent: frozenset[int], dummy_prefix: bool) -> None:
        self.data = data
        self._encoder = encoder
        self._printed = [b"" if token in silent else piece for token, piece in enumerate(data.pieces)]
        self._dummy_prefix = dummy_prefix

    @classmethod
    def from_data(cls, data: TokenizerData) -> Tokenizer:
        """The tokenizer of a SentencePiece or a byte-level vocabulary. Raises FormatError for any other kind."""
        controls = {data.bos_id, *data.eos_ids}
        first_byte = byte_run(data.pieces)
        if first_byte is not None:
            if controls & set(range(first_byte, first_byte + N_BYTES)):
                raise FormatError(
                    f"{data.source}: BOS or EOS is one of the byte pieces at {first_byte}. Convert again."
                )
            if b" " not in data.pieces[:first_byte] + data.pieces[first_byte + N_BYTES :]:
                raise FormatError(
                    f"{data.source}: a SentencePiece vocabulary without a piece for ' '. Convert it again."
                )
            if UNKNOWN_PIECE in data.pieces:
                controls.add(data.pieces.index(UNKNOWN_PIECE))
            return cls(data, sentencepiece_encoder(data, first_byte), frozenset(controls), dummy_prefix=True)
        missing = N_BYTES - len({piece for piece in data.pieces[: data.bos_id] if len(piece) == 1})
        if missing:
            raise FormatError(
                f"{data.source}: a vocabulary of a kind that this version does not read: neither SentencePiece's 256 "
                f"byte pieces in a row, nor a byte-level one ({missing} of the 256 bytes are missing before the BOS, "
                f"{data.bos_id}). Convert the tokenizer of a Llama 2 or Llama 3 model."
            )
        specials = frozenset(range(data.bos_id, len(data.pieces))) | controls
        return cls(data, byte_level_encoder(data), specials, dummy_prefix=False)

    @property
    def vocab_size(self) -> int:
        return len(self.data.pieces)

    @property
    def bos_id(self) -> int:
        return self.data.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self.data.eos_ids

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """The tokens of `text`, after the BOS where `bos` says so, or by default where the tokenizer's file does.

        Names of special tokens in `text` are text. Half a surrogate pair, which no UTF-8 can hold, becomes U+FFFD.
        """
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        tokens = self._encoder(text)
        return [self.bos_id, *tokens] if (self.data.add_bos if bos is None else bos) else tokens

    def piece(self, token: int) -> bytes:
        """The piece of `token` as the vocabulary has it, special tokens by name."""
        return self.data.pieces[self._known(token)]

    def decoder(self, continues: bool = True) -> IncrementalDecoder:
        """A decoder of tokens as they come. Where the text does not continue another, the space that encoding put
        before it is dropped."""
        return IncrementalDecoder(lambda token: self._printed[self._known(token)], self._dummy_prefix and not continues)

    def decode(self, tokens: Iterable[int], continues: bool = False) -> str:
        """The text of `tokens`: what `encode` was given, from what it gave. BOS, EOS and other specials are silent."""
        decoder = self.decoder(continues)
        return "".join([decoder.push(token) for token in tokens]) + decoder.flush()

    def check_fits(self, spec: ModelSpec, model: str | Path = "the model") -> None:
        """Raise FormatError where this is the tokenizer of another model than `model`, whose spec is given."""
        if self.vocab_size != spec.vocab_size:
            raise FormatError(
                f"{self.data.source} has {self.vocab_size} tokens, but {model} has a vocabulary of {spec.vocab_size}. "
                f"Give the tokenizer that was made for this model."
            )

    def _known(self, token: int) -> int:
        if not 0 <= token < len(self.data.pieces):
            raise RequestError(f"token {token} is not in the vocabulary; expected 0 to {len(self.data.pieces) - 1}.")
        return token
