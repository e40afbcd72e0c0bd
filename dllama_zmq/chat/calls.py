"""Tool calls as JSON objects, parsed as they arrive. Knows no marks around them.

A call begins once its name is known and its arguments begin; from then on they are streamed. Before that, reading can
be undone (`Reader.hold`), so that a text that turns out to be no call stays text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dllama_zmq.chat.deltas import Collector
from dllama_zmq.chat.json_text import read_string, read_value, well_formed
from dllama_zmq.chat.reader import Reader, Reading

_ARGUMENTS = ("arguments", "parameters")
_OTHERS = ("id", "type", "index")  # other keys of a call


class Tools:
    """The functions of a request: {"type": "function", "function": {"name": ..., "parameters": a JSON schema}}."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        functions = [tool.get("function", tool) for tool in tools]
        self._schemas = {str(function.get("name")): function.get("parameters") or {} for function in functions}

    def __contains__(self, name: str) -> bool:
        return name in self._schemas

    def type_of(self, name: str, argument: str) -> object:
        """The "type" of this argument in the function's schema; None if it has none."""
        properties = self._schemas.get(name, {}).get("properties")
        schema = properties.get(argument) if isinstance(properties, Mapping) else None
        return schema.get("type") if isinstance(schema, Mapping) else None


def read_call(reader: Reader, out: Collector, tools: Tools | None) -> Reading[bool]:
    """Read {"name": ..., "arguments": {...}} from where `hold` was called. Returns whether it was a call.

    tools: the name must be one of theirs. None: any name, because marks say that this is a call.
    """
    if not (yield from reader.take("{")):
        return False
    name, early, has_begun = "", "", False  # early: arguments that precede the name
    while True:
        yield from reader.space()
        key = yield from read_string(reader)
        yield from reader.space()
        if key is None or not (yield from reader.take(":")):
            return has_begun
        yield from reader.space()
        if key == "name" and not name:
            name = (yield from read_string(reader)) or ""
            if not name or (tools is not None and name not in tools):
                return False
        elif key in _ARGUMENTS and not has_begun and not early:
            if name:
                has_begun = yield from read_arguments(reader, out, name)
                if not has_begun:
                    return False
            else:
                early = (yield from _value(reader)) or "null"
        elif key in _OTHERS or has_begun:
            yield from _value(reader)
        else:
            return False
        yield from reader.space()
        end = yield from reader.take(",", "}")
        if end != ",":
            return has_begun or (end == "}" and bool(name) and _say_call(reader, out, name, early or "null"))


def read_arguments(reader: Reader, out: Collector, name: str) -> Reading[bool]:
    """Read the arguments of a call: an object, an object as a string, or null. Returns whether they were."""
    if (yield from reader.character()) != "{":
        return _say_call(reader, out, name, (yield from _value(reader)))
    reader.keep()
    out.call(name)
    yield from read_value(reader, out.arguments)
    return True


def read_calls(reader: Reader, out: Collector, tools: Tools | None) -> Reading[bool]:
    """Read a list of calls, [{...}, {...}], from where `hold` was called. Returns whether it was one."""
    if not (yield from reader.take("[")):
        return False
    yield from reader.space()
    if not (yield from read_call(reader, out, tools)):
        return False
    while True:
        reader.hold()
        yield from reader.space()
        end = yield from reader.take(",", "]")
        yield from reader.space()
        if end == "]":
            reader.keep()
            return True
        if not end or not (yield from read_call(reader, out, tools)):
            reader.undo()
            return True


def _value(reader: Reader) -> Reading[str]:
    parts: list[str] = []
    yield from read_value(reader, parts.append)
    return "".join(parts)


def _say_call(reader: Reader, out: Collector, name: str, arguments: str) -> bool:
    """Make a call from its complete arguments. Returns False if they are none."""
    try:
        value = json.loads(arguments, strict=False)
        if isinstance(value, str):
            arguments = well_formed(value)
            value = json.loads(value, strict=False)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict | None):
        return False
    reader.keep()
    out.call(name)
    out.arguments(arguments if value is not None else "{}")
    return True
