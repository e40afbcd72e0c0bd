"""/v1/messages, with Anthropic's own client and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from integration.api import NO_TLS, SOON_S, WEATHER, Api, only, running_api, thoughtful
from when_used import anthropic

KEY = "a-key-of-this-test"
USER: Any = {"role": "user", "content": "Is it cold in Oslo?"}
TOOLS: Any = [
    {"name": WEATHER["name"], "description": WEATHER["description"], "input_schema": WEATHER["parameters"]},
    {"name": "now", "input_schema": {"type": "object", "additionalProperties": False}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
ANSWER = f"<think>\nA city.\n</think>\n\nLet me see.\n{CALL}"
ASK: Any = {"model": "any", "max_tokens": 400, "messages": [USER]}
NO_KEY = "the API key is missing or not known; send it as `Authorization: Bearer KEY`"
NO_THINKING: Any = {"thinking": {"type": "disabled"}}
HOT: Any = {"extra_body": {"temperature": 1.5, "seed": 3}}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with running_api(folder, thoughtful(folder), keys=[KEY]) as api:
        yield api


@pytest.fixture
def client(api: Api) -> Iterator[anthropic.Anthropic]:
    """Anthropic's client, which refuses what is not of its types."""
    no_reuse = httpx2.Client(verify=NO_TLS, limits=httpx2.Limits(max_keepalive_connections=0))
    with anthropic.Anthropic(
        base_url=api.url,
        api_key=KEY,
        timeout=SOON_S,
        max_retries=0,
        http_client=no_reuse,
        _strict_response_validation=True,
    ) as client:
        yield client


def blocks_of(message: anthropic.types.Message) -> list[dict[str, Any]]:
    return [block.model_dump(exclude={"id"}, exclude_none=True) for block in message.content]


BLOCKS = [
    {"type": "thinking", "thinking": "A city.", "signature": ""},
    {"type": "text", "text": "Let me see."},
    {"type": "tool_use", "name": "weather", "input": {"city": "Oslo"}},
]


def test_a_message_is_answered_in_blocks(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**ASK, tools=TOOLS, extra_body=only(ANSWER))
    assert blocks_of(message) == BLOCKS
    assert (message.role, message.stop_reason, message.stop_sequence) == ("assistant", "tool_use", None)
    assert message.id.startswith("msg_")
    assert message.usage.output_tokens > 0
    counted = client.messages.count_tokens(model="any", messages=[USER], tools=TOOLS)
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens


def test_a_streamed_message_comes_to_the_same(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**ASK, tools=TOOLS, extra_body=only(ANSWER)) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert blocks_of(message) == BLOCKS
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens > 0
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3


def test_events_come_in_anthropics_order_and_have_its_fields_alone(api: Api) -> None:
    body = {**ASK, "stream": True, "tools": TOOLS, **only(ANSWER)}
    with api.http.stream("POST", "/v1/messages", json=body, headers={"x-api-key": KEY}) as reply:
        lines = [line for line in reply.iter_lines() if line and not line.startswith(":")]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert [event["type"] for event in events] == names
    open_block = None
    for event in events:
        if event["type"] == "content_block_start":
            assert open_block is None
            open_block = event["index"]
        elif event["type"] == "content_block_delta":
            assert event["index"] == open_block
        elif event["type"] == "content_block_stop":
            assert event["index"] == open_block
            open_block = None
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


def test_a_conversation_of_calls_and_results_continues(client: anthropic.Anthropic, api: Api) -> None:
    first = client.messages.create(**ASK, tools=TOOLS, extra_body=only(ANSWER))
    result = {
        "type": "tool_result",
        "tool_use_id": first.content[2].id,
        "content": [  # type: ignore[union-attr]
            {"type": "text", "text": "-3 degrees"}
        ],
    }
    messages: Any = [
        USER,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]},
    ]
    system: Any = [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]
    asked: Any = {**ASK, "messages": messages, "system": system, "tools": TOOLS}
    assert blocks_of(client.messages.create(**asked, extra_body=only("Yes."))) == [{"type": "text", "text": "Yes."}]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "now"}], ids=str)
def test_any_is_a_call_and_a_tool_is_its_call(client: anthropic.Anthropic, choice: Any, seed: int) -> None:
    message = client.messages.create(
        **ASK,
        tools=TOOLS,
        tool_choice={**choice, "disable_parallel_tool_use": True},
        extra_body={"seed": seed, "temperature": 1.5},
        **NO_THINKING,
    )
    (block,) = message.content
    assert block.type == "tool_use"
    assert message.stop_reason == "tool_use"
    assert block.name in ("now", choice.get("name", "weather"))
    assert block.input in ({"now": [{}], "weather": [{"city": "Oslo"}, {"city": "Rome"}]}[block.name])


