"""/v1/responses, with OpenAI's own client and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from integration.api import WEATHER, Api, only, openai_client, running_api, thoughtful
from pydantic import BaseModel, TypeAdapter
from when_used import openai

TOOLS: Any = [
    {"type": "function", "strict": True, **WEATHER},
    {"type": "function", "name": "now", "parameters": {"type": "object", "additionalProperties": False}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
ANSWER = f"<think>\nA city.\n</think>\n\nLet me see.\n{CALL}"
ASK: Any = {"model": "any", "input": "Is it cold in Oslo?"}
HOT: Any = {"temperature": 1.5, "max_output_tokens": 400, "reasoning": {"effort": "none"}, "extra_body": {"seed": 3}}
ITEMS = [
    {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "A city."}],
        "status": "completed",
    },
    {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
    },
    {"type": "function_call", "name": "weather", "arguments": '{"city": "Oslo"}', "status": "completed"},
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with running_api(folder, thoughtful(folder)) as api:
        yield api


@pytest.fixture
def client(api: Api) -> Iterator[openai.OpenAI]:
    with openai_client(api) as client:
        yield client


def items_of(response: openai.types.responses.Response) -> list[dict[str, Any]]:
    return [item.model_dump(exclude={"id", "call_id"}, exclude_none=True) for item in response.output]


def unknown(value: Any, place: str = "") -> list[str]:
    """Fields that the client's types do not have."""
    if isinstance(value, BaseModel):
        extra = [f"{place}.{name}" for name in value.model_extra or {}]
        return extra + [
            one for name in type(value).model_fields for one in unknown(getattr(value, name), f"{place}.{name}")
        ]
    return [one for each in value for one in unknown(each, f"{place}[]")] if isinstance(value, list) else []


def test_a_response_has_items_of_thinking_text_and_calls(client: openai.OpenAI) -> None:
    response = client.responses.create(**ASK, instructions="Be brief.", tools=TOOLS, extra_body=only(ANSWER))
    assert items_of(response) == ITEMS
    assert unknown(response) == []
    assert response.output_text == "Let me see."
    assert (response.status, response.object, response.error) == ("completed", "response", None)
    assert response.instructions == "Be brief."
    assert response.id.startswith("resp_")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert [item.id for item in response.output if item.id is None] == []


def test_a_streamed_response_comes_to_the_same(client: openai.OpenAI) -> None:
    with client.responses.stream(**ASK, tools=TOOLS, extra_body=only(ANSWER)) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert [
        {name: value for name, value in item.items() if name != "parsed_arguments"} for item in items_of(response)
    ] == ITEMS
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 3


def test_every_event_is_one_of_the_client_s_types(api: Api) -> None:
    with api.http.stream(
        "POST", "/v1/responses", json={**ASK, "stream": True, "tools": TOOLS, **only(ANSWER)}
    ) as reply:
        lines = [line for line in reply.iter_lines() if line and not line.startswith(":")]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert [event["type"] for event in events] == names
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    adapter: TypeAdapter[Any] = TypeAdapter(openai.types.responses.ResponseStreamEvent)
    for event in events:
        read = adapter.validate_python(event)
        assert read.type == event["type"]
        assert unknown(read, event["type"]) == []
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"city": "Oslo"}'
    assert len(deltas) > 5  # they come as the model writes them


def test_a_conversation_of_items_continues(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASK, tools=TOOLS, extra_body=only(ANSWER))
    (call,) = [item for item in first.output if item.type == "function_call"]
    conversation: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Is it cold in Oslo?"}]},
        *first.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "-3 degrees"},
    ]
    response = client.responses.create(model="any", input=conversation, tools=TOOLS, extra_body=only("Yes."))
    assert response.output_text == "Yes."


def test_a_conversation_of_items_is_rendered_as_one_of_messages(client: openai.OpenAI) -> None:
    """Greedy answers are equal where prompts are."""
    called = {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Well", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "a", "content": "noon"},
    ]
    items: Any = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Well"}]},
        {"type": "function_call", "call_id": "a", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "noon"}]},
    ]
    by_messages = client.chat.completions.create(model="any", messages=messages, temperature=0, max_tokens=8)
    by_items = client.responses.create(
        model="any", input=items, instructions="Be brief.", temperature=0, max_output_tokens=8
    )
    assert by_items.usage is not None
    assert by_messages.usage is not None
    assert by_items.usage.input_tokens == by_messages.usage.prompt_tokens
    assert by_items.output_text == by_messages.choices[0].message.content


def test_the_tokens_of_a_conversation_are_counted(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(**ASK, tools=TOOLS, instructions="Be brief.")
    response = client.responses.create(**ASK, tools=TOOLS, instructions="Be brief.", max_output_tokens=1)
    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens
    assert unknown(counted) == []


def test_the_limit_of_tokens_leaves_a_response_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(**ASK, max_output_tokens=3, extra_body=only("It is cold."))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    with client.responses.stream(**ASK, max_output_tokens=3, extra_body=only("It is cold.")) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "now"}),
        ({"type": "function", "name": "now"}, {"now"}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
            {"weather"},
        ),
    ],
)
def test_a_call_that_is_required_is_made(client: openai.OpenAI, choice: Any, names: set[str]) -> None:
    response = client.responses.create(**ASK, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, **HOT)
    assert unknown(response) == []
    (item,) = response.output
    assert item.type == "function_call"
    assert item.name in names
    assert json.loads(item.arguments) in ({}, {"city": "Oslo"}, {"city": "Rome"})


class Cold(BaseModel):
    cold: bool
    city: Literal["Oslo", "Rome"]


def test_a_type_of_the_client_is_answered(client: openai.OpenAI) -> None:
    response = client.responses.parse(**ASK, text_format=Cold, **HOT)
    assert isinstance(response.output_parsed, Cold)


def test_the_tokens_of_a_response_have_log_probabilities(client: openai.OpenAI) -> None:
    asked: Any = {**ASK, "max_output_tokens": 5, "reasoning": {"effort": "none"}, "top_logprobs": 2}
    response = client.responses.create(**asked, include=["message.output_text.logprobs"], temperature=0)
    (message,) = response.output
    assert message.type == "message"
    (text,) = message.content
    assert text.type == "output_text"
    assert text.logprobs is not None
    assert [len(token.top_logprobs) for token in text.logprobs] == [2] * 5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id: this server stores nothing"),
        ({"background": True}, "background: this server answers in the request itself"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0]: an item of type item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]}, "of type input_image"),
        ({"input": [{"content": "Hi"}]}, "input[0].role is missing"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b"}]}, "input[0].arguments is missing"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]: a tool of type web_search"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema is missing"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(api: Api, fields: dict[str, Any], words: str) -> None:
    error = api.refused("/v1/responses", **{**ASK, **fields})
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
