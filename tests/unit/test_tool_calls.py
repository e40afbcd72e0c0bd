"""Tool calls are read from an answer as each family of models writes them, however the answer is cut into pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from deltas import joined, parsed
from hypothesis import example, given
from hypothesis import strategies as st

from dllama_zmq.chat import AnswerParser, needs_specials

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
    for name in ("weather", "get-time")
]
# What tells the family in a template's text; tests/unit/test_turns.py has whole templates.
TEMPLATES = {
    "hermes": "<tool_call>\n",
    "qwen3-coder": "<tool_call>\n<function=example>\n<parameter=name>",
    "functionary": "<function=example>{{ arguments }}</function>",
    "llama3": "<|start_header_id|>ipython",
    "mistral": "[TOOL_CALLS]",
    "deepseek": "<think> <｜tool▁calls▁begin｜>",
    "none": "<|im_start|>",
}
OSLO = ["weather", '{"city": "Oslo"}']
TIME = ["get-time", '{"city": "Rome", "days": [{"a": "}]\\""}]}']
BEGIN, END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


def hermes(*calls: list[str]) -> str:
    return "\n".join(f'<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>' for n, a in calls)


def r1(*calls: list[str]) -> str:
    body = "\n".join(f"{BEGIN}function{SEP}{n}\n```json\n{a}\n```{END}" for n, a in calls)
    return f"<｜tool▁calls▁begin｜>{body}<｜tool▁calls▁end｜>"


def v31(*calls: list[str]) -> str:
    body = "".join(f"{BEGIN}{n}{SEP}{a}{END}" for n, a in calls)
    return f"<｜tool▁calls▁begin｜>{body}<｜tool▁calls▁end｜>"


def in_list(*calls: list[str]) -> str:
    return "[" + ", ".join(f'{{"name": "{n}", "arguments": {a}, "id": "abcdefghi"}}' for n, a in calls) + "]"


CALLS = {
    "hermes": ("hermes", hermes(OSLO), [OSLO]),
    "hermes, several": ("hermes", hermes(OSLO, TIME), [OSLO, TIME]),
    "hermes, several between two marks": (
        "hermes",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n{"name": "now"}\n</tool_call>',
        [OSLO, ["now", "{}"]],
    ),
    "hermes, for a template without tools": ("none", hermes(OSLO), [OSLO]),
    "hermes, closed by the end": ("hermes", hermes(OSLO).removesuffix("\n</tool_call>"), [OSLO]),
    "arguments first": ("hermes", '<tool_call>{"arguments": {"city": "Oslo"}, "name": "weather"}</tool_call>', [OSLO]),
    "arguments as a string": (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}</tool_call>',
        [OSLO],
    ),
    "no arguments": ("hermes", '<tool_call>{"name": "weather"}</tool_call>', [["weather", "{}"]]),
    "null": ("hermes", '<tool_call>{"name": "weather", "arguments": null}</tool_call>', [["weather", "{}"]]),
    "a name that no tool has": ("hermes", hermes(["wind", "{}"]), [["wind", "{}"]]),
    "escapes in the name": ("hermes", hermes(["we\\u0061ther", "{}"]), [["weather", "{}"]]),
    "llama": ("llama3", '{"name": "weather", "parameters": {"city": "Oslo"}}', [OSLO]),
    "llama, with a type": (
        "llama3",
        ' {"type": "function", "name": "weather", "parameters": {"city": "Oslo"}}\n',
        [OSLO],
    ),
    "llama, several": (
        "llama3",
        f'{{"name": "weather", "parameters": {OSLO[1]}}}; {{"name": "get-time", "parameters": {TIME[1]}}}',
        [OSLO, TIME],
    ),
    "llama, python_tag": ("llama3", '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}', [OSLO]),
    "llama, pythonic": (
        "llama3",
        "[weather(city='Oslo'), get-time(city=\"Rome\", days=[{'a': '}]\"'}])]",
        [OSLO, TIME],
    ),
    "llama, pythonic constants": (
        "llama3",
        "[weather(a=True, b=None, c=-1.5, d=(1, 2), e='\\d')]",
        [["weather", '{"a": true, "b": null, "c": -1.5, "d": [1, 2], "e": "\\\\d"}']],
    ),
    "llama, pythonic without arguments": ("llama3", "[weather( )]", [["weather", "{}"]]),
    "llama, a list of objects": ("llama3", in_list(OSLO, TIME), [OSLO, TIME]),
    "mistral": ("mistral", f"[TOOL_CALLS] {in_list(OSLO, TIME)}", [OSLO, TIME]),
    "mistral, without names of special tokens": ("mistral", in_list(OSLO), [OSLO]),
    "mistral, an object": ("mistral", '[TOOL_CALLS]{"name": "weather", "arguments": {"city": "Oslo"}}', [OSLO]),
    "mistral, by name": (
        "mistral",
        f"[TOOL_CALLS]weather[ARGS]{OSLO[1]}[TOOL_CALLS]get-time[CALL_ID]abcdefghi[ARGS]{TIME[1]}",
        [OSLO, TIME],
    ),
    "mistral, by name alone": ("mistral", f"[TOOL_CALLS]weather{OSLO[1]}", [OSLO]),
    "deepseek R1": ("deepseek", r1(OSLO, TIME), [OSLO, TIME]),
    "deepseek V3.1": ("deepseek", v31(OSLO, TIME), [OSLO, TIME]),
    "qwen3-coder": (
        "qwen3-coder",
        '<tool_call>\n<function=weather>\n<parameter=city>\n12\n"a"\n</parameter>\n<parameter=days>\n3\n</parameter>\n'
        "</function>\n</tool_call>\n<function=get-time>\n<parameter=zone>CET</parameter></function>",
        [["weather", '{"city": "12\\n\\"a\\"", "days": 3}'], ["get-time", '{"zone": "CET"}']],
    ),
    "qwen3-coder, no arguments": ("qwen3-coder", "<tool_call><function=wind></function></tool_call>", [["wind", "{}"]]),
    "qwen3-coder, as hermes": ("qwen3-coder", hermes(OSLO), [OSLO]),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_read(name):
    family, text, calls = CALLS[name]
    assert parsed(text, TEMPLATES[family], tools=TOOLS) == {"calls": calls}


@pytest.mark.parametrize("name", CALLS)
def test_without_tools_a_call_is_text(name):
    family, text, _ = CALLS[name]
    assert parsed(text, TEMPLATES[family]) == {"content": text}


@pytest.mark.parametrize("name", [name for name in CALLS if "llama" not in name and "without" not in name])
def test_text_before_a_call_and_after_it_is_content(name):
    family, text, calls = CALLS[name]
    if "closed by the end" not in name:
        text = f"{text}\n\nNow wait."
    expected = {"content": "Let me see." + ("Now wait." if text.endswith("wait.") else ""), "calls": calls}
    assert parsed(f"Let me see.\n\n{text}", TEMPLATES[family], tools=TOOLS) == expected


TEXTS = {
    "a mark alone": ("hermes", "<tool_call>"),
    "a mark in a sentence": ("hermes", "Write <tool_call> and then JSON. </tool_call>"),
    "an object of another kind": ("hermes", '<tool_call>{"city": "Oslo"}</tool_call>'),
    "arguments that are a list": ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
    "arguments that are a string": ("hermes", '<tool_call>{"name": "weather", "arguments": "Oslo"}</tool_call>'),
    "a name that is a number": ("hermes", '<tool_call>{"name": 1, "arguments": {}}</tool_call>'),
    "an empty name": ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    "no end": ("hermes", 'Hm. <tool_call>\n{"name": "weather", '),
    "no end of the name": ("hermes", '<tool_call>\n{"name": "wea'),
    "deep arguments before the name": ("hermes", '<tool_call>{"arguments": "' + "[" * 5000 + '", "name": "weather"}'),
    "white space": ("hermes", " \n\n"),
    "llama, JSON of another kind": ("llama3", '{"name": "Oslo", "people": 700000}\n'),
    "llama, a function that no tool is": ("llama3", '{"name": "wind", "parameters": {"city": "Oslo"}}'),
    "llama, in mid-text": ("llama3", 'Like {"name": "weather", "parameters": {"city": "Oslo"}}'),
    "llama, a list": ("llama3", "[1] Oslo [2] Rome"),
    "llama, an unknown function": ("llama3", "[wind(city='Oslo')]"),
    "llama, not keywords": ("llama3", "[weather('Oslo')]"),
    "llama, not constants": ("llama3", "[weather(city=open('x').read())]"),
    "llama, more keywords": ("llama3", "[weather(**{'city': 'Oslo'})]"),
    "llama, infinity": ("llama3", "[weather(days=1e999)]"),
    "llama, deep": ("llama3", "[weather(days=" + "(" * 3000 + ")" * 3000 + ")]"),
    "llama, python": ("llama3", "<|python_tag|>print('Oslo')"),
    "mistral, a list": ("mistral", '[{"name": "Oslo"}]'),
    "mistral, no call": ("mistral", "[TOOL_CALLS] are marks."),
    "deepseek, no call": ("deepseek", f"<｜tool▁calls▁begin｜>{BEGIN}function{SEP}weather\nOslo"),
    "qwen3-coder, an unknown function": ("qwen3-coder", "<function=wind></function>"),
    "a tag around JSON, which is another form": ("functionary", '<function=weather>{"city": "Oslo"}</function>'),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_only_looks_like_a_call_stays_text(name):
    family, text = TEXTS[name]
    assert parsed(text, TEMPLATES[family], tools=TOOLS) == {"content": text}


@pytest.mark.parametrize(
    ("family", "text", "message"),
    [
        (
            "hermes",
            '<tool_call>{"name": "weather", "arguments": {"city": "Os',
            {"calls": [["weather", '{"city": "Os']]},
        ),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {', {"calls": [["weather", "{"]]}),
        ("hermes", hermes(OSLO) + '<tool_call>{"name', {"calls": [OSLO], "content": '<tool_call>{"name'}),
        ("llama3", "[weather(city='Oslo'), get-ti", {"calls": [OSLO], "content": ", get-ti"}),
        ("mistral", f"[TOOL_CALLS]{in_list(OSLO)[:-1]}", {"calls": [OSLO]}),
        ("mistral", '[TOOL_CALLS]weather[ARGS]{"ci', {"calls": [["weather", '{"ci']]}),
        ("deepseek", f'{BEGIN}weather{SEP}{{"ci', {"calls": [["weather", '{"ci']]}),
        (
            "qwen3-coder",
            "<tool_call><function=weather><parameter=days>3</parameter><parameter=city>\nOs",
            {"calls": [["weather", '{"days": 3, "city": "Os']]},
        ),
    ],
)
def test_an_answer_that_ends_in_a_call_loses_nothing_of_it(family, text, message):
    assert parsed(text, TEMPLATES[family], tools=TOOLS) == message


def test_arguments_stream_as_they_come():
    parser = AnswerParser(TEMPLATES["hermes"], "", TOOLS)
    assert parser.push('Wait. <tool_call>{"name": "weather", "argum')[0].content == "Wait."
    (first,) = parser.push('ents": {"ci')
    assert first.tool is not None
    assert (first.tool.index, first.tool.name, first.tool.arguments) == (0, "weather", '{"ci')
    assert first.tool.id.isalnum()
    assert len(first.tool.id) == 9
    assert joined([first, *parser.push('ty": "Os')]) == {"calls": [["weather", '{"city": "Os']]}
    assert parser.has_calls
    (second,) = parser.push('lo"')
    assert second.tool is not None
    assert (second.tool.id, second.tool.name, second.tool.arguments) == ("", "", 'lo"')


@pytest.mark.parametrize("name", [name for name in CALLS if "several" in name or "R1" in name or "by name" in name])
def test_calls_after_the_first_are_left_out_where_one_is_allowed(name):
    family, text, calls = CALLS[name]
    parser = AnswerParser(TEMPLATES[family], "", TOOLS, parallel=False)
    assert joined([delta for piece in text for delta in parser.push(piece)] + parser.finish()) == {"calls": calls[:1]}


def test_every_call_has_an_id_of_its_own():
    parser = AnswerParser(TEMPLATES["hermes"], "", TOOLS)
    deltas = parser.push(hermes(*[OSLO] * 20))
    identities = [delta.tool.id for delta in deltas if delta.tool is not None]
    assert len(set(identities)) == 20


def test_thinking_comes_before_calls():
    text = f"<think>\nA <tool_call> is due.\n</think>\n\n{hermes(OSLO)}"
    assert parsed(text, TEMPLATES["hermes"], tools=TOOLS) == {
        "reasoning": "A <tool_call> is due.",
        "calls": [OSLO],
    }


def test_names_of_special_tokens_are_needed_where_marks_may_be_such_tokens():
    assert needs_specials("", TOOLS)
    assert needs_specials("...[THINK]...", None)
    assert needs_specials("...'</think>' ... <think>...", None)
    assert not needs_specials("<|im_start|>", None)
    assert not needs_specials("[TOOL_CALLS]", [])


FRAGMENTS = [
    *{part for _, text, _ in CALLS.values() for part in (text, text[: len(text) // 2], text[len(text) // 2 :])},
    "<tool_call>", "</tool_call>", '{"name": "weather", ', '"arguments": {', '"parameters": {}', "}", "]", "[", '"',
    "\\", "[TOOL_CALLS]", "[ARGS]", "weather", "(", ")", BEGIN, END, SEP, "<function=weather>", "<parameter=city>",
    "\n", " ", "</parameter>", "text", ";", ",", "<|python_tag|>", "<think>", "</think>", "\\u00", "é",
]  # fmt: skip


@given(
    st.sampled_from(list(TEMPLATES.values())),
    st.lists(st.sampled_from(sorted(FRAGMENTS)), max_size=8).map("".join),
    st.lists(st.integers(0, 400), max_size=8),
)
@example(TEMPLATES["hermes"], '<tool_call>{"name": "weather", "arguments": {"a": "\\', [52])
def test_where_an_answer_is_cut_makes_no_difference(template, text, cuts):
    assert parsed(text, template, tools=TOOLS, cuts=cuts) == parsed(text, template, tools=TOOLS)
    assert parsed(text, template, tools=TOOLS, cuts=range(len(text))) == parsed(text, template, tools=TOOLS)


@given(
    st.sampled_from(["hermes", "mistral", "deepseek"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
)
def test_arguments_are_passed_on_as_they_are_written(family, value):
    write: Any = {"hermes": hermes, "mistral": lambda call: "[TOOL_CALLS]" + in_list(call), "deepseek": r1}[family]
    for spaces in (None, 1):
        arguments = json.dumps({"value": value}, indent=spaces)
        assert parsed(write(["weather", arguments]), TEMPLATES[family], tools=TOOLS) == {
            "calls": [["weather", arguments]]
        }