def test_the_limit_and_the_end_have_their_reasons(client: anthropic.Anthropic) -> None:
    cut = client.messages.create(model="any", max_tokens=3, messages=[USER], extra_body=only("It is cold."))
    assert cut.stop_reason == "max_tokens"
    assert cut.usage.output_tokens == 3
    assert client.messages.create(**ASK, extra_body=only("It is cold.")).stop_reason == "end_turn"


def test_a_stop_sequence_is_named_where_it_ends_the_answer(client: anthropic.Anthropic) -> None:
    asked: Any = {**ASK, "stop_sequences": ["warm", "cold"], "extra_body": only("It is cold.")}
    message = client.messages.create(**asked)
    assert blocks_of(message) == [{"type": "text", "text": "It is "}]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "cold")
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", "cold")


def test_an_answer_has_the_form_that_is_asked_for(client: anthropic.Anthropic) -> None:
    form: Any = {"format": {"type": "json_schema", "schema": {"enum": [{"cold": True}, {"cold": False}]}}}
    message = client.messages.create(**ASK, **NO_THINKING, output_config=form, **HOT)
    assert json.loads(message.content[0].text) in ({"cold": True}, {"cold": False})  # type: ignore[union-attr]


def test_the_assistants_last_message_is_gone_on_with(client: anthropic.Anthropic) -> None:
    messages: Any = [USER, {"role": "assistant", "content": "It is"}]
    asked: Any = {**ASK, "messages": messages}
    assert blocks_of(client.messages.create(**asked, extra_body=only(" cold."))) == [{"type": "text", "text": " cold."}]


def said(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (said({"type": "image", "source": {}}), "messages[0].content[0]: a block of type image"),
        (said({"type": "tool_use", "id": "a", "name": "b"}), "a block of type tool_use in a message of the user"),
        (said({"type": "text"}), "messages[0].content[0].text is missing"),
        ({"messages": []}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]: a tool of type web_search"),
        ({"tool_choice": {"type": "any"}}, "there are no tools"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused_in_anthropics_form(
    client: anthropic.Anthropic, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.post("/v1/messages", body={**ASK, **fields}, cast_to=object)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert words in body["error"]["message"]


def test_the_openapi_document_has_anthropics_errors(api: Api) -> None:
    document = api.http.get("/openapi.json", headers={"x-api-key": KEY}).json()
    responses = document["paths"]["/v1/messages"]["post"]["responses"]
    name = responses["default"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert set(document["components"]["schemas"][name]["required"]) == {"type", "error"}


@contextmanager
def anthropic_client(url: str, key: str) -> Iterator[anthropic.Anthropic]:
    """Nothing stays open between two requests."""
    with (
        httpx2.Client(verify=NO_TLS, limits=httpx2.Limits(max_keepalive_connections=0)) as connections,
        anthropic.Anthropic(
            base_url=url, api_key=key, timeout=SOON_S, max_retries=0, http_client=connections
        ) as client,
    ):
        yield client


def type_and_message(error: anthropic.APIStatusError) -> tuple[str, str]:
    """The type and the message of an error in Anthropic's form."""
    body: Any = error.body
    assert body.keys() == {"type", "error"}
    assert body["type"] == "error"
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    return body["error"]["type"], body["error"]["message"]


def test_a_wrong_key_is_anthropics_authentication_error(api: Api) -> None:
    with anthropic_client(api.url, "another") as client, pytest.raises(anthropic.AuthenticationError) as caught:
        client.messages.create(**ASK)
    assert type_and_message(caught.value) == ("authentication_error", NO_KEY)
    anthropic.types.ErrorResponse.model_validate(caught.value.body)


@pytest.mark.parametrize(
    ("method", "path", "kind", "name", "words"),
    [
        ("get", "/v1/messages", "APIStatusError", "invalid_request_error", "is used with POST, not GET"),
        (
            "post",
            "/v1/messages/batches",
            "NotFoundError",
            "not_found_error",
            "there is no /v1/messages/batches",
        ),
        ("get", "/v1/messages/batches/1", "NotFoundError", "not_found_error", "there is no /v1/messages/"),
    ],
)
def test_an_unknown_route_below_messages_is_an_error_in_anthropics_form(
    api: Api, method: str, path: str, kind: str, name: str, words: str
) -> None:
    with anthropic_client(api.url, KEY) as client, pytest.raises(getattr(anthropic, kind)) as caught:
        getattr(client, method)(path, cast_to=object)
    found, message = type_and_message(caught.value)
    assert found == name
    assert words in message


def test_too_long_a_body_is_an_error_in_anthropics_form(api: Api) -> None:
    with anthropic_client(api.url, KEY) as client, pytest.raises(anthropic.RequestTooLargeError) as caught:
        client.messages.create(**ASK, system="a" * 9_000_000)
    assert type_and_message(caught.value)[0] == "request_too_large"


def test_paths_that_only_begin_alike_have_openais_form(api: Api) -> None:
    reply = api.http.get("/v1/messagesX", headers={"x-api-key": KEY})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, 404)
