"""A text that is still arriving, for parsers written as generators: they yield when they need more of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A parser that yields when it needs more text, and returns a T."""


class Reader:
    """The text that is not processed yet. `at` is the place to read next."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._holds = False

    def add(self, text: str) -> None:
        self.text += text

    def hold(self) -> None:
        """Remember this place for `undo`."""
        self._forget()
        self._holds = True

    def undo(self) -> None:
        """Return to the place of `hold`."""
        self.at, self._holds = 0, False

    def keep(self) -> None:
        """Give up the place of `hold`: what was read since is final."""
        self._holds = False
        self._forget()

    def _forget(self) -> None:
        if not self._holds:
            self.text, self.at = self.text[self.at :], 0

    def character(self) -> Reading[str]:
        """The next character without reading it; "" at the end of the text."""
        while self.at == len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.at]

    def space(self) -> Reading[None]:
        """Read the white space that comes next."""
        while (yield from self.character()).isspace():
            self.at += 1

    def word(self) -> Reading[str]:
        """Read letters, digits, "_", "-" and "." as far as they go."""
        start = self.at
        while (character := (yield from self.character())) and (character.isalnum() or character in "_-."):
            self.at += 1
        return self.text[start : self.at]

    def take(self, *options: str) -> Reading[str]:
        """Read and return the one of `options` that comes next; "" if none does. No option may begin with another."""
        while True:
            for option in options:
                if self.text.startswith(option, self.at):
                    self.at += len(option)
                    return option
            rest = self.text[self.at :]
            if self.ended or not any(option.startswith(rest) for option in options):
                return ""
            yield

    def until(self, marks: Sequence[str], emit: Callable[[str], None]) -> Reading[str]:
        """Read up to and over the first of `marks`; `emit` the text before it. Returns the mark, or "" at the end."""
        while True:
            found = [(place, mark) for mark in marks if (place := self.text.find(mark, self.at)) >= 0]
            if found:
                place, mark = min(found)
                self.emit_up_to(place, emit)
                self.at += len(mark)
                return mark
            if self.ended:
                self.emit_up_to(len(self.text), emit)
                return ""
            self.emit_up_to(self._first_beginning(marks), emit)
            yield

    def emit_up_to(self, place: int, emit: Callable[[str], None]) -> None:
        """Read up to `place` and `emit` the text."""
        if place > self.at:
            emit(self.text[self.at : place])
        self.at = place
        self._forget()

    def _first_beginning(self, marks: Sequence[str]) -> int:
        """The start of a possible mark at the end of the text; the text's end if there is none."""
        longest = max((len(mark) for mark in marks), default=1) - 1
        for place in range(max(self.at, len(self.text) - longest), len(self.text)):
            if any(mark.startswith(self.text[place:]) for mark in marks):
                return place
        return len(self.text)
