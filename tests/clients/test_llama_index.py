"""LlamaIndex's OpenAILike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from clients.asked import NO_THINKING, City, Person, is_call
from integration.api import SOON_S, Api

openai_like = pytest.importorskip(
    "llama_index.llms.openai_like", reason="LlamaIndex is not installed; `make test-clients` installs it"
)
llms = pytest.importorskip("llama_index.core.llms")
tools = pytest.importorskip("llama_index.core.tools")


@pytest.fixture
def model(api: Api) -> Callable[..., Any]:
    """Makes a model with options."""

    def made(**options: Any) -> Any:
        where = {"model": "any", "api_base": f"{api.url}/v1", "api_key": "none", "timeout": SOON_S, "max_retries": 0}
        return openai_like.OpenAILike(**{"is_chat_model": True, "temperature": 0.0, **where, **options})

    return made


def hello() -> list[Any]:
    return [llms.ChatMessage(role="user", content="Hello")]


def test_a_stream_is_the_whole_answer(model: Callable[..., Any]) -> None:
    chat = model(max_tokens=8)
    whole = chat.chat(hello()).message.content
    assert "".join(piece.delta or "" for piece in chat.stream_chat(hello())) == whole != ""


def test_chats_are_answered_at_once(model: Callable[..., Any]) -> None:
    async def asked() -> list[Any]:
        chat = model(max_tokens=4)
        return await asyncio.gather(*[chat.achat(hello()) for _ in range(8)])

    assert len({reply.message.content for reply in asyncio.run(asked())}) == 1  # they are greedy


@pytest.mark.parametrize("is_chat_model", [True, False])
def test_a_text_is_gone_on_with(model: Callable[..., Any], is_chat_model: bool) -> None:
    assert model(max_tokens=6, is_chat_model=is_chat_model).complete("Once").text != ""


def test_a_tool_that_is_required_is_called(model: Callable[..., Any]) -> None:
    def weather(city: str) -> str:
        """The weather of a city"""
        return city

    tool = tools.FunctionTool.from_defaults(weather, fn_schema=City)
    chat = model(
        max_tokens=400,
        temperature=1.5,
        is_function_calling_model=True,
        additional_kwargs={"extra_body": NO_THINKING, "seed": 3},
    )
    reply = chat.chat_with_tools([tool], user_msg="Is it cold in Oslo?", tool_required=True)
    (call,) = chat.get_tool_calls_from_response(reply)
    assert is_call(call.tool_name, call.tool_kwargs)


def test_structured_output_is_of_its_class(model: Callable[..., Any]) -> None:
    chat = model(
        max_tokens=400,
        temperature=1.5,
        should_use_structured_outputs=True,
        additional_kwargs={"extra_body": NO_THINKING, "seed": 3},
    )
    assert isinstance(chat.as_structured_llm(Person).chat(hello()).raw, Person)


def test_log_probabilities_are_read(model: Callable[..., Any]) -> None:
    reply = model(max_tokens=3, logprobs=True, top_logprobs=2).chat(hello())
    assert len(reply.logprobs) == 3
