"""Completions over HTTP: what goes on is what `generate` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.answers import PROMPT
from integration.api import Api, running_api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api"), small_model, 2) as api:
        yield api


def test_a_text_goes_on_as_generate_says(api: Api, greedy_text: str) -> None:
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
    assert reply["status"] == "ok"
    assert [(node["name"], node["state"]) for node in reply["nodes"]] == [("root", "ready"), ("worker1", "ready")]
