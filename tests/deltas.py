"""What the deltas of an answer come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from dllama_zmq.chat import AnswerParser, Delta


def joined(deltas: Iterable[Delta]) -> dict[str, Any]:
    """The deltas as a message: content, reasoning, calls (name, arguments); what is empty is left out."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    for delta in deltas:
        message["content"] += delta.content
        message["reasoning"] += delta.reasoning
        if delta.tool is not None:
            if delta.tool.name:
                assert delta.tool.index == len(message["calls"])
                assert delta.tool.id
                message["calls"].append([delta.tool.name, ""])
            message["calls"][delta.tool.index][1] += delta.tool.arguments
    return {key: value for key, value in message.items() if value}


def parsed(
    text: str,
    template: str = "",
    prompt_end: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    cuts: Iterable[int] = (),
) -> dict[str, Any]:
    """An answer that comes in pieces, cut at these places."""
    parser = AnswerParser(template, prompt_end, tools)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    deltas = [delta for start, end in pairwise(places) for delta in parser.push(text[start:end])]
    deltas += parser.finish()
    message = joined(deltas)
    assert parser.has_calls == ("calls" in message)
    return message
