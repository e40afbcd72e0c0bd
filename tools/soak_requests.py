"""Requests of the API of many kinds, drawn from a seed, and what of their answers is compared. Knows no connection."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Answers = dict[int, tuple[str, str]]
"""By index: the text (of an embedding its numbers, of a tool call its name and arguments), and why it ended."""

_WORDS = "Once upon a time there was cat dog tree house river girl boy Lily Tim who said and saw the big red ball"
_FORM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
_RULES = 'root ::= "The " ("cat" | "dog") " said " ["] [a-z ]{3,30} ["] "."'


@dataclass(frozen=True)
class Request:
    """What is sent where. Its answer does not depend on what else runs: it is greedy, or has a seed."""

    kind: str
    path: str
    body: dict[str, Any]

    @property
    def can_stream(self) -> bool:
        return self.path != "/v1/embeddings"

    def answers(self, reply: dict[str, Any]) -> Answers:
        """Those of a whole reply."""
        if not self.can_stream:
            return {one["index"]: (str(one["embedding"]), "") for one in reply["data"]}
        return {one["index"]: (_text(one.get("message", one)), one["finish_reason"]) for one in reply["choices"]}

    @staticmethod
    def add(answers: Answers, event: dict[str, Any]) -> int:
        """Add an event of a stream to what has come so far; returns how many of its choices have a text."""
        n_texts = 0
        for one in event.get("choices", ()):
            before, _ = answers.get(one["index"], ("", ""))
            text = _text(one.get("delta", one))
            n_texts += bool(text)
            answers[one["index"]] = (before + text, one["finish_reason"] or "")
        return n_texts


def _text(said: dict[str, Any]) -> str:
    calls = [call["function"] for call in said.get("tool_calls") or ()]
    parts = [call.get("name", "") + call.get("arguments", "") for call in calls]
    return "".join([said.get("content") or said.get("text") or "", *parts])


def draw_requests(draw: random.Random, n_each: int) -> list[Request]:
    """As many of each kind."""
    return [request for kind in _KINDS for request in _of_kind(kind, draw, n_each)]


def _of_kind(kind: str, draw: random.Random, n_each: int) -> Iterator[Request]:
    for _ in range(n_each):
        path, fields = _KINDS[kind](draw)
        if path != "/v1/embeddings":
            fields = {"max_tokens": draw.randint(8, 96), "seed": draw.randint(0, 999)} | fields
            fields = {"temperature": draw.choice((0.0, 0.8))} | fields
        yield Request(kind, path, fields)


def _words(draw: random.Random, most: int) -> str:
    return " ".join(draw.choices(_WORDS.split(), k=draw.randint(1, most)))


def _chat(draw: random.Random) -> tuple[str, dict[str, Any]]:
    roles = ["user", "assistant", "user"][-draw.choice((1, 3)) :]
    return "/v1/chat/completions", {"messages": [{"role": role, "content": _words(draw, 30)} for role in roles]}


def _completion(most: int) -> Callable[[random.Random], tuple[str, dict[str, Any]]]:
    return lambda draw: ("/v1/completions", {"prompt": _words(draw, most)})


def _several(draw: random.Random) -> tuple[str, dict[str, Any]]:
    path, fields = draw.choice((_chat, _completion(20)))(draw)
    return path, fields | {"n": draw.randint(2, 4), "temperature": 0.9}


def _schema(draw: random.Random) -> tuple[str, dict[str, Any]]:
    path, fields = _chat(draw)
    form = {"type": "json_schema", "json_schema": {"name": "child", "schema": _FORM}}
    return path, fields | {"response_format": form}


def _grammar(draw: random.Random) -> tuple[str, dict[str, Any]]:
    path, fields = _completion(20)(draw)
    given = draw.choice(({"grammar": _RULES}, {"guided_regex": "[A-Z][a-z]{2,9}( [a-z]{1,8}){2,6}\\."}))
    return path, fields | given


def _tool(draw: random.Random) -> tuple[str, dict[str, Any]]:
    path, fields = _chat(draw)
    function = {"name": "look_for", "description": "Look for a child", "parameters": _FORM}
    return path, fields | {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}


def _embedding(draw: random.Random) -> tuple[str, dict[str, Any]]:
    return "/v1/embeddings", {"input": [_words(draw, 60) for _ in range(draw.randint(1, 3))]}


_KINDS: dict[str, Callable[[random.Random], tuple[str, dict[str, Any]]]] = {
    "chat": _chat,
    "completion": _completion(40),
    "long prompt": _completion(150),
    "n > 1": _several,
    "JSON schema": _schema,
    "grammar": _grammar,
    "tool call": _tool,
    "embedding": _embedding,
}


def body_of(request: Request, stream: bool) -> bytes:
    """The body to send."""
    return json.dumps(request.body | ({"stream": True} if stream else {})).encode()
