"""Tools, thinking and structured output of chat completions, with OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from integration.api import WEATHER, Api, only, openai_client, running_api, thoughtful
from pydantic import BaseModel
from when_used import openai

USER: Any = {"role": "user", "content": "Is it cold in Oslo?"}
TOOLS: Any = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "additionalProperties": False}}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
CALLS = f"<think>\nTwo things.\n</think>\n\nLet me see.\n{CALL}\n{NOW}"
NO_THINKING: Any = {"chat_template_kwargs": {"enable_thinking": False}}
HOT: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_tokens": 400}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with running_api(folder, thoughtful(folder)) as api:
        yield api


@pytest.fixture
def client(api: Api) -> Iterator[openai.OpenAI]:
    with openai_client(api) as client:
        yield client


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


def test_thinking_and_calls_are_separated_from_the_text(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="any", messages=[USER], tools=TOOLS, extra_body=only(CALLS))
    (choice,) = reply.choices
    assert choice.finish_reason == "tool_calls"
    assert calls_of(choice.message) == [("weather", {"city": "Oslo"}), ("now", {})]
    assert choice.message.content == "Let me see."
    assert choice.message.model_extra == {"reasoning_content": "Two things."}
    assert len({call.id for call in choice.message.tool_calls or []}) == 2


def test_the_tokens_of_a_conversation_with_tools_are_counted(client: openai.OpenAI, api: Api) -> None:
    reply = client.chat.completions.create(model="any", messages=[USER], tools=TOOLS, max_tokens=1)
    counted = api.post("/v1/chat/completions/input_tokens", messages=[USER], tools=TOOLS)
    assert reply.usage is not None
    assert counted == {"object": "response.input_tokens", "input_tokens": reply.usage.prompt_tokens}


def test_a_stream_of_calls_comes_to_the_same_message(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="any", messages=[USER], tools=TOOLS, extra_body=only(CALLS)) as stream:
        fragments = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion()
    (choice,) = final.choices
    assert choice.finish_reason == "tool_calls"
    assert calls_of(choice.message) == [("weather", {"city": "Oslo"}), ("now", {})]
    assert choice.message.content == "Let me see."
    assert len(fragments) > 5  # the arguments come as the model writes them


def test_one_call_is_passed_on_where_they_may_not_be_parallel(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="any", messages=[USER], tools=TOOLS, parallel_tool_calls=False, extra_body=only(CALLS)
    )
    assert calls_of(reply.choices[0].message) == [("weather", {"city": "Oslo"})]


def test_without_tools_a_call_is_text(client: openai.OpenAI) -> None:
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        reply = client.chat.completions.create(model="any", messages=[USER], extra_body=only(CALL), **more)
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (CALL, "stop")
        assert reply.choices[0].message.tool_calls is None


@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_is_required_is_made(client: openai.OpenAI, seed: int) -> None:
    reply = client.chat.completions.create(
        model="any",
        messages=[USER],
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        extra_body=NO_THINKING,
        **HOT | {"seed": seed},
    )
    assert reply.choices[0].finish_reason == "tool_calls"
    ((name, arguments),) = calls_of(reply.choices[0].message)
    assert arguments in ({"weather": [{"city": "Oslo"}, {"city": "Rome"}], "now": [{}]}[name])


def test_the_function_that_is_named_is_called(client: openai.OpenAI) -> None:
    for name in ("weather", "now"):
        reply = client.chat.completions.create(
            model="any",
            messages=[USER],
            tools=TOOLS,
            tool_choice={"type": "function", "function": {"name": name}},
            parallel_tool_calls=False,
            extra_body=NO_THINKING,
            **HOT,
        )
        assert [called for called, _ in calls_of(reply.choices[0].message)] == [name]


def test_an_answer_of_a_form_may_be_a_call_where_there_are_tools(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "yes", "schema": {"enum": [{"cold": True}]}}}
    seen = set()
    for seed in range(12):
        reply = client.chat.completions.create(
            model="any",
            messages=[USER],
            tools=TOOLS,
            response_format=form,
            parallel_tool_calls=False,
            extra_body=NO_THINKING,
            **HOT | {"seed": seed},
        )
        message = reply.choices[0].message
        seen.add(reply.choices[0].finish_reason)
        assert calls_of(message) or json.loads(message.content or "") == {"cold": True}
    assert seen == {"stop", "tool_calls"}


class Cold(BaseModel):
    cold: bool
    city: Literal["Oslo", "Rome"]


def test_no_effort_is_no_thinking_unless_the_request_sets_the_template_otherwise(api: Api) -> None:
    def prompt(**fields: Any) -> Any:
        return api.post("/apply-template", messages=[USER], **fields)["prompt"]

    without = prompt(chat_template_kwargs={"enable_thinking": False})
    assert prompt(reasoning_effort="none") == without != prompt() == prompt(reasoning_effort="low")
    assert prompt(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}) == prompt()


def test_a_type_of_the_client_is_answered(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="any", messages=[USER], response_format=Cold, extra_body=NO_THINKING, **HOT
    )
    assert isinstance(reply.choices[0].message.parsed, Cold)


def test_a_conversation_of_calls_and_results_continues(api: Api, client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="any", messages=[USER], tools=TOOLS, extra_body=only(CALLS))
    called = first.choices[0].message
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": "-3 degrees"} for call in called.tool_calls or []
    ]
    reply = client.chat.completions.create(
        model="any",
        messages=[USER, called, *results],
        tools=TOOLS,
        extra_body=only("Yes."),  # type: ignore[list-item]
    )
    assert reply.choices[0].message.content == "Yes."
    null = {**called.model_dump(exclude_none=True), "content": None}
    strict = [{**TOOLS[0], "function": {**WEATHER, "strict": True}}, TOOLS[1]]
    prompt = api.post("/apply-template", messages=[USER, null, *results], tools=strict)["prompt"]
    assert CALL in prompt
    assert "<tool_response>\n-3 degrees\n</tool_response>" in prompt
    assert f"<tools>\n{json.dumps(TOOLS[0])}\n{json.dumps(TOOLS[1])}\n</tools>" in prompt


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_choice": "required"}, "tool_choice is required, and there are no tools"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "wind"}}},
            "tool_choice: no tool is called wind",
        ),
        ({"tools": [*TOOLS, TOOLS[0]]}, "or the name of two tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages[1].tool_calls[0]"),
    ],
)
def test_tools_that_cannot_be_called_are_refused(api: Api, fields: dict[str, Any], words: str) -> None:
    error = api.refused("/v1/chat/completions", **{"messages": [USER], **fields})
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
