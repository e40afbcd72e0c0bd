"""Chats over HTTP, with OpenAI's own client and without: what is answered, and in which form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from integration.api import Api, chatty, error_of, openai_client, running_api
from when_used import openai

import dllama_zmq

USER = {"role": "user", "content": "once upon a time"}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with running_api(folder, chatty(small_model, folder)) as api:
        yield api


@pytest.fixture
def client(api: Api) -> Iterator[openai.OpenAI]:
    with openai_client(api) as client:
        yield client


@pytest.fixture(scope="module")
def expected(api: Api) -> str:
    """What a client of the bus gets for USER."""
    with api.cli.client() as client:
        return client.text(dllama_zmq.Chat([USER]), GREEDY["max_tokens"])


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def test_a_chat_is_answered_as_on_the_bus(client: openai.OpenAI, expected: str) -> None:
    reply = client.chat.completions.create(model="any", messages=[USER], **GREEDY)  # type: ignore[list-item]
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", expected, "length")
    assert reply.model == "chatty"
    assert reply.id.startswith("chatcmpl-")
    assert reply.system_fingerprint is not None
    assert reply.system_fingerprint.startswith("b")
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 12
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 12


def test_a_streamed_chat_is_the_same(client: openai.OpenAI, expected: str) -> None:
    with client.chat.completions.create(model="any", messages=[USER], stream=True, **GREEDY) as stream:  # type: ignore
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected


def test_chunks_come_in_openais_order(api: Api, expected: str) -> None:
    chunks = api.chunks("/v1/chat/completions", messages=[USER], stream_options={"include_usage": True}, **GREEDY)
    first, *said, last, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in said)
    assert text_of(said) == expected
    assert last["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [first, *said])
    assert all("logprobs" not in chunk["choices"][0] for chunk in [first, *said])


def test_the_tokens_of_an_answer_have_log_probabilities(client: openai.OpenAI, expected: str) -> None:
    reply = client.chat.completions.create(
        model="any",
        messages=[USER],
        logprobs=True,
        top_logprobs=3,
        **GREEDY,  # type: ignore[list-item]
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    tokens = logprobs.content or []
    assert len(tokens) == 12
    assert "".join(token.token for token in tokens).lstrip() == expected.lstrip()
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.logprob == pytest.approx(token.top_logprobs[0].logprob) for token in tokens)  # it is greedy


def test_log_probabilities_are_streamed_too(api: Api) -> None:
    chunks = api.chunks("/v1/chat/completions", messages=[USER], logprobs=True, top_logprobs=2, **GREEDY)
    logprobs = [one for chunk in chunks for one in chunk["choices"][0].get("logprobs", {}).get("content", [])]
    assert len(logprobs) == 12
    assert {len(one["top_logprobs"]) for one in logprobs} == {2}


@pytest.mark.parametrize("stop", ["form", "list"])
def test_the_answer_ends_before_a_stop_string(api: Api, expected: str, stop: str) -> None:
    word = expected[2:5]
    reply = api.post(
        "/v1/chat/completions", messages=[USER], stop=word if stop == "form" else ["never", word], **GREEDY
    )
    (choice,) = reply["choices"]
    assert choice["message"]["content"] == expected[: expected.index(word)]
    assert choice["finish_reason"] == "stop"


def test_equal_seeds_give_equal_answers(api: Api) -> None:
    ask = {"messages": [USER], "temperature": 1.5, "top_p": 1, "max_tokens": 12}
    one, same, other = (api.post("/v1/chat/completions", seed=seed, **ask) for seed in (5, 5, 6))
    assert one["choices"] == same["choices"] != other["choices"]


@pytest.mark.parametrize(
    "given", [{"max_tokens": 9, "max_completion_tokens": 3}, {"n_predict": 9, "max_tokens": 3}, {"n_predict": 3}]
)
def test_max_tokens_has_an_older_and_a_newer_name(api: Api, given: dict[str, int]) -> None:
    reply = api.post("/v1/chat/completions", messages=[USER], temperature=0, **given)
    assert reply["usage"]["completion_tokens"] == 3


def test_null_is_a_default_and_unknown_fields_are_ignored(api: Api, expected: str) -> None:
    names = (
        "stream stream_options top_p top_k min_p repeat_penalty presence_penalty frequency_penalty logit_bias seed "
        "stop n ignore_eos response_format tools tool_choice parallel_tool_calls logprobs top_logprobs user grammar"
    )
    nulls = dict.fromkeys(names.split())
    new = {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "verbosity": "low", "prompt_cache_key": "k"}
    reply = api.post("/v1/chat/completions", messages=[USER], **(GREEDY | nulls | new))
    assert reply["choices"][0]["message"]["content"] == expected


def test_parts_of_text_are_joined(api: Api, expected: str) -> None:
    parts = [{"type": "text", "text": "once upon "}, {"type": "text", "text": "a time"}]
    reply = api.post("/v1/chat/completions", messages=[{"role": "user", "content": parts}], **GREEDY)
    assert reply["choices"][0]["message"]["content"] == expected


def test_a_picture_is_refused_by_its_place(api: Api) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    error = api.refused("/v1/chat/completions", messages=[{"role": "user", "content": parts}])
    assert error["param"] == "messages[0].content"
    assert "image_url" in error["message"]


def test_a_developer_is_the_system(api: Api) -> None:
    said = [api.post("/apply-template", messages=[{"role": role, "content": "x"}]) for role in ("developer", "system")]
    assert said[0] == said[1] == {"prompt": "<|im_start|>system\nx<|im_end|>\n<|im_start|>assistant\n"}


def test_an_assistants_last_message_is_gone_on_with(api: Api) -> None:
    begun = [USER, {"role": "assistant", "content": "There was"}]
    prompt = api.post("/apply-template", messages=begun)["prompt"]
    assert prompt.endswith("<|im_start|>assistant\nThere was")
    assert api.post("/apply-template", messages=begun, continue_final_message=True)["prompt"] == prompt
    anew = api.post("/apply-template", messages=begun, add_generation_prompt=True)["prompt"]
    assert anew.endswith("There was<|im_end|>\n<|im_start|>assistant\n")


def test_too_long_a_prompt_is_refused_with_both_numbers(api: Api, client: openai.OpenAI) -> None:
    error = api.refused("/v1/chat/completions", messages=[{"role": "user", "content": "x y " * 2000}])
    assert error["type"] == "exceed_context_size_error"
    assert error["n_prompt_tokens"] > error["n_ctx"] == 2048
    assert error["message"].startswith("prompt is too long: ")  # how LangChain and LiteLLM know it
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x y " * 2000}], stream=True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_streams_are_what_the_openapi_document_says(api: Api, path: str) -> None:
    document = api.http.get("/openapi.json").json()
    contents = document["paths"][path]["post"]["responses"]["200"]["content"]
    event = contents["text/event-stream"]["schema"]
    data = event["properties"]["data"]
    assert (event["required"], data["type"]) == (["data"], "string")
    schema = {**data["anyOf"][0]["contentSchema"], "components": document["components"]}
    asked = {"messages": [USER]} if "chat" in path else {"prompt": "once"}
    chunks = api.chunks(path, **asked, stream_options={"include_usage": True}, **GREEDY)
    assert len(chunks) > 3
    for chunk in chunks:
        jsonschema.validate(chunk, schema)


def test_progress_is_sent_where_it_is_asked_for(api: Api) -> None:
    chunks = api.chunks(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "a cat and a dog " * 60}],
        return_progress=True,
        timings_per_token=True,
        **GREEDY,
    )
    progress = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert progress
    assert progress[-1]["processed"] == progress[-1]["total"] > 200
    assert all(chunk["timings"]["predicted_n"] for chunk in chunks if text_of([chunk]))


def test_the_model_is_listed_and_found_by_its_name(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id == "chatty"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    "path", ["/models", "/props", "/v1/props", "/metrics", "/openapi.json", "/v1/health", "/health"]
)
def test_routes_about_the_server_answer(api: Api, path: str) -> None:
    assert api.http.get(path).status_code == 200


def test_text_becomes_tokens_and_text_again(api: Api) -> None:
    tokens = api.post("/tokenize", content="once upon a time")["tokens"]
    assert api.post("/detokenize", tokens=tokens)["content"].strip() == "once upon a time"
    assert api.post("/tokenize", content="once upon a time", add_special=True)["tokens"] == [1, *tokens]
    pieces = api.post("/tokenize", content="once upon a time", with_pieces=True)["tokens"]
    assert "".join(piece["piece"] for piece in pieces).strip() == "once upon a time"


def test_an_unknown_route_is_an_error_in_the_same_form(api: Api) -> None:
    for nothing in (api.http.get("/v1/nothing"), api.http.post("/v1/nothing", json={}), api.http.delete("/nothing.js")):
        assert nothing.status_code == 404
        assert error_of(nothing)["type"] == "not_found_error"
    wrong = api.http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert error_of(wrong)
    for path in ("/v1/models/any", "/index.html", "/health"):
        wrong = api.http.delete(path)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")


def test_every_answer_has_a_request_id(api: Api) -> None:
    assert api.http.get("/health").headers["x-request-id"].startswith("req_")
    assert api.http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert api.http.get("/health", headers={"x-request-id": "x y\t<"}).headers["x-request-id"].startswith("req_")
