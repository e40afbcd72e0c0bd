"""An answer under a grammar that ends by itself is a sentence of it, the same on any number of nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from constrained import Answers, answer, hot, reading, schema
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import tiny_spec, write_tiny_pair

import dllama_zmq
from dllama_zmq import Grammar, Sampling
from dllama_zmq.errors import RequestError
from dllama_zmq.local import LocalModel

NODES = (1, 2, 4)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ['é"\\', "red", 3, None]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "person": PERSON,
    "true": True,
    "nothing but a type": {"type": ["integer", "null", "boolean"]},
    "enum": {"enum": ["a", "ab", "abc", 1, 1.5, None, True, {"a": [1, "\u0416"]}]},
    "const": {"const": {"x": ["\n", "\\"]}},
    "numbers with bounds": {
        "type": "array", "minItems": 4, "maxItems": 4, "prefixItems": [
            {"type": "integer", "exclusiveMinimum": -7, "maximum": 99}, {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "integer", "multipleOf": 7}, {"type": "number", "minimum": -2.5, "exclusiveMaximum": 1e3},
        ],
    },
    "strings": {
        "type": "object", "required": ["pattern", "date", "id", "long"], "additionalProperties": False, "properties": {
            "pattern": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3,5}(é|\\u4e2d|\\\\|\")$"},
            "date": {"type": "string", "format": "date-time"}, "id": {"type": "string", "format": "uuid"},
            "long": {"type": "string", "minLength": 5, "maxLength": 9},
        },
    },
    "anyOf, nested": {
        "type": "array", "minItems": 1, "maxItems": 3, "items": {"anyOf": [
            {"type": "string", "maxLength": 3}, {"type": "null"},
            {"type": "object", "properties": {"in": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4}},
             "required": ["in"], "additionalProperties": False},
        ]},
    },
    "allOf": {
        "allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                  {"properties": {"b": {"type": "integer", "minimum": 3}}, "required": ["b"]}],
    },
    "a map": {
        "type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}, "maxProperties": 2
    },
    "optional properties": {
        "type": "object", "additionalProperties": False,
        "properties": {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in "abcdef"},
    },
    "patternProperties": {
        "type": "object", "patternProperties": {"^n_[a-z]{1,3}$": {"type": "null"}}, "additionalProperties": False,
        "maxProperties": 3,
    },
    "$ref that recurs": {
        "$ref": "#/$defs/tree",
        "$defs": {"tree": {"type": "object", "required": ["v"], "additionalProperties": False, "properties": {
            "v": {"enum": [0, 1]}, "left": {"$ref": "#/$defs/tree"}}}},
    },
    "oneOf that no two fulfil": {"oneOf": [
        {"type": "object", "required": ["kind"], "additionalProperties": False,
         "properties": {"kind": {"const": kind}, "n": {"type": "integer", "minimum": 0, "maximum": 9}}}
        for kind in ("cat", "dog")
    ]},
}  # fmt: skip
OPEN_ENDED = ("allOf", "true")
"""A random model seldom ends what may go on for ever."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, LocalModel]]:
    """A random model on 1, 2 and 4 nodes."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_pair(folder, tiny_spec(seq_len=1024))
    with ExitStack() as stack:
        yield {n: reading(stack.enter_context(dllama_zmq.load(folder / "tiny.m", nodes=n))) for n in NODES}


@pytest.fixture(scope="module")
def model(models: dict[int, LocalModel]) -> LocalModel:
    return models[1]


def validate(text: str, value: Any) -> None:
    jsonschema.Draft202012Validator(value).validate(json.loads(text))


def answers_at_once(model: LocalModel, name: str, seeds: range) -> list[tuple[str, str]]:
    """Under one schema, with these seeds: all in the same steps, which are the most of the work."""
    answers = Answers(model)
    sequences = [answers.add(schema(SCHEMAS[name]), hot(seed), max_tokens=150) for seed in seeds]
    return [answers.end(sequence) for sequence in sequences]


@pytest.mark.few(7)
@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_that_ends_by_itself_validates_and_is_the_same_on_any_number_of_nodes(
    models: dict[int, LocalModel], name: str
) -> None:
    on_one = answers_at_once(models[1], name, range(4))
    whole = [text for text, reason in on_one if reason == "stop"]
    for text in whole:
        validate(text, SCHEMAS[name])
    assert whole or name in OPEN_ENDED
    for n in NODES[1:]:
        assert answers_at_once(models[n], name, range(2)) == on_one[:2]


def numbers() -> st.SearchStrategy[Any]:
    def ranged(kind: str, low: int, width: int) -> dict[str, Any]:
        return {"type": kind, "minimum": low, "maximum": low + width}

    return st.builds(ranged, st.sampled_from(["integer", "number"]), st.integers(-1000, 1000), st.integers(0, 5000))


def strings() -> st.SearchStrategy[Any]:
    lengths = st.tuples(st.integers(0, 5), st.integers(0, 9)).map(
        lambda both: {"type": "string", "minLength": both[0], "maxLength": sum(both)}
    )
    patterns = st.sampled_from(["^a+b$", "^(x|yz){1,3}$", "^[^a-z]{2}$", "^\\d{3}$", "^.{1,4}$"])
    return lengths | patterns.map(lambda pattern: {"type": "string", "pattern": pattern})


def constants() -> st.SearchStrategy[Any]:
    values = st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=5)
    return st.lists(values, min_size=1, max_size=4).map(lambda values: {"enum": values})


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    names = st.sampled_from(["a", "b", "ö", 'q"q', "long name", ""])
    objects = st.builds(
        lambda properties, n: {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:n],
            "additionalProperties": False,
        },
        st.dictionaries(names, inner, max_size=4),
        st.integers(0, 4),
    )
    return arrays | objects | st.lists(inner, min_size=1, max_size=3).map(lambda choices: {"anyOf": choices})


SOME_SCHEMAS = st.recursive(
    numbers() | strings() | constants() | st.just({"type": "boolean"}), containers, max_leaves=6
)


@settings(max_examples=60)
@given(value=SOME_SCHEMAS, seed=st.integers(0, 1 << 30), greedy=st.booleans())
def test_whatever_the_schema_asks_for_is_answered(model: LocalModel, value: Any, seed: int, greedy: bool) -> None:
    text, reason = answer(model, schema(value), Sampling() if greedy else hot(seed))
    assume(reason == "stop")
    validate(text, value)


def test_a_json_object_is_one_and_a_regular_expression_is_matched_from_its_begin_to_its_end(model: LocalModel) -> None:
    for seed in range(3):
        text, reason = answer(model, Grammar("json_object"), hot(seed))
        if reason == "stop":
            assert isinstance(json.loads(text), dict)
        text, reason = answer(model, Grammar("regex", r"([a-z]{1,4} ){2,3}(foo|b/r|é\.)"), hot(seed))
        assert (bool(re.fullmatch(r"([a-z]{1,4} ){2,3}(foo|b/r|é\.)", text)), reason) == (True, "stop")


GBNF = r"""
# sums, as in llama.cpp's grammars/arithmetic.gbnf
root  ::= (expr "=" term "\n")
expr  ::= term ([-+*/] term)?
term  ::= num | "(" num ")"
num   ::= [0-9]{1,3}
"""
LARK = r"""
start: greeting (", " name)* "!"
greeting: "hello" | "good " /day|night/
name: /[A-Z][a-z]{0,5}/
"""


@pytest.mark.parametrize(
    ("kind", "grammar", "pattern"),
    [
        ("gbnf", GBNF, r"(\d{1,3}|\(\d{1,3}\))([-+*/](\d{1,3}|\(\d{1,3}\)))?=(\d{1,3}|\(\d{1,3}\))\n"),
        ("lark", LARK, r"(hello|good (day|night))(, [A-Z][a-z]{0,5})*!"),
    ],
)
def test_a_grammar_of_rules_is_followed(model: LocalModel, kind: Any, grammar: str, pattern: str) -> None:
    for seed in range(6):
        text, reason = answer(model, Grammar(kind, grammar), hot(seed))
        assert reason == "stop"
        assert re.fullmatch(pattern, text)


def test_an_answer_that_is_whole_ends_also_where_the_models_own_end_is_ignored(model: LocalModel) -> None:
    for ignore_eos in (False, True):
        text, reason = answer(model, Grammar("regex", "yes|no"), ignore_eos=ignore_eos, max_tokens=50)
        assert (text in ("yes", "no"), reason) == (True, "stop")
    assert answer(model, Grammar("regex", "yes|no"), Sampling(logit_bias={2: 100.0}))[0] in ("yes", "no")


def test_an_answer_ends_where_it_may_and_the_model_wants_to(model: LocalModel) -> None:
    eos = model.tokenizer.eos_ids[0]
    wants_to = Sampling(logit_bias={eos: 100.0})
    text, reason = answer(model, Grammar("regex", "[a-z]{7,}"), wants_to)
    assert (len(text), reason) == (7, "stop")  # every token that leads there, and none after it


def test_one_that_is_cut_says_so(model: LocalModel) -> None:
    text, reason = answer(model, schema(PERSON), max_tokens=3)
    assert reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


def test_the_last_token_that_may_come_can_be_the_one_that_makes_it_whole(model: LocalModel) -> None:
    letters = Grammar("regex", "[a-z]")
    assert answer(model, letters, max_tokens=1)[1] == "stop"


def test_answers_with_and_without_grammars_are_those_that_each_has_alone(model: LocalModel) -> None:
    cases: list[tuple[Grammar | None, Sampling]] = [
        (schema(PERSON), hot(1)),
        (None, hot(2)),
        (Grammar("regex", "[a-f]{20,40}"), Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.3, seed=3)),
        (schema(SCHEMAS["strings"]), Sampling(presence_penalty=1.5, logit_bias={40: 3.0})),
        (None, Sampling()),
        (schema(SCHEMAS["anyOf, nested"]), Sampling(temperature=2.0, min_p=0.02, typical_p=0.9, seed=5)),
    ]
    alone = [answer(model, grammar, sampling, max_tokens=60) for grammar, sampling in cases]
    answers = Answers(model)
    open_ones = []
    for grammar, sampling in cases:
        open_ones.append(answers.add(grammar, sampling, max_tokens=60))
        for _ in range(3):
            answers.step()
    assert [answers.end(sequence) for sequence in open_ones] == alone


def test_an_answer_that_is_evaluated_again_continues_where_it_was(model: LocalModel) -> None:
    expected = answer(model, schema(PERSON), hot(9))
    answers = Answers(model)
    sequence = answers.add(schema(PERSON), hot(9))
    for n in range(20):
        answers.step()
        if n % 7 == 3:
            model.engine.scheduler.rewind()  # as after the loss of a worker
    assert answers.end(sequence) == expected


def test_a_mask_leaves_the_log_probabilities_those_of_the_model(model: LocalModel) -> None:
    prompt = model.tokenizer.encode("the cat")
    logits = model.logits(prompt)[-1].astype(np.float64)
    expected = logits - np.logaddexp.reduce(logits)
    answers = Answers(model)
    sequence = answers.add(Grammar("regex", "[xyz]{3}"), Sampling(logprobs=2))
    choice = None
    while choice is None:
        choice = model.engine.step().choices.get(sequence)
    model.engine.cancel(sequence)
    assert choice.logprob == pytest.approx(expected[choice.token], abs=1e-5)
    assert [logprob for _, logprob in choice.top] == pytest.approx(
        [expected[token] for token, _ in choice.top], abs=1e-5
    )
    assert {model.tokenizer.piece(token) for token, _ in choice.top} <= {b"x", b"y", b"z"}


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("json_schema", "{"), "json_schema"),
        (Grammar("json_schema", '{"type": "object"} x: "y"'), "Extra data"),
        (Grammar("json_schema", '{"minimum": NaN}'), "NaN is not JSON"),
        (Grammar("json_schema", "[]"), "a schema must be an object"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"not": {"type": "null"}}), "not"),
        (schema({"type": "string", "minLength": 9, "maxLength": 2}), "minLength"),
        (schema({"$ref": "http://127.0.0.1:9/schema"}), "http://127.0.0.1:9/schema"),
        (Grammar("regex", "[a-"), "unclosed character class"),
        (Grammar("regex", "(?=a)b"), "look-around"),
        (Grammar("lark", "begin: /a/"), "start"),
        (Grammar("lark", "start: <|nobody|>"), "unknown special token"),
        (Grammar("gbnf", "root ::= other"), "Rule 'other' not found"),
        (Grammar("gbnf", 'object ::= "{"'), "root"),
        (Grammar("json_object", "{}"), "json_object"),
        (Grammar("regex", ""), "regex"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_with_the_reason(
    model: LocalModel, grammar: Grammar, words: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(words)):
        Answers(model).add(grammar)
    assert not model.engine.busy


def test_a_grammar_of_the_empty_text_alone_is_refused(model: LocalModel) -> None:
    with pytest.raises(RequestError, match="empty"):
        answer(model, Grammar("regex", "()"))
    assert not model.engine.busy


def test_a_text_may_be_longer_than_the_vocabulary_has_tokens_for(tmp_path: Path) -> None:
    """Characters that no token has are written as bytes, and what has none is said."""
    write_tiny_pair(tmp_path, tiny_spec(seq_len=256))
    with dllama_zmq.load(tmp_path / "tiny.m") as model:
        assert answer(model, Grammar("regex", "中文é")) == ("中文é", "stop")
