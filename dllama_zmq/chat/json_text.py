"""JSON while it comes: strings whole, other values passed on as text. Knows no tool call."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from dllama_zmq.chat.reader import Reader, Reading

_IN_STRING = re.compile(r'["\\]')
_BRACKETS = re.compile(r'["{}\[\]]')
_END_OF_SCALAR = re.compile(r'["{}\[\],\s]')


def sound(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which escapes can write and UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_string(reader: Reader) -> Reading[str | None]:
    """Read a string, and return what it says; None if none comes, or it is not JSON."""
    if (yield from reader.character()) != '"':
        return None
    parts: list[str] = []
    if not (yield from read_value(reader, parts.append)):
        return None
    try:
        return sound(str(json.loads("".join(parts), strict=False)))
    except ValueError:
        return None


def read_value(reader: Reader, say: Callable[[str], None]) -> Reading[bool]:
    """Read a value, and `say` its text as it comes. False if the text ends before the value does.

    What is not JSON is passed on too, up to where brackets and quotes say that the value ends.
    """
    depth, is_string = 0, False
    while (yield from reader.character()):
        pattern = _IN_STRING if is_string else _BRACKETS if depth else _END_OF_SCALAR
        found = pattern.search(reader.text, reader.at)
        if found is None:
            reader.say_up_to(len(reader.text), say)
            continue
        mark = found[0]
        if not is_string and depth == 0 and mark not in '"{[':
            reader.say_up_to(found.start(), say)
            return True
        reader.say_up_to(found.end(), say)
        if mark == "\\":
            if (yield from reader.character()):
                reader.say_up_to(reader.at + 1, say)
        elif mark == '"':
            is_string = not is_string
        else:
            depth += 1 if mark in "{[" else -1
        if depth == 0 and not is_string:
            return True
    return False
