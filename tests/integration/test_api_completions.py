"""Completions over HTTP: what goes on is what `generate` says."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.answers import PROMPT
from integration.api import Api, running_api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api"), small_model, 2) as api:
        yield api


def test_a_text_continues_as_with_generate(api: Api, greedy_text: str) -> None:
    reply = api.post("/v1/completions", prompt=PROMPT, max_tokens=40, temperature=0)
    (choice,) = reply["choices"]
    assert choice == {"index": 0, "text": greedy_text, "finish_reason": "length", "logprobs": None}
    assert reply["usage"]["completion_tokens"] == 40


def test_a_streamed_text_is_the_same_in_pieces(api: Api, greedy_text: str) -> None:
    chunks = api.chunks("/v1/completions", prompt=PROMPT, max_tokens=40, temperature=0)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == greedy_text
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_health_names_every_node(api: Api) -> None:
    reply = api.http.get("/health").json()
    assert (reply["status"], reply["security"]) == ("ok", "local")
    assert [(node["name"], node["state"]) for node in reply["nodes"]] == [("root", "ready"), ("worker1", "ready")]


def texts(reply: dict[str, Any]) -> list[str]:
    assert [choice["index"] for choice in reply["choices"]] == list(range(len(reply["choices"])))
    return [choice["text"] for choice in reply["choices"]]


SAMPLED: dict[str, Any] = {"max_tokens": 8, "temperature": 1.2, "top_p": 1}


def test_several_answers_are_those_of_the_seeds_that_follow(api: Api) -> None:
    several = texts(api.post("/v1/completions", prompt=PROMPT, n=3, seed=11, **SAMPLED))
    alone = [texts(api.post("/v1/completions", prompt=PROMPT, seed=seed, **SAMPLED))[0] for seed in (11, 12, 13)]
    assert several == alone
    assert len(set(several)) > 1


def test_several_prompts_are_answered_in_their_order(api: Api) -> None:
    prompts = [PROMPT, "the cat and", "he was"]
    reply = api.post("/v1/completions", prompt=prompts, n=2, seed=3, **SAMPLED)
    alone = [api.post("/v1/completions", prompt=prompt, n=2, seed=3, **SAMPLED) for prompt in prompts]
    assert texts(reply) == [text for one in alone for text in texts(one)]
    assert reply["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
    chunks = api.chunks("/v1/completions", prompt=prompts, n=2, seed=3, **SAMPLED)
    streamed = [""] * 6
    for chunk in chunks:
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == texts(reply)


def test_token_ids_are_a_prompt_as_their_text_is(api: Api, greedy_text: str) -> None:
    tokens = api.post("/tokenize", content=PROMPT, add_special=True)["tokens"]
    for prompt in (tokens, [tokens]):
        reply = api.post("/v1/completions", prompt=prompt, max_tokens=40, temperature=0)
        assert texts(reply) == [greedy_text]


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_is_the_prompt_before_its_continuation(api: Api, greedy_text: str, stream: bool) -> None:
    tokens = api.post("/tokenize", content=PROMPT)["tokens"]
    for prompt in (PROMPT, tokens):
        ask = {"prompt": prompt, "max_tokens": 40, "temperature": 0, "echo": True}
        if stream:
            text = "".join(chunk["choices"][0]["text"] for chunk in api.chunks("/v1/completions", **ask))
        else:
            (text,) = texts(api.post("/v1/completions", **ask))
        assert text.startswith((PROMPT, f" {PROMPT}"))
        if prompt == PROMPT:
            assert text == PROMPT + greedy_text


def test_tokens_have_log_probabilities_and_offsets(api: Api) -> None:
    reply = api.post("/v1/completions", prompt=PROMPT, max_tokens=6, temperature=0, logprobs=2)
    (choice,) = reply["choices"]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 6
    assert logprobs["text_offset"][0] == 0
    assert all(max(tops.values()) <= 0 and len(tops) == 2 for tops in logprobs["top_logprobs"])


LETTERS = ['a "cat"', "the\ndog", "é|[x]"]
CHOICES: dict[str, dict[str, Any]] = {
    "guided_choice": {"guided_choice": LETTERS},
    "structured_outputs.choice": {"structured_outputs": {"choice": LETTERS}},
    "guided_regex": {"guided_regex": 'a "cat"|the\\ndog|é\\|\\[x\\]'},
    "guided_grammar": {"guided_grammar": 'start: "a \\"cat\\"" | "the\\ndog" | "é|[x]"'},
}


@pytest.mark.parametrize("fields", CHOICES.values(), ids=CHOICES)
def test_an_answer_is_one_of_the_texts_to_choose_from(api: Api, fields: dict[str, Any]) -> None:
    for seed in range(3):
        (choice,) = api.post("/v1/completions", prompt=PROMPT, seed=seed, temperature=1.5, **fields)["choices"]
        assert choice["text"] in LETTERS
        assert choice["finish_reason"] == "stop"


def test_an_answer_is_json_of_the_schema_that_guides_it(api: Api) -> None:
    schema = {"enum": [{"cat": 1}, {"dog": 2}]}
    for field in ({"guided_json": schema}, {"structured_outputs": {"json": schema}}, {"json_schema": schema}):
        (choice,) = api.post("/v1/completions", prompt=PROMPT, seed=1, temperature=1.5, **field)["choices"]
        assert json.loads(choice["text"]) in schema["enum"]


@pytest.mark.parametrize("choice", [[], ["a", ""]])
def test_nothing_to_choose_from_is_refused(api: Api, choice: list[str]) -> None:
    assert "guided_choice" in api.refused("/v1/completions", prompt=PROMPT, guided_choice=choice)["message"]
    refused = api.refused("/v1/completions", prompt=PROMPT, structured_outputs={"choice": choice})
    assert refused["param"] == "structured_outputs.choice"


def test_unsupported_fields_are_refused_by_name(api: Api) -> None:
    for fields in ({"suffix": "x"}, {"echo": True, "logprobs": 1}, {"best_of": 3}):
        assert api.refused("/v1/completions", prompt="x", **fields)["param"] in {"suffix", "logprobs", "best_of"}


def test_texts_have_embeddings_of_length_one(api: Api) -> None:
    model = api.http.get("/v1/models").json()["data"][0]
    reply = api.post("/v1/embeddings", input=[PROMPT, "a cat"])
    vectors = [one["embedding"] for one in reply["data"]]
    assert [len(vector) for vector in vectors] == [model["meta"]["n_embd"]] * 2
    assert all(sum(value * value for value in vector) == pytest.approx(1, abs=1e-3) for vector in vectors)
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] > 4
    packed = api.post("/v1/embeddings", input=PROMPT, encoding_format="base64")["data"][0]["embedding"]
    assert list(array("f", base64.b64decode(packed))) == pytest.approx(vectors[0], abs=1e-6)
    assert api.refused("/v1/embeddings", input=PROMPT, dimensions=3)["param"] == "dimensions"
