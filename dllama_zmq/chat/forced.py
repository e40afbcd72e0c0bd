"""Grammars that leave a model no choice but to call a tool, or to keep to a form once it has thought.

In llguidance's notation. Each function's arguments are a JSON grammar of their own, so that references within its
schema hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dllama_zmq.chat.families import family_of
from dllama_zmq.chat.thinking import Thinking, thinking_of
from dllama_zmq.errors import RequestError
from dllama_zmq.grammar import Grammar

_SPACE = r" |\n{1,2}[ \t]{0,20}"
"""White space in JSON: bounded, for small models go on with it for ever."""
_LINES = r"/\n{0,2}/"
_FORMS = {
    "llama3": ('{"name": NAME, "parameters": ', "}"),
    "mistral": ('{"name": NAME, "arguments": ', "}"),
    "deepseek": ("<｜tool▁call▁begin｜>TEXT<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    "deepseek-r1": ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>TEXT\n```json\n", "\n```<｜tool▁call▁end｜>"),
    "hermes": ('<tool_call>\n{"name": NAME, "arguments": ', "}\n</tool_call>"),
}
"""What stands before a call's arguments and after them; NAME is the function's name in quotes, TEXT without."""
_LISTS = {
    "llama3": ("", "; ", ""),
    "mistral": ("[", ", ", "]"),
    "deepseek": ("<｜tool▁calls▁begin｜>", "", "<｜tool▁calls▁end｜>"),
    "deepseek-r1": ("<｜tool▁calls▁begin｜>", "\n", "<｜tool▁calls▁end｜>"),
    "hermes": ("", "\n", ""),
}
"""What stands before the calls, between them and after them."""


def may_think(template: str) -> bool:
    """Whether answers may begin with thinking, as far as the template shows: then grammars depend on the prompt."""
    marks = thinking_of(template)
    return marks.opens in template or marks.closes in template


def calls_grammar(
    template: str,
    prompt_end: str,
    tools: Sequence[Mapping[str, Any]],
    parallel: bool = True,
    otherwise: Grammar | None = None,
) -> Grammar:
    """The answer calls one of `tools`, or some after one another. prompt_end: how the prompt's text ends.

    otherwise: a grammar of JSON that the answer may be a sentence of instead.
    """
    form = _form_of(template)
    before, between, after = _LISTS[form]
    if form == "llama3" and otherwise is not None:
        before = "<|python_tag|>"  # both are objects; the first character must tell them apart
    functions = [tool.get("function", tool) for tool in tools]
    more = f"({_quoted(between)} call)*" if parallel else ""
    rules = [
        f"call: {' | '.join(f'call_{number}' for number in range(len(functions)))}",
        f"calls: {_quoted(before)} call {more} {_quoted(after)}",
    ]
    for number, function in enumerate(functions):
        begins, ends = _FORMS[form]
        name = str(function.get("name"))
        begins = begins.replace("NAME", json.dumps(name, ensure_ascii=False)).replace("TEXT", name)
        schema = {"type": "object", **(function.get("parameters") or {})}
        rules.append(f"call_{number}: {_quoted(begins)} arguments_{number} {_quoted(ends)}")
        rules.append(f"arguments_{number}: {_json(schema)}")
    rule = "calls"
    if otherwise is not None:
        rule = "(calls | answer)"
        rules.append(f"answer: {_json(_schema_of(otherwise))}")
    return Grammar("lark", "\n".join([_start(template, prompt_end, rule), *rules]))


def after_thinking(grammar: Grammar, template: str, prompt_end: str) -> Grammar:
    """`grammar` of what comes after thinking. Lark's and llama.cpp's kinds are of the whole answer, as they are."""
    if not may_think(template) or grammar.kind in ("lark", "gbnf"):
        return grammar
    if grammar.kind == "regex":
        escaped = re.sub(r"(?<!\\)/", r"\/", grammar.text)
        body = f"/{escaped}/"
    else:
        body = _json(_schema_of(grammar))
    return Grammar("lark", f"{_start(template, prompt_end, 'answer')}\nanswer: {body}")


def _form_of(template: str) -> str:
    name = family_of(template).name
    if name == "deepseek" and "```json" in template:
        return "deepseek-r1"
    return name if name in _FORMS else "hermes"


def _start(template: str, prompt_end: str, rule: str) -> str:
    """The first rule: `rule`, after thinking if the prompt has opened it or the model may open it."""
    marks = thinking_of(template)
    if not may_think(template) or _is_over(prompt_end, marks):
        return f"start: {rule}"
    end = re.escape(marks.closes).replace("/", r"\/")
    thoughts = rf"thoughts[lazy]: /(.|\n)*{end}/"
    if marks.is_open(prompt_end):
        return f"start: thoughts {_LINES} {rule}\n{thoughts}"
    return f"start: ({_quoted(marks.opens)} thoughts {_LINES})? {rule}\n{thoughts}"


def _is_over(prompt_end: str, marks: Thinking) -> bool:
    return prompt_end.rstrip().endswith(marks.closes)


def _schema_of(grammar: Grammar) -> object:
    """Of a grammar of JSON. Raises RequestError if it is none."""
    try:
        return json.loads(grammar.text) if grammar.kind == "json_schema" else {"type": "object"}
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the schema is not JSON: {error}") from None


def _json(schema: object) -> str:
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": {"whitespace_pattern": _SPACE, **schema.get("x-guidance", {})}}
    return f"%json {json.dumps(schema)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
