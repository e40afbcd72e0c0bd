"""Text to tokens and back, for one vocabulary. Knows no file, and of a model only the size of its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from dllama_zmq.errors import FormatError, RequestError
from dllama_zmq.spec import ModelSpec
from dllama_zmq.tokenizer.chat import ChatTemplate, choose_template, renderers
from dllama_zmq.tokenizer.data import TokenizerParts
from dllama_zmq.tokenizer.decoder import IncrementalDecoder

_MIN_SHARE = 0.9
"""Smallest share of a model's vocabulary that is tokens, not padding. Phi pads most: 50,257 tokens to 51,200."""
_MAX_NAMED = 4


class Tokenizer:
    """Encoder and decoder of one vocabulary, of `parts` that a `parts_of_...` function made."""

    def __init__(self, parts: TokenizerParts) -> None:
        self._parts = parts
        self._printed = {token: piece for token, piece in parts.pieces.items() if token not in parts.silent}
        self._size = max(parts.pieces) + 1
        self._renderers = renderers()

    @property
    def source(self) -> str:
        """The file it came from."""
        return self._parts.source

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; ids may have gaps."""
        return self._size

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text; None for models without one."""
        return self._parts.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self._parts.eos_ids

    @property
    def specials(self) -> Mapping[str, int]:
        """The special tokens by name."""
        return self._parts.specials

    @property
    def silent(self) -> frozenset[int]:
        """The tokens that print nothing."""
        return self._parts.silent

    def encode(self, text: str, bos: bool | None = None, specials: bool = False) -> list[int]:
        """The tokens of `text`. They begin with the BOS if `bos` is true; by default as the tokenizer's file says.

        With `specials`, names of special tokens in `text` become these tokens. A lone surrogate, which UTF-8 cannot
        hold, becomes U+FFFD. Raises RequestError if `bos` is true and the model has no BOS.
        """
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        tokens = self._parts.special_encoder(text) if specials else self._parts.plain_encoder(text)
        if not (self._parts.add_bos if bos is None else bos):
            return tokens
        if self.bos_id is None:
            raise RequestError(f"{self.source}: this tokenizer has no BOS token; encode with bos=False")
        return [self.bos_id, *tokens]

    def piece(self, token: int) -> bytes:
        """The piece of `token` in the vocabulary; the name of a special token; empty if the id is no token.

        Raises RequestError for a negative id.
        """
        return self._parts.pieces.get(self._checked(token), b"")

    def decoder(self, continues: bool = True, stop: Iterable[str] = (), specials: bool = False) -> IncrementalDecoder:
        """A decoder for tokens one by one. Unless the text continues another, it drops the space that encoding added.

        stop: its text ends before the first of these strings. specials: special tokens print their names.

        Ids that are no token, such as padding of a model's embedding, print nothing.
        """
        parts = self._parts
        drop: Literal["none", "one", "all"] = "none"
        if not continues and (parts.dummy_prefix or parts.drops_all):
            drop = "all" if parts.drops_all else "one"
        printed = parts.pieces if specials else self._printed
        return IncrementalDecoder(lambda token: printed.get(token, b""), drop, parts.kept, parts.each_byte, stop)

    def decode(self, tokens: Iterable[int], continues: bool = False) -> str:
        """The text of `tokens`, the inverse of `encode`. Special tokens print nothing."""
        decoder = self.decoder(continues)
        return "".join([decoder.push(self._checked(token)) for token in tokens]) + decoder.flush()

    def check_fits(self, spec: ModelSpec, model: str | Path = "the model") -> None:
        """Raise FormatError if this cannot be the tokenizer of `model`, which has `spec`.

        Two mismatches are only warnings (see `mismatch_warning`): fewer tokens than the model's vocabulary, because
        some models pad their embedding, and added tokens beyond it, which the model cannot read or write.
        """
        beyond = self._beyond(spec)
        needed = {self.bos_id} if self._parts.add_bos else set()
        if beyond & needed or not beyond <= self._added() or not set(self.eos_ids) - beyond:
            raise FormatError(f"{self._sizes(spec, model)}. Give the tokenizer that was made for this model.")

    def mismatch_warning(self, spec: ModelSpec, model: str | Path = "the model") -> str:
        """Sentences on what may be wrong with this tokenizer for `model`; empty if nothing is."""
        warnings = [f"{self.source}: {note}" for note in self._parts.notes]
        if self.vocab_size < _MIN_SHARE * spec.vocab_size:
            warnings.append(
                f"{self._sizes(spec, model)}: if the answers make no sense, give the tokenizer that was made for "
                "this model"
            )
        if beyond := sorted(self._beyond(spec)):
            shown = ", ".join(self.piece(token).decode("utf-8", "replace")[:40] for token in beyond[:_MAX_NAMED])
            warnings.append(
                f"{self._sizes(spec, model)}: the model can neither read nor write the last {len(beyond)} ({shown}"
                f"{', ...' if len(beyond) > _MAX_NAMED else ''})"
            )
        return "; ".join(warnings)

    def _sizes(self, spec: ModelSpec, model: str | Path) -> str:
        """The beginning of a sentence on the sizes of both vocabularies; names a common file once."""
        if str(model) == self.source:
            return f"{model}: its tokenizer has {self.vocab_size} tokens, and its vocabulary is {spec.vocab_size}"
        return f"{self.source} has {self.vocab_size} tokens, but {model} has a vocabulary of {spec.vocab_size}"

    def _beyond(self, spec: ModelSpec) -> set[int]:
        return {token for token in self._parts.pieces if token >= spec.vocab_size}

    def _added(self) -> set[int]:
        return {*self._parts.specials.values(), *self._parts.texts.values()}

    def chat_template(self, name: str | None = None, text: str | None = None) -> ChatTemplate:
        """The file's chat template; without one, the built-in template that fits its special tokens.

        name: a template of the file, or a built-in one. text: a template of the caller's own.
        Raises UsageError for an unknown name, RequestError if there is no template and the special tokens fit no
        built-in one.
        """
        words = dict(self._parts.words)
        for word, token in (("bos_token", self.bos_id), ("eos_token", self.eos_ids[0])):
            if word not in words and token is not None:
                words[word] = self.piece(token).decode("utf-8", "replace")
        names = {**self._parts.texts, **self._parts.specials}
        if text is not None:
            return ChatTemplate({"default": text}, words, "the given template", self._renderers)
        templates, source = choose_template(self._parts.templates, name, names, self.source)
        return ChatTemplate(templates, words, source, self._renderers)

    def _checked(self, token: int) -> int:
        if token < 0:
            raise RequestError(f"token {token} is in no vocabulary; expected 0 or more")
        return token
