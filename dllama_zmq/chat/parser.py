"""Answers while they are written: thinking, content and tool calls apart. Knows which template writes them how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dllama_zmq.chat.deltas import Collector, Delta
from dllama_zmq.chat.reader import Reader, Reading
from dllama_zmq.chat.thinking import BRACKETS, Thinking, read_thinking, thinking_of


class AnswerParser:
    """Takes an answer's text in pieces. However it is cut, the deltas joined are the same, and none of it is lost but
    the marks, and white space around thinking and calls.
    """

    def __init__(self, thinking: Thinking, is_open: bool) -> None:
        self._reader = Reader()
        self._out = Collector()
        self._parsing = self._parse(thinking, is_open)
        next(self._parsing)

    @property
    def has_calls(self) -> bool:
        """Whether the model calls a tool, as far as has been pushed."""
        return self._out.n_calls > 0

    def push(self, text: str) -> list[Delta]:
        """What `text` adds to the answer. Its end may be held back: it could begin a mark."""
        self._reader.add(text)
        next(self._parsing)
        return self._out.taken()

    def finish(self) -> list[Delta]:
        """The rest, at the end of the answer."""
        self._reader.ended = True
        for _ in self._parsing:
            pass
        self._out.flush()
        return self._out.taken()

    def _parse(self, thinking: Thinking, is_open: bool) -> Reading[None]:
        yield from read_thinking(self._reader, self._out, thinking, is_open)
        yield from self._reader.until((), self._out.content)


def parser_for(template: str, prompt_end: str, tools: Sequence[Mapping[str, Any]] | None) -> AnswerParser:
    """A parser of one answer to a prompt that ends with `prompt_end`, of a model with this chat template.

    template: its text, "" for none. tools: as in the request; None: what looks like a tool call is text.
    """
    thinking = thinking_of(template)
    return AnswerParser(thinking, thinking.is_open(prompt_end))


def needs_specials(template: str, tools: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether a parser needs the names of special tokens in the answer's text."""
    return BRACKETS.opens in template
