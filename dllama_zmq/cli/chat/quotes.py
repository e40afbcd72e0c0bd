"""Messages of several lines, between triple quotes."""

from __future__ import annotations

from collections.abc import Callable

QUOTES = '"""'


def is_quoted(line: str) -> bool:
    """Whether a message of several lines begins here."""
    return line.lstrip().startswith(QUOTES)


def quoted(line: str, following: Callable[[], str]) -> str:
    """The text between the quotes that begin `line` and the closing ones, at the end of a `following` line."""
    line = line.lstrip().removeprefix(QUOTES)
    lines = [line]
    while not line.rstrip().endswith(QUOTES):
        line = following()
        lines.append(line)
    lines[-1] = line.rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")
