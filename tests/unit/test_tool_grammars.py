"""Grammars that force a call admit what the parser reads as one, and no other text; thinking may come before."""

from __future__ import annotations

import json
import re
from pathlib import Path

import llguidance
import pytest
from deltas import parsed
from msgspec.structs import replace
from tiny import tiny_tokenizer_data
from tokenizers_of import of_t

from dllama_zmq.chat import AnswerGrammars, may_think
from dllama_zmq.constraint.matching import Vocabulary
from dllama_zmq.constraint.reading import GrammarReader
from dllama_zmq.errors import RequestError
from dllama_zmq.grammar import Grammar

FOLDER = Path(__file__).parents[1] / "golden" / "templates"
WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"type": "string", "minLength": 1}},
}
FIRST_BYTE = 3  # of the tiny vocabulary
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
CALLS = [["weather", '{"city": "Oslo", "days": 3}'], ["now", "{}"]]
R1 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
V31 = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
HERMES = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'
FORMS = {
    "chatml": ("{}", HERMES, "\n"),
    "qwen2.5-tools": ("{}", HERMES, "\n"),
    "qwen3-coder": ("{}", HERMES, "\n"),
    "llama3.1-tools": ("{}", '{{"name": "{}", "parameters": {}}}', "; "),
    "mistral-v3-tools": ("[TOOL_CALLS][{}]", '{{"name": "{}", "arguments": {}}}', ", "),
    "magistral": ("{}", "[TOOL_CALLS]{}[ARGS]{}", ""),
    "deepseek-r1-distill": ("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", R1, "\n"),
    "deepseek-v3.1": ("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", V31, ""),
}


@pytest.fixture(scope="module")
def reader() -> GrammarReader:
    return GrammarReader(of_t(tiny_tokenizer_data()))


def template_of(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text("utf-8")


def is_sentence(reader: GrammarReader, grammar: Grammar, text: str) -> bool:
    """Whether `text` is one of the grammar's, whole."""
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), reader.read(grammar), log_level=0)
    return all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting()


def written(name: str, *calls: list[str]) -> str:
    whole, one, between = FORMS[name]
    return whole.format(between.join(one.format(*call) for call in calls))


@pytest.mark.parametrize("name", FORMS)
def test_a_forced_answer_is_calls_that_the_parser_reads(reader, name):
    template = template_of(name)
    grammar = AnswerGrammars(template, "").calls(TOOLS)
    for calls in (CALLS[:1], CALLS[1:], CALLS):
        text = written(name, *calls)
        assert is_sentence(reader, grammar, text), text
        assert parsed(text, template, tools=TOOLS) == {"calls": calls}
    assert not is_sentence(reader, AnswerGrammars(template, "").calls(TOOLS, parallel=False), written(name, *CALLS))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "call",
    [
        ["weather", "{}"],
        ["weather", '{"city": ""}'],
        ["weather", '{"city": "Oslo", "more": 1}'],
        ["wind", "{}"],
        ["now", "[]"],
    ],
)
def test_a_forced_answer_is_no_other_call(reader, name, call):
    assert not is_sentence(reader, AnswerGrammars(template_of(name), "").calls(TOOLS), written(name, call))
    assert not is_sentence(reader, AnswerGrammars(template_of(name), "").calls(TOOLS), "It is cold.")


