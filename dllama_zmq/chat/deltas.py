"""Deltas of an answer, and their collector. Knows no form of tool calls."""

from __future__ import annotations

import secrets
import string

from msgspec import Struct

ID_CHARACTERS = string.ascii_letters + string.digits
ID_LENGTH = 9  # Mistral's templates accept no other length, and other templates accept any


class ToolDelta(Struct, frozen=True):
    """A part of one tool call.

    index: of the call in the answer, from 0. id, name: in the call's first part; empty in the others. arguments: the
    next fragment of a JSON text; the joined fragments are the arguments.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(Struct, frozen=True):
    """New text for the user, new thinking, or a part of a tool call; exactly one of them is set."""

    content: str = ""
    reasoning: str = ""
    tool: ToolDelta | None = None


class Collector:
    """Takes a parser's results in order, and joins neighbours of one kind.

    trims: drop white space around tool calls; white space that may precede a call is held back. parallel: if false,
    calls after the first are dropped.
    """

    def __init__(self, trims: bool = False, parallel: bool = True) -> None:
        self.n_calls = 0
        self._trims = trims
        self._parallel = parallel
        self._drops = False
        self._deltas: list[Delta] = []
        self._held = ""
        self._at_start = False  # drop the white space that comes next

    def content(self, text: str) -> None:
        self._add(Delta(content=self._shown(text, self._trims)))

    def reasoning(self, text: str) -> None:
        self._add(Delta(reasoning=self._shown(text, True)))

    def part(self) -> None:
        """Mark the beginning or end of thinking; white space around it is dropped."""
        self._held, self._at_start = "", True

    def call(self, name: str) -> None:
        """Begin a tool call."""
        self.part()
        self._drops = self.n_calls > 0 and not self._parallel
        if self._drops:
            return
        identity = "".join(secrets.choice(ID_CHARACTERS) for _ in range(ID_LENGTH))
        self._add(Delta(tool=ToolDelta(self.n_calls, identity, name)))
        self.n_calls += 1

    def arguments(self, text: str) -> None:
        """Append a fragment to the arguments of the last call."""
        if not self._drops:
            self._add(Delta(tool=ToolDelta(self.n_calls - 1, arguments=text)))

    def taken(self) -> list[Delta]:
        """The deltas since the last time."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def flush(self) -> None:
        """Release the text that was held back, because the answer has ended."""
        self._trims = False
        held, self._held = self._held, ""
        self.content(held)

    def _shown(self, text: str, trims: bool) -> str:
        """The new text to show. With `trims`, white space at its end is held back, because the text may end there."""
        if self._at_start:
            text = text.lstrip()
        if not text:
            return ""
        self._at_start = False
        text = self._held + text
        kept = len(text.rstrip()) if trims else len(text)
        self._held = text[kept:]
        return text[:kept]

    def _add(self, delta: Delta) -> None:
        if delta == Delta():
            return
        joined = _joined(self._deltas[-1], delta) if self._deltas else None
        if joined is None:
            self._deltas.append(delta)
        else:
            self._deltas[-1] = joined


def _joined(one: Delta, two: Delta) -> Delta | None:
    """Both as one delta, or None if they are of different kinds."""
    if one.tool is not None and two.tool is not None and one.tool.index == two.tool.index:
        arguments = one.tool.arguments + two.tool.arguments
        return Delta(tool=ToolDelta(one.tool.index, one.tool.id, one.tool.name, arguments))
    if one.content and two.content:
        return Delta(content=one.content + two.content)
    if one.reasoning and two.reasoning:
        return Delta(reasoning=one.reasoning + two.reasoning)
    return None
