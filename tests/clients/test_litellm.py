"""LiteLLM, as OpenAI's and as Anthropic's API."""

from __future__ import annotations

import json
from typing import Any

import pytest
from clients.asked import DIM, HOT, MESSAGES, NO_THINKING, TOOLS, Person, is_call
from integration.api import SOON_S, Api

litellm = pytest.importorskip("litellm", reason="LiteLLM is not installed; `make test-clients` installs it")


@pytest.fixture
def openai(api: Api) -> dict[str, Any]:
    """Where the server is, for LiteLLM."""
    return {"model": "openai/any", "api_base": f"{api.url}/v1", "api_key": "none", "timeout": SOON_S, "num_retries": 0}


@pytest.fixture
def anthropic(api: Api) -> dict[str, Any]:
    return {"model": "anthropic/any", "api_base": api.url, "api_key": "none", "timeout": SOON_S, "num_retries": 0}


def test_a_chat_is_answered_with_the_tokens_it_took(openai: dict[str, Any], anthropic: dict[str, Any]) -> None:
    for server in (openai, anthropic):
        reply = litellm.completion(**server, messages=MESSAGES, max_tokens=5, temperature=0)
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage.completion_tokens == 5
        assert reply.usage.prompt_tokens > 5


def test_a_stream_is_the_whole_answer(openai: dict[str, Any], anthropic: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    for server in (openai, anthropic):
        whole = litellm.completion(**server, **asked)
        built = litellm.stream_chunk_builder(list(litellm.completion(**server, **asked, stream=True)))
        assert built.choices[0].message.content == whole.choices[0].message.content != ""
        assert built.choices[0].finish_reason == "length"


def test_a_tool_that_is_required_is_called(openai: dict[str, Any], anthropic: dict[str, Any]) -> None:
    allowed = {"thinking": {"type": "disabled"}, "allowed_openai_params": ["thinking", "seed"]}
    for server, thoughtless in ((openai, {"extra_body": NO_THINKING}), (anthropic, allowed)):
        called: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
        reply = litellm.completion(**server, **HOT, **called, **thoughtless, messages=MESSAGES)
        (call,) = reply.choices[0].message.tool_calls
        assert is_call(call.function.name, json.loads(call.function.arguments))
        assert reply.choices[0].finish_reason == "tool_calls"


def test_structured_output_keeps_to_its_type(openai: dict[str, Any]) -> None:
    reply = litellm.completion(**openai, **HOT, messages=MESSAGES, response_format=Person, extra_body=NO_THINKING)
    Person.model_validate_json(reply.choices[0].message.content)


def test_embeddings_have_the_models_size(openai: dict[str, Any]) -> None:
    reply = litellm.embedding(**openai, input=["one", "two"])
    assert [len(one["embedding"]) for one in reply.data] == [DIM, DIM]


def test_log_probabilities_are_read(openai: dict[str, Any]) -> None:
    reply = litellm.completion(**openai, messages=MESSAGES, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2)
    logprobs = reply.choices[0].logprobs["content"]
    assert [len(one["top_logprobs"]) for one in logprobs] == [2, 2, 2]


def test_responses_are_answered(openai: dict[str, Any]) -> None:
    reply = litellm.responses(**openai, input="Hello", max_output_tokens=16, temperature=0)  # LiteLLM asks for no less
    assert reply.status == "incomplete"
    assert reply.usage.output_tokens == 16


def test_a_prompt_that_is_too_long_is_named_as_that(openai: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**openai, messages=[{"role": "user", "content": "word " * 5000}])
