"""Errors in mid-stream have the form of each dialect, as its client's types say."""

from __future__ import annotations

import json
from typing import Any

from when_used import anthropic, openai

from dllama_zmq.errors import QueueFull, RootLost
from dllama_zmq.gateway.messages.route import ERRORS
from dllama_zmq.gateway.problems import Problem
from dllama_zmq.gateway.responses.events import Items


def data_of(event: bytes, name: str) -> Any:
    first, second, *rest = event.decode().split("\n")
    assert first == f"event: {name}"
    assert rest == ["", ""]
    return json.loads(second.removeprefix("data: "))


def test_a_stream_of_responses_ends_in_an_error_event():
    items = Items()
    event = data_of(items.error(Problem.of(RootLost("the root went away"))), "error")
    read = openai.types.responses.ResponseErrorEvent.model_validate(event)
    assert (read.message, read.code, read.sequence_number) == ("the root went away", "unavailable_error", 0)
    assert not read.model_extra


def test_a_stream_of_messages_ends_in_an_error_event():
    for error, kind in ((RootLost("it went away"), "overloaded_error"), (QueueFull("too many"), "rate_limit_error")):
        event = data_of(ERRORS.event(Problem.of(error)), "error")
        read = anthropic.types.ErrorResponse.model_validate(event)
        assert (read.type, read.error.type, read.error.message) == ("error", kind, str(error))
