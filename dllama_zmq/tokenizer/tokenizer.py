"""Text to tokens and back, for one vocabulary. Knows no file and no model but its vocabulary's size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from dllama_zmq.errors import FormatError, RequestError
from dllama_zmq.spec import ModelSpec
from dllama_zmq.tokenizer.chat import ChatTemplate, choose_template
from dllama_zmq.tokenizer.config import read_config
from dllama_zmq.tokenizer.data import TokenizerData, TokenizerParts
from dllama_zmq.tokenizer.decoder import IncrementalDecoder
from dllama_zmq.tokenizer.from_gguf import parts_of_gguf
from dllama_zmq.tokenizer.from_json import parts_of_json
from dllama_zmq.tokenizer.from_ranks import parts_of_ranks
from dllama_zmq.tokenizer.from_sentencepiece import parts_of_sentencepiece
from dllama_zmq.tokenizer.from_t import parts_of_t

_USUAL_SHARE = 0.9
"""At least this much of a vocabulary are tokens: of published models Phi pads most, 50257 tokens to 51200."""


_MOST_NAMED = 4


class Tokenizer:
    """One vocabulary's encoder and decoder. Make it with one of the `from_...`."""

    def __init__(self, parts: TokenizerParts) -> None:
        self._parts = parts
        self._printed = {token: piece for token, piece in parts.pieces.items() if token not in parts.silent}
        self._size = max(parts.pieces) + 1

    @classmethod
    def from_data(cls, data: TokenizerData) -> Tokenizer:
        """The tokenizer of a `.t` file's vocabulary. Raises FormatError for one of an unknown kind."""
        return cls(parts_of_t(data))

    @classmethod
    def from_sentencepiece(
        cls, model: bytes, source: str = "tokenizer.model", config: Mapping[str, Any] | None = None
    ) -> Tokenizer:
        """The tokenizer of a SentencePiece BPE or unigram model. `config`: see `from_json`.

        Raises FormatError, UnsupportedModel for other kinds of models.
        """
        return cls(parts_of_sentencepiece(model, read_config(config or {}, source), source))

    @classmethod
    def from_json(cls, text: str, config: Mapping[str, Any] | None = None, source: str = "tokenizer.json") -> Tokenizer:
        """The tokenizer of a Hugging Face tokenizer.json.

        config: what tokenizer_config.json says, and `eos_token_id` of generation_config.json. Raises FormatError where
        either is not what it should be, UnsupportedModel for a kind that is not read.
        """
        return cls(parts_of_json(text, read_config(config or {}, source), source))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], source: str) -> Tokenizer:
        """The tokenizer in a GGUF file's metadata, plain Python values by their GGUF keys.

        Raises FormatError for values of a wrong type, UnsupportedModel for a kind or pre-tokenizer that is not known.
        """
        return cls(parts_of_gguf(metadata, source))

    @classmethod
    def from_ranks(cls, ranks: Mapping[bytes, int], source: str, config: Mapping[str, Any] | None = None) -> Tokenizer:
        """The tokenizer of Meta's Llama 3: `ranks` of byte-level pieces, special tokens after them."""
        return cls(parts_of_ranks(ranks, read_config(config or {}, source), source))

    @property
    def source(self) -> str:
        """The file it came from."""
        return self._parts.source

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; some ids below may be no token."""
        return self._size

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text; None for models that have none."""
        return self._parts.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self._parts.eos_ids

    @property
    def specials(self) -> Mapping[str, int]:
        """The special tokens by name."""
        return self._parts.specials

    def encode(self, text: str, bos: bool | None = None, specials: bool = False) -> list[int]:
        """The tokens of `text`, after the BOS where `bos` says so, or by default where the tokenizer's file does.

        Names of special tokens in `text` are text, unless `specials`. Half a surrogate pair, which no UTF-8 can hold,
        becomes U+FFFD. Raises RequestError where `bos` asks for a BOS and the model has none.
        """
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        tokens = self._parts.marked(text) if specials else self._parts.plain(text)
        if not (self._parts.add_bos if bos is None else bos):
            return tokens
        if self.bos_id is None:
            raise RequestError(f"{self.source}: this tokenizer has no BOS token; encode with bos=False")
        return [self.bos_id, *tokens]

    def piece(self, token: int) -> bytes:
        """The piece of `token` as the vocabulary has it, special tokens by name; empty where the id is no token.

        Raises RequestError for a negative id.
        """
        return self._parts.pieces.get(self._known(token), b"")

    def decoder(self, continues: bool = True) -> IncrementalDecoder:
        """A decoder of tokens as they come. Where the text does not continue another, the space that encoding put
        before it is dropped. Ids that are no token, such as those that pad a model's embedding, print nothing."""
        parts = self._parts
        drop: Literal["none", "one", "all"] = "none"
        if not continues and (parts.dummy_prefix or parts.drops_all):
            drop = "all" if parts.drops_all else "one"
        return IncrementalDecoder(lambda token: self._printed.get(token, b""), drop, parts.kept, parts.each_byte)

    def decode(self, tokens: Iterable[int], continues: bool = False) -> str:
        """The text of `tokens`: what `encode` was given, from what it gave. Special tokens are silent."""
        decoder = self.decoder(continues)
        return "".join([decoder.push(self._known(token)) for token in tokens]) + decoder.flush()

    def check_fits(self, spec: ModelSpec, model: str | Path = "the model") -> None:
        """Raise FormatError where this is the tokenizer of another model than `model`, whose spec is given.

        Fewer tokens than the model's vocabulary are no error: some models pad their embedding. Nor are tokens beyond it
        that were added to a vocabulary: the model cannot read or write them. See `doubt`.
        """
        beyond = self._beyond(spec)
        needed = {self.bos_id} if self._parts.add_bos else set()
        if beyond & needed or not beyond <= self._added() or not set(self.eos_ids) - beyond:
            raise FormatError(f"{self._sizes(spec, model)}. Give the tokenizer that was made for this model.")

    def doubt(self, spec: ModelSpec, model: str | Path = "the model") -> str:
        """What may be wrong with this as the tokenizer of `model`, in a sentence or several; else ""."""
        doubts = [f"{self.source}: {note}" for note in self._parts.notes]
        if self.vocab_size < _USUAL_SHARE * spec.vocab_size:
            doubts.append(
                f"{self._sizes(spec, model)}: where the answers make no sense, give the tokenizer that was made for "
                "this model (`tokenizer:` beside `model:` in cluster.yaml)"
            )
        if beyond := sorted(self._beyond(spec)):
            shown = ", ".join(self.piece(token).decode("utf-8", "replace")[:40] for token in beyond[:_MOST_NAMED])
            doubts.append(
                f"{self._sizes(spec, model)}: the model can neither read nor write the last {len(beyond)} ({shown}"
                f"{', ...' if len(beyond) > _MOST_NAMED else ''})"
            )
        return "; ".join(doubts)

    def _sizes(self, spec: ModelSpec, model: str | Path) -> str:
        """The beginning of a sentence on both vocabularies; where they are of one file, it is named once."""
        if str(model) == self.source:
            return f"{model}: its tokenizer has {self.vocab_size} tokens, and its vocabulary is {spec.vocab_size}"
        return f"{self.source} has {self.vocab_size} tokens, but {model} has a vocabulary of {spec.vocab_size}"

    def _beyond(self, spec: ModelSpec) -> set[int]:
        return {token for token in self._parts.pieces if token >= spec.vocab_size}

    def _added(self) -> set[int]:
        return {*self._parts.specials.values(), *self._parts.texts.values()}

    def chat_template(self, name: str | None = None) -> ChatTemplate:
        """The file's own chat template; where it has none, the built-in one that its special tokens tell.

        name: a template of the file, or a built-in one. Raises UsageError for an unknown name, RequestError where there
        is no template and the special tokens tell none.
        """
        words = dict(self._parts.words)
        for word, token in (("bos_token", self.bos_id), ("eos_token", self.eos_ids[0])):
            if word not in words and token is not None:
                words[word] = self.piece(token).decode("utf-8", "replace")
        names = {**self._parts.texts, **self._parts.specials}
        return choose_template(self._parts.templates, name, names, words, self.source)

    def to_data(self) -> TokenizerData:
        """The vocabulary as a `.t` file has it. Raises UnsupportedModel where such a file would encode otherwise."""
        return self._parts.to_data()

    def _known(self, token: int) -> int:
        if token < 0:
            raise RequestError(f"token {token} is in no vocabulary; expected 0 or more.")
        return token
