"""Grammars that make a model call a tool, or keep to a form after its thinking.

In llguidance's notation. The arguments of each function are a JSON grammar of their own, so that references within its
schema resolve.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from dllama_zmq.chat.families import family_of
from dllama_zmq.chat.json_text import quoted
from dllama_zmq.chat.thinking import thinking_of
from dllama_zmq.errors import RequestError
from dllama_zmq.grammar import JSON_SPACE, Grammar

_LINES = r"/\n{0,2}/"
_FORMS = {
    "llama3": ("", '{"name": NAME, "parameters": ', "}", "; ", ""),
    "mistral": ("[TOOL_CALLS][", '{"name": NAME, "arguments": ', "}", ", ", "]"),
    "mistral-by-name": ("", "[TOOL_CALLS]TEXT[ARGS]", "", "", ""),
    "deepseek": (
        *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>TEXT<｜tool▁sep｜>"),
        *("<｜tool▁call▁end｜>", "", "<｜tool▁calls▁end｜>"),
    ),
    "deepseek-r1": (
        *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>TEXT\n```json\n"),
        *("\n```<｜tool▁call▁end｜>", "\n", "<｜tool▁calls▁end｜>"),
    ),
    "hermes": ("", '<tool_call>\n{"name": NAME, "arguments": ', "}\n</tool_call>", "\n", ""),
}
"""The text before all calls, before a call's arguments and after them, between calls, and after all; NAME is the
function's name in quotes, TEXT without."""


def may_think(template: str) -> bool:
    """Whether answers may begin with thinking, as the template shows; grammars then depend on the prompt."""
    marks = thinking_of(template)
    return marks.opens in template or marks.closes in template


class AnswerGrammars(Struct, frozen=True):
    """Grammars for the answer to one prompt: of a template's text, the end of the prompt, and special tokens by name.

    A mark that is a special token is a token in the grammar too, because no text becomes such a token.
    """

    template: str
    end: str = ""
    specials: Mapping[str, int] = field(default_factory=dict)

    def calls(
        self, tools: Sequence[Mapping[str, Any]], parallel: bool = True, otherwise: Grammar | None = None
    ) -> Grammar:
        """A grammar of a call of one of `tools`, or (parallel) of several calls.

        otherwise: a JSON grammar that the answer may match instead.
        """
        form = self._form()
        before, begins, ends, between, after = _FORMS[form]
        if form == "llama3" and otherwise is not None:
            before = "<|python_tag|>"  # both alternatives are objects, so the first character must tell them apart
        functions = [tool.get("function", tool) for tool in tools]
        more = f"({self._text(between)} call)*" if parallel else ""
        rules = [
            f"call: {' | '.join(f'call_{number}' for number in range(len(functions)))}",
            f"calls: {self._text(before)} call {more} {self._text(after)}",
        ]
        for number, function in enumerate(functions):
            name = str(function.get("name"))
            named = begins.replace("NAME", quoted(name)).replace("TEXT", name)
            schema = {"type": "object", **(function.get("parameters") or {})}
            rules.append(f"call_{number}: {self._text(named)} arguments_{number} {self._text(ends)}")
            rules.append(f"arguments_{number}: {_json(schema)}")
        rule = "calls"
        if otherwise is not None:
            rule = "(calls | answer)"
            rules.append(f"answer: {_json(_schema_of(otherwise))}")
        return Grammar("lark", "\n".join([self._start(rule), *rules]))

    def after_thinking(self, grammar: Grammar) -> Grammar:
        """`grammar` after any thinking. Grammars in Lark and GBNF are for the whole answer and are not changed."""
        if not may_think(self.template) or grammar.kind in ("lark", "gbnf"):
            return grammar
        if grammar.kind == "regex":
            escaped = re.sub(r"(?<!\\)/", r"\/", grammar.text)
            body = f"/{escaped}/"
        else:
            body = _json(_schema_of(grammar))
        return Grammar("lark", f"{self._start('answer')}\nanswer: {body}")

    def _form(self) -> str:
        name = family_of(self.template).name
        if name == "deepseek" and "```json" in self.template:
            return "deepseek-r1"
        if name == "mistral" and "[ARGS]" in self.template:
            return "mistral-by-name"
        return name if name in _FORMS else "hermes"

    def _start(self, rule: str) -> str:
        """The first rule: `rule`, after thinking if the prompt has opened it or the model may open it."""
        marks = thinking_of(self.template)
        if not may_think(self.template) or self.end.rstrip().endswith(marks.closes):
            return f"start: {rule}"
        if marks.closes in self.specials:
            thoughts = rf"thoughts: /(.|\n)*/ {self._text(marks.closes)}"
        else:
            end = re.escape(marks.closes).replace("/", r"\/")
            thoughts = rf"thoughts[lazy]: /(.|\n)*{end}/"
        if marks.is_open(self.end):
            return f"start: thoughts {_LINES} {rule}\n{thoughts}"
        return f"start: ({self._text(marks.opens)} thoughts {_LINES})? {rule}\n{thoughts}"

    def _text(self, text: str) -> str:
        """A text as symbols of a rule."""
        names = "|".join(re.escape(name) for name in sorted(self.specials, key=len, reverse=True))
        parts = re.split(f"({names})", text) if names else [text]
        symbols = [f"<[{self.specials[part]}]>" if part in self.specials else quoted(part) for part in parts if part]
        return " ".join(symbols)


def _schema_of(grammar: Grammar) -> object:
    """The schema of a JSON grammar. Raises RequestError if it is not JSON."""
    try:
        return json.loads(grammar.text) if grammar.kind == "json_schema" else {"type": "object"}
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the schema is not JSON: {error}") from None


def _json(schema: object) -> str:
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": {"whitespace_pattern": JSON_SPACE, **schema.get("x-guidance", {})}}
    return f"%json {json.dumps(schema)}"
