"""LangChain's ChatOpenAI, OpenAI and OpenAIEmbeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from clients.asked import DIM, HOT, NO_THINKING, TOOLS, Person, is_call
from integration.api import SOON_S, Api

langchain_openai = pytest.importorskip(
    "langchain_openai", reason="LangChain is not installed; `make test-clients` installs it"
)
exceptions = pytest.importorskip("langchain_core.exceptions")


@pytest.fixture
def where(api: Api) -> dict[str, Any]:
    return {"model": "any", "base_url": f"{api.url}/v1", "api_key": "none", "timeout": SOON_S, "max_retries": 0}


@pytest.fixture
def chat(where: dict[str, Any]) -> Callable[..., Any]:
    """Makes a chat model with options."""
    return lambda **options: langchain_openai.ChatOpenAI(**where, **options)


def test_a_chat_is_answered_with_the_tokens_it_took(chat: Callable[..., Any]) -> None:
    reply = chat(max_tokens=5, temperature=0).invoke("Hello")
    assert reply.usage_metadata["output_tokens"] == 5
    assert reply.response_metadata["finish_reason"] == "length"


def test_a_stream_is_the_whole_answer(chat: Callable[..., Any]) -> None:
    model = chat(max_tokens=8, temperature=0, stream_usage=True)
    first, *more = model.stream("Hello")
    for chunk in more:
        first += chunk
    assert first.content == model.invoke("Hello").content != ""
    assert first.usage_metadata["output_tokens"] == 8


def test_many_chats_are_answered_at_once(chat: Callable[..., Any]) -> None:
    replies = asyncio.run(chat(max_tokens=4, temperature=0).abatch(["Hello"] * 8))
    assert [reply.usage_metadata["output_tokens"] for reply in replies] == [4] * 8


def test_the_named_tool_is_called(chat: Callable[..., Any]) -> None:
    reply = (
        chat(**HOT, extra_body=NO_THINKING)
        .bind_tools(TOOLS, tool_choice="weather", parallel_tool_calls=False)
        .invoke("Is it cold?")
    )
    (call,) = reply.tool_calls
    assert is_call(call["name"], call["args"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_of_its_class(chat: Callable[..., Any], method: str) -> None:
    model = chat(**HOT, extra_body=NO_THINKING).with_structured_output(Person, method=method)
    assert isinstance(model.invoke("Who?"), Person)


def test_log_probabilities_are_read(chat: Callable[..., Any]) -> None:
    reply = chat(max_tokens=3, temperature=0, logprobs=True, top_logprobs=2).invoke("Hello")
    assert len(reply.response_metadata["logprobs"]["content"]) == 3


def test_responses_are_answered(chat: Callable[..., Any]) -> None:
    model = chat(max_tokens=6, temperature=0, use_responses_api=True)
    assert model.invoke("Hello").usage_metadata["output_tokens"] == 6
    *_, last = model.stream("Hello")
    assert last.usage_metadata["output_tokens"] == 6


def test_a_text_is_gone_on_with(where: dict[str, Any]) -> None:
    model = langchain_openai.OpenAI(**where, max_tokens=6, temperature=0)
    assert "".join(model.stream("Once")) == model.invoke("Once") != ""


def test_a_prompt_that_is_too_long_is_named_as_that(chat: Callable[..., Any]) -> None:
    with pytest.raises(exceptions.ContextOverflowError):
        chat().invoke("word " * 5000)


def test_embeddings_have_the_models_size(where: dict[str, Any]) -> None:
    # Else LangChain sends tokens of OpenAI's vocabulary, which it fetches.
    model = langchain_openai.OpenAIEmbeddings(**where, check_embedding_ctx_length=False)
    assert [len(one) for one in model.embed_documents(["one", "two"])] == [DIM, DIM]
