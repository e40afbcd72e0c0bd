"""Tool calls in Qwen3-Coder's form, with a tag around each argument. Knows the schemas of the functions."""

from __future__ import annotations

import json

from dllama_zmq.chat.calls import Tools
from dllama_zmq.chat.deltas import Collector
from dllama_zmq.chat.json_text import quoted
from dllama_zmq.chat.reader import Reader, Reading


def read_tagged_call(reader: Reader, out: Collector, tools: Tools, any_name: bool) -> Reading[bool]:
    """Read NAME><parameter=KEY>VALUE</parameter>...</function> from where `hold` was called. Returns whether it was a
    call.
    """
    name = yield from reader.word()
    if not name or not (any_name or name in tools) or not (yield from reader.take(">")):
        return False
    reader.keep()
    out.call(name)
    opening = "{"
    yield from reader.space()
    while (yield from reader.take("<parameter=")):
        key = yield from reader.word()
        yield from reader.take(">")
        out.arguments(f"{opening}{quoted(key)}: ")
        opening = ", "
        is_whole = yield from _read_argument(reader, out, tools.type_of(name, key))
        if not is_whole:
            return True
        yield from reader.space()
    if (yield from reader.character()):
        out.arguments("}" if opening == ", " else "{}")
    yield from reader.take("</function>")
    return True


def _read_argument(reader: Reader, out: Collector, kind: object) -> Reading[bool]:
    """Read VALUE</parameter>. Returns False if the answer ends within it.

    Strings have no quotes here, so the schema tells them from other values. Without a schema, valid JSON is no string.
    """
    yield from reader.take("\n")
    ends = ("\n</parameter>", "</parameter>")
    if kind == "string":
        out.arguments('"')
        is_whole = bool((yield from reader.until(ends, lambda text: out.arguments(quoted(text)[1:-1]))))
        out.arguments('"' if is_whole else "")
        return is_whole
    parts: list[str] = []
    is_whole = bool((yield from reader.until(ends, parts.append)))
    text = "".join(parts)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        text = quoted(text)
    out.arguments(text)
    return is_whole
