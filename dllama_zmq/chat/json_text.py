"""JSON parsed as it arrives: strings whole, other values passed on as text. Knows no tool call."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from dllama_zmq.chat.reader import Reader, Reading

_IN_STRING = re.compile(r'["\\]')
_BRACKETS = re.compile(r'["{}\[\]]')
_END_OF_SCALAR = re.compile(r'["{}\[\],\s]')


def well_formed(text: str) -> str:
    """The text with U+FFFD for unpaired surrogates, which JSON escapes can write and UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def quoted(text: str) -> str:
    """The text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def read_string(reader: Reader) -> Reading[str | None]:
    """Read a string and return its value; None if the next text is no JSON string."""
    if (yield from reader.character()) != '"':
        return None
    parts: list[str] = []
    if not (yield from read_value(reader, parts.append)):
        return None
    try:
        return well_formed(str(json.loads("".join(parts), strict=False)))
    except ValueError:
        return None


def read_value(reader: Reader, emit: Callable[[str], None]) -> Reading[bool]:
    """Read a value and `emit` its text as it arrives. Returns False if the text ends within it.

    Invalid JSON is passed on too, up to where its brackets and quotes close.
    """
    depth, is_string = 0, False
    while (yield from reader.character()):
        pattern = _IN_STRING if is_string else _BRACKETS if depth else _END_OF_SCALAR
        found = pattern.search(reader.text, reader.at)
        if found is None:
            reader.emit_up_to(len(reader.text), emit)
            continue
        mark = found[0]
        if not is_string and depth == 0 and mark not in '"{[':
            reader.emit_up_to(found.start(), emit)
            return True
        reader.emit_up_to(found.end(), emit)
        if mark == "\\":
            if (yield from reader.character()):
                reader.emit_up_to(reader.at + 1, emit)
        elif mark == '"':
            is_string = not is_string
        else:
            depth += 1 if mark in "{[" else -1
        if depth == 0 and not is_string:
            return True
    return False
