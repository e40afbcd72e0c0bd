"""Tool calls in Python's form, `name(argument="value")`. They are parsed, never executed."""

from __future__ import annotations

import ast
import json
import warnings

from dllama_zmq.chat.calls import Tools
from dllama_zmq.chat.deltas import Collector
from dllama_zmq.chat.json_text import well_formed
from dllama_zmq.chat.reader import Reader, Reading


def read_pythonic_calls(reader: Reader, out: Collector, tools: Tools) -> Reading[bool]:
    """Read [name(...), name(...)] from where `hold` was called. Returns whether it was a list of calls of `tools`."""
    if not (yield from reader.take("[")):
        return False
    has_begun = False
    while True:
        yield from reader.space()
        name = yield from reader.word()
        arguments = (yield from _arguments(reader)) if name in tools else None
        if arguments is None:
            if has_begun:
                reader.undo()
            return has_begun
        has_begun = True
        reader.keep()
        out.call(name)
        out.arguments(arguments)
        reader.hold()
        yield from reader.space()
        end = yield from reader.take(",", "]")
        if end == "]":
            reader.keep()
            return True


def _arguments(reader: Reader) -> Reading[str | None]:
    """Read (argument=value, ...) and return it as JSON; None if it is not in that form."""
    start, depth, quote = reader.at, 0, ""
    while character := (yield from reader.character()):
        if depth == 0 and character != "(":
            return None
        reader.at += 1
        if quote:
            if character == "\\" and (yield from reader.character()):
                reader.at += 1
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return _as_json(reader.text[start : reader.at])
    return None


def _as_json(arguments: str) -> str | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings about escapes that Python does not know
            call = ast.parse(f"f{arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg is not None}
        if len(values) < len(call.keywords):  # **more
            return None
        return well_formed(json.dumps(values, ensure_ascii=False, allow_nan=False))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