@pytest.mark.parametrize(
    ("name", "end", "thoughts", "is_admitted"),
    [
        ("deepseek-r1-distill", "<｜Assistant｜><think>\n", "Hm. <tool_call>\n</think>\n\n", True),
        ("deepseek-r1-distill", "<｜Assistant｜><think>\n", "", False),
        ("qwen3", "<|im_start|>assistant\n", "<think>\nHm.\n</think>\n\n", True),
        ("qwen3", "<|im_start|>assistant\n", "", True),
        ("qwen3", "<|im_start|>assistant\n", "Hm.\n</think>\n\n", False),
        ("qwen3", "<think>\n\n</think>\n\n", "", True),
        ("qwen3", "<think>\n\n</think>\n\n", "<think>\nHm.\n</think>\n\n", False),
        ("magistral", "[/INST]", "[THINK]Hm.[/THINK]", True),
        ("chatml", "<|im_start|>assistant\n", "<think>\nHm.\n</think>\n\n", False),
    ],
)
def test_thinking_may_come_before_what_is_forced(reader, name, end, thoughts, is_admitted):
    template = template_of(name)
    call = written(name if name in FORMS else "chatml", CALLS[0])
    assert is_sentence(reader, AnswerGrammars(template, end).calls(TOOLS), thoughts + call) == is_admitted
    for grammar, text in (
        (Grammar("json_schema", json.dumps(WEATHER)), '{"city": "Oslo"}'),
        (Grammar("json_object"), '{"a": [1]}'),
        (Grammar("regex", "a/b|c"), "a/b"),
    ):
        assert (
            is_sentence(reader, AnswerGrammars(template, end).after_thinking(grammar), thoughts + text) == is_admitted
        )
        assert not is_sentence(reader, AnswerGrammars(template, end).after_thinking(grammar), thoughts + text[:-1])
    if is_admitted:
        assert parsed(thoughts + call, template, end, TOOLS)["calls"] == [CALLS[0]]


@pytest.mark.parametrize("name", FORMS)
def test_an_answer_may_be_a_call_or_what_else_is_asked_for(reader, name):
    template = template_of(name)
    for otherwise in (Grammar("json_object"), Grammar("json_schema", json.dumps(WEATHER))):
        grammar = AnswerGrammars(template, "</think>").calls(TOOLS, otherwise=otherwise)
        tag = "<|python_tag|>" if name == "llama3.1-tools" else ""
        for text in (tag + written(name, *CALLS), '{"city": "Oslo"}'):
            assert is_sentence(reader, grammar, text), text
        assert not is_sentence(reader, grammar, "It is cold.")


def test_a_schema_that_is_no_json_is_refused():
    with pytest.raises(RequestError, match="the schema is not JSON"):
        AnswerGrammars(template_of("qwen3"), "").after_thinking(Grammar("json_schema", "{"))


@pytest.mark.parametrize("name", ["deepseek-v3.1", "magistral"])
def test_marks_that_are_special_tokens_are_such_tokens_in_the_grammar(name):
    template = template_of(name)
    names = ["[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"]
    data = tiny_tokenizer_data()
    first = len(data.pieces)
    pieces = [*data.pieces, *(one.encode() for one in names)]
    tokenizer = of_t(replace(data, pieces=pieces, scores=[*data.scores, *[0.0] * len(names)]))
    specials = {one: token for token, one in enumerate(names, first) if token in tokenizer.silent and one in template}
    assert len(specials) >= 2
    vocabulary = Vocabulary(tokenizer, len(pieces))
    grammar = GrammarReader(tokenizer).read(AnswerGrammars(template, "[/INST]", specials).calls(TOOLS))
    thoughts = "[THINK]Hm.[/THINK]" if name == "magistral" else ""
    text = thoughts + written(name, *CALLS)
    parts = re.split("(" + "|".join(map(re.escape, specials)) + ")", text)
    spelled = [FIRST_BYTE + byte for byte in text.encode()]
    tokens = [
        token
        for part in parts
        for token in ([specials[part]] if part in specials else [FIRST_BYTE + byte for byte in part.encode()])
    ]
    matcher = vocabulary.compile(grammar)
    assert all(matcher.consume_token(token) for token in tokens)
    assert matcher.is_accepting()
    matcher = vocabulary.compile(grammar)
    assert not all(matcher.consume_token(token) for token in spelled)


def test_a_grammar_of_the_user_s_own_is_of_the_whole_answer():
    for kind in ("lark", "gbnf"):
        own = Grammar(kind, "start: /a/")
        assert AnswerGrammars(template_of("qwen3"), "<think>\n").after_thinking(own) is own


def test_templates_show_whether_models_may_think():
    thinking = {path.stem for path in FOLDER.glob("*.jinja") if may_think(path.read_text("utf-8"))}
    assert thinking >= {"qwen3", "deepseek-r1-distill", "deepseek-v3.1", "magistral"}
    assert not thinking & {"llama2", "llama3", "chatml", "zephyr", "gemma", "phi3", "mistral-v7"}
