"""Prompts and chats to tokens, tokens to text, and questions about them. Knows the tokenizer; may take seconds."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TypeVar

import msgspec
from msgspec import Struct

from dllama_zmq.bus.client_messages import Error
from dllama_zmq.bus.codec import MAX_HEADER_BYTES
from dllama_zmq.bus.messages import Message
from dllama_zmq.bus.prompts import AnyPrompt, Chat, ChatText, PromptText
from dllama_zmq.bus.text_messages import Detokenize, Detokenized, Model, ModelRequest, Tokenize, Tokens
from dllama_zmq.constraint.reading import GrammarReader
from dllama_zmq.errors import DllamaError, RequestError, kind_and_text
from dllama_zmq.grammar import Grammar
from dllama_zmq.sharding import check_ids, check_prompt
from dllama_zmq.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

PROMPT_END_CHARACTERS = 256
M = TypeVar("M", bound=msgspec.Struct)
_MAX_RENDERED = 1 << 19
_MAX_TEMPLATE_BYTES = 1 << 19  # half of the longest header; published templates have 10 KB


class Encoded(Struct, frozen=True):
    """A prompt's tokens, and the end of its text ("" if it came as token ids)."""

    tokens: list[int]
    end: str


class Texts:
    """The text work of one tokenizer and model."""

    def __init__(self, tokenizer: Tokenizer, model: Model) -> None:
        """model: without what its tokenizer knows."""
        self.tokenizer, self.vocab_size, self._model = tokenizer, model.vocab_size, model
        self._grammars = GrammarReader(tokenizer)

    def encode(self, prompt: AnyPrompt, max_tokens: int | None) -> Encoded:
        """The tokens of a prompt. Raises RequestError if they cannot be answered, DllamaError of a template."""
        if isinstance(prompt, list):
            check_ids(prompt, self.vocab_size)
            encoded = Encoded(prompt, "")
        else:
            text = self._text(prompt)
            encoded = Encoded(self._tokens(prompt, text, None, False), text[-PROMPT_END_CHARACTERS:])
        check_prompt(len(encoded.tokens), max_tokens, self._model.seq_len, self._model.context)
        return encoded

    def grammar(self, grammar: Grammar) -> str:
        """A grammar in the engine's notation. Raises RequestError if it cannot be used."""
        return self._grammars.read(grammar)

    def answer(self, asked: Tokenize | Detokenize | ModelRequest) -> Message:
        """The answer to a question; an Error if it fails."""
        try:
            if isinstance(asked, ModelRequest):
                return self.model(asked.id)
            return self.tokenize(asked) if isinstance(asked, Tokenize) else self.detokenize(asked)
        except Exception as error:
            if not isinstance(error, DllamaError):
                logger.error("question failed id=%d", asked.id, exc_info=error)
            return Error(asked.id, *kind_and_text(error))

    def tokenize(self, asked: Tokenize) -> Tokens:
        """The answer to a question. Raises as `encode` does."""
        text = self._text(asked.prompt)
        tokens = self._tokens(asked.prompt, text, asked.bos, asked.specials)
        names = {token: self.name_of(token) for token in set(tokens)}
        return _sent(Tokens(asked.id, tokens, [names[token] for token in tokens], text))

    def detokenize(self, asked: Detokenize) -> Detokenized:
        """The text of token ids. Raises RequestError for an id that is no token."""
        check_ids(asked.tokens, self.vocab_size)
        return _sent(Detokenized(asked.id, self.tokenizer.decode(asked.tokens)))

    def model(self, request_id: int) -> Model:
        """The description of the model."""
        tokenizer, template = self.tokenizer, ""
        with suppress(RequestError):  # the tokenizer has no chat template
            template = tokenizer.chat_template().text
        return msgspec.structs.replace(
            self._model,
            id=request_id,
            bos="" if tokenizer.bos_id is None else self.piece(tokenizer.bos_id),
            eos=[self.piece(token) for token in tokenizer.eos_ids],
            template=template if len(template.encode()) <= _MAX_TEMPLATE_BYTES else "",
            specials={name: token for token in sorted(tokenizer.silent) if (name := self.piece(token)) in template},
        )

    def name_of(self, token: int) -> str:
        """The text of a token; for a token that prints nothing, its name."""
        return (self.tokenizer.decode([token], True) or self.piece(token))[:4096]

    def piece(self, token: int) -> str:
        """A token's entry in the vocabulary."""
        return self.tokenizer.piece(token).decode(errors="replace")[:4096]

    def _text(self, prompt: PromptText) -> str:
        return self._rendered(prompt.chat()) if isinstance(prompt, ChatText) else prompt

    def _tokens(self, prompt: PromptText, text: str, bos: bool | None, specials: bool) -> list[int]:
        # a template writes the BOS and special tokens into the text by name
        if isinstance(prompt, ChatText):
            return self.tokenizer.encode(text, bos=False, specials=True)
        return self.tokenizer.encode(text, bos, specials)

    def _rendered(self, chat: Chat) -> str:
        template = self.tokenizer.chat_template(chat.template, chat.template_text)
        text = template.render(
            chat.messages,
            tools=chat.tools,
            add_generation_prompt=chat.generation_prompt,
            continues=chat.continues,
            variables=chat.variables,
        )
        if len(text) > _MAX_RENDERED:
            raise RequestError(f"the chat's text has {len(text)} characters; at most {_MAX_RENDERED} are allowed")
        return text


def _sent(answer: M) -> M:
    """Return `answer`. Raises RequestError if it is too long to send."""
    n_bytes = len(msgspec.msgpack.encode(answer))
    if n_bytes > MAX_HEADER_BYTES - 64:
        raise RequestError(f"the answer has {n_bytes} bytes; at most {MAX_HEADER_BYTES} are sent: ask for less text")
    return answer
