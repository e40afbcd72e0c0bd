"""Grammars meant to harm: each ends in our error or in a text, in bounded time and memory."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from constrained import Answers, answer, hot
from tiny import tiny_spec, write_tiny_pair

import dllama_zmq
from dllama_zmq import Grammar
from dllama_zmq.constraint.reading import MEMORY_BYTES, READ_S, GrammarReader
from dllama_zmq.errors import RequestError
from dllama_zmq.local import LocalModel

LONG_S = 60.0  # of a busy machine, for what takes READ_S and some steps
GROWN_BYTES = 6 * MEMORY_BYTES
"""Of this process: one grammar's compiled form, and its automaton."""


def nested(n: int) -> str:
    return '{"type":"array","items":' * n + "true" + "}" * n


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def an_object(i: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"a{i}": {"pattern": f"^[a-z]{{1,{i + 1}}}$"}}}


REFUSED = {
    "a number of a million states": schema({"type": "integer", "multipleOf": 1000003}),
    "one of a billion": schema({"type": "integer", "multipleOf": 1000000007}),
    "a schema nested 2,000 times": Grammar("json_schema", nested(2000)),
    "JSON nested 20,000 times": Grammar("json_schema", "[" * 20000),
    "a regular expression nested 10,000 times": Grammar("regex", "(" * 10000 + "a" + ")" * 10000),
    "rules nested 20,000 times": Grammar("lark", "start: " + "(" * 20000 + '"a"' + ")" * 20000),
    "llama.cpp's, nested 20,000 times": Grammar("gbnf", "root ::= " + "(" * 20000 + '"a"' + ")" * 20000),
    "a schema of itself": schema({"$ref": "#"}),
    "patterns that exclude each other at length": schema(
        {"type": "string", "allOf": [{"pattern": f"(a|b)*a(a|b){{{n}}}c"} for n in range(8, 20)]}
    ),
    "a schema from elsewhere": schema({"$ref": "file:///etc/passwd"}),
    "a NUL": Grammar("lark", "start: \x00"),
    "a lone surrogate": Grammar("json_schema", '{"const": "\\ud800"}'),
}
ANSWERED = {
    "rules without an end": Grammar("lark", 'start: "a" start'),
    "a string of up to a billion characters": schema({"type": "string", "maxLength": 10**9}),
    "a billion elements": schema({"type": "array", "minItems": 10**9, "items": {"type": "null"}}),
    "repetitions of repetitions": Grammar("regex", "((a{1000}){1000}){1000}"),
    "any of 50 letters before": Grammar("regex", "(.*a.{50}b)*c"),
    "nothing, in many ways": Grammar("lark", 'start: a a a a a a "x"\na: b* c*\nb: a? "x"?\nc: b? a?'),
    "the same in many ways": Grammar("lark", 'start: (("a" "b"){1000}){1000}'),
    "500 kinds of object": schema({"anyOf": [an_object(i) for i in range(500)]}),
    "letters of every script, 5,000 times": Grammar("regex", r"(\p{L}|\p{N}){1,5000}"),
}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_pair(folder, tiny_spec(seq_len=512))
    with dllama_zmq.load(folder / "tiny.m") as model:
        yield model


@pytest.fixture(scope="module")
def reader(model: LocalModel) -> GrammarReader:
    return GrammarReader(model.tokenizer)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", REFUSED)
def test_a_grammar_that_cannot_be_compiled_in_time_is_refused_in_time(model: LocalModel, name: str) -> None:
    began, before = time.monotonic(), resident_bytes()
    with pytest.raises(RequestError, match="grammar"):
        answer(model, REFUSED[name], hot(1), max_tokens=30)
    assert time.monotonic() - began < READ_S + LONG_S
    assert resident_bytes() - before < GROWN_BYTES
    assert answer(model, Grammar("regex", "yes|no"))[1] == "stop"  # and the next is read as ever


@pytest.mark.parametrize("name", ANSWERED)
def test_large_requests_are_answered_step_by_step_or_end_in_an_error(model: LocalModel, name: str) -> None:
    began, before = time.monotonic(), resident_bytes()
    answers = Answers(model)
    beside = answers.add(None, hot(2), max_tokens=20)
    with suppress(RequestError):
        answers.end(answers.add(ANSWERED[name], hot(1), max_tokens=200))
    assert answers.end(beside)[1] in ("stop", "length")
    assert time.monotonic() - began < READ_S + LONG_S
    assert resident_bytes() - before < GROWN_BYTES


def test_memory_is_bounded_where_time_is_not(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dllama_zmq.constraint.reading.READ_S", LONG_S)
    with pytest.raises(RequestError, match="more than 64 MiB"):
        GrammarReader(model.tokenizer).read(REFUSED["a number of a million states"])


def test_a_grammar_has_a_longest_length(reader: GrammarReader) -> None:
    with pytest.raises(RequestError, match="at most 65536"):
        reader.read(Grammar("regex", "a" * 65537))
    assert reader.read(Grammar("regex", "a" * 65536))
