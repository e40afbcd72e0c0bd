"""The model's thinking before its answer. Knows no tool call."""

from __future__ import annotations

import re

from msgspec import Struct

from dllama_zmq.chat.deltas import Collector
from dllama_zmq.chat.reader import Reader, Reading

_TURN = re.compile(r"<\||<｜|\[/?INST\]|</s>|<(start|end)_of_turn>")
"""The marks of templates between the turns of a conversation."""


class Thinking(Struct, frozen=True):
    """The marks around thinking."""

    opens: str
    closes: str

    def is_open(self, prompt_end: str) -> bool:
        """Whether the end of a prompt has opened thinking: by its template, or by an answer to be continued."""
        _, opened, rest = prompt_end.rpartition(self.opens)
        return bool(opened) and self.closes not in rest and not _TURN.search(rest)


TAGS = Thinking("<think>", "</think>")
BRACKETS = Thinking("[THINK]", "[/THINK]")  # Magistral's


def thinking_of(template: str) -> Thinking:
    """The marks of thinking for a template: <think> tags if it has none, because answers may have them."""
    return BRACKETS if BRACKETS.opens in template else TAGS


def read_thinking(reader: Reader, out: Collector, marks: Thinking, is_open: bool) -> Reading[None]:
    """Read the thinking at the beginning of an answer, if there is any."""
    if not is_open:
        reader.hold()
        yield from reader.space()
        if not (yield from reader.take(marks.opens)):
            reader.undo()
            return
        reader.keep()
    out.part()
    yield from reader.until((marks.closes,), out.reasoning)
    out.part()
