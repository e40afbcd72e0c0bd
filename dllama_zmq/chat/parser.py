"""A parser that splits an answer into thinking, content and tool calls as it is written. Knows the families' forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dllama_zmq.chat.calls import Tools
from dllama_zmq.chat.deltas import Collector, Delta
from dllama_zmq.chat.families import family_of, read_text
from dllama_zmq.chat.reader import Reader, Reading
from dllama_zmq.chat.thinking import read_thinking, thinking_of


class AnswerParser:
    """Takes the text of an answer to a prompt that ends with `prompt_end`, piece by piece.

    The joined deltas do not depend on where it is cut. Only marks, and white space around thinking and calls, are
    dropped. template: the text of the model's chat template; "" for none. tools: those of the request; without tools,
    what looks like a call is text. parallel: whether several calls are allowed; else those after the first are dropped.
    """

    def __init__(
        self, template: str, prompt_end: str, tools: Sequence[Mapping[str, Any]] | None, parallel: bool = True
    ) -> None:
        self._reader = Reader()
        self._out = Collector(trims=bool(tools), parallel=parallel)
        self._parsing = self._parse(template, prompt_end, Tools(tools or ()))
        self._read = family_of(template).read if tools else read_text
        next(self._parsing)

    @property
    def has_calls(self) -> bool:
        """Whether the model has called a tool so far."""
        return self._out.n_calls > 0

    def push(self, text: str) -> list[Delta]:
        """The deltas of `text`. The end of the text may be held back, because it could begin a mark."""
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

    def _parse(self, template: str, prompt_end: str, tools: Tools) -> Reading[None]:
        thinking = thinking_of(template)
        yield from read_thinking(self._reader, self._out, thinking, thinking.is_open(prompt_end))
        yield from self._read(self._reader, self._out, tools)


def needs_specials(template: str, tools: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether a parser needs special tokens by name in the answer's text, because marks may be such tokens.

    Files of one model differ in which marks are special tokens.
    """
    return bool(tools) or thinking_of(template).opens in template
