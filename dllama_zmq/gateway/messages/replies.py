"""The answers of /v1/messages: a message of blocks, and errors."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from dllama_zmq.gateway.metrics import Tally
from dllama_zmq.gateway.problems import TYPES, Problem

_ERRORS = TYPES | {413: "request_too_large", 500: "api_error", 503: "overloaded_error"}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class TextBlock(Struct, tag_field="type", tag="text"):
    text: str = ""


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    """signature: empty; this server accepts any thinking block in a later request."""

    thinking: str = ""
    signature: str = ""


class ToolUseBlock(Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any] = field(default_factory=dict)


AnswerBlock = TextBlock | ThinkingBlock | ToolUseBlock


class Usage(Struct):
    """input_tokens: prompt tokens that were not in the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0

    @classmethod
    def of(cls, tally: Tally) -> Usage:
        """The usage of a request so far."""
        return cls(tally.n_prompt - tally.n_cached, tally.n_tokens, tally.n_cached)


class MessageReply(Struct, tag_field="type", tag="message"):
    """The answer of /v1/messages."""

    id: str
    model: str
    content: list[AnswerBlock]
    stop_reason: str | None
    usage: Usage
    stop_sequence: str | None = None
    role: str = "assistant"


class CountReply(Struct):
    """The answer of /v1/messages/count_tokens."""

    input_tokens: int


class Stopped(Struct):
    """Why a message ended. stop_sequence: the stop sequence that ended it."""

    stop_reason: str
    stop_sequence: str | None = None

    @classmethod
    def of(cls, reason: str, stop: str) -> Stopped:
        """For an answer that ended for `reason`, or at the string `stop` if it is not empty."""
        if stop and reason == "stop":
            return cls("stop_sequence", stop)
        return cls(_STOP_REASONS[reason])


class ErrorBody(Struct):
    type: str
    message: str


class ErrorReply(Struct, tag_field="type", tag="error"):
    """The body of an error."""

    error: ErrorBody

    @classmethod
    def of(cls, problem: Problem) -> ErrorReply:
        """The problem in Anthropic's form."""
        return cls(ErrorBody(_ERRORS[problem.status], str(problem)))
