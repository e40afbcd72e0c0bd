"""End a text before a stop string. Knows text; knows no token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dllama_zmq.errors import RequestError

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


def check_stop(strings: Sequence[str]) -> None:
    """Raise RequestError if these cannot be stop strings."""
    if isinstance(strings, str):
        raise RequestError(f"stop is the text {strings[:40]!r}; expected a list of texts")
    if len(strings) > MAX_STOPS:
        raise RequestError(f"{len(strings)} stop strings; expected at most {MAX_STOPS}")
    for string in strings:
        if not 1 <= len(string) <= MAX_STOP_CHARACTERS:
            raise RequestError(f"a stop string of {len(string)} characters; expected 1 to {MAX_STOP_CHARACTERS}")


class StopStrings:
    """Passes a text on up to the first stop string, and holds back an end of it that may begin one. The first stop
    string is the one whose last character comes first; if several end there, the longest. So the result does not depend
    on how the text is cut into pieces.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self.found = ""
        """The first stop string, once the text has it."""
        self._automata = [_Automaton(string) for string in strings]
        self._held = ""

    def push(self, text: str) -> str:
        """The part that certainly belongs to the text, now that `text` has come; "" once a stop string was found."""
        if self.found or not self._automata:
            return "" if self.found else text
        so_far = self._held + text
        for end, character in enumerate(text, len(self._held) + 1):
            complete = [automaton.string for automaton in self._automata if automaton.push(character)]
            if complete:
                self.found, self._held = max(complete, key=len), ""
                return so_far[: end - len(self.found)]
        n_known = len(so_far) - max(automaton.length for automaton in self._automata)
        self._held = so_far[n_known:]
        return so_far[:n_known]

    def flush(self) -> str:
        """The part that was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """The longest beginning of `string` with which the text ends has `length` characters (Knuth, Morris, Pratt 1977).

    A character takes a few steps, even if the string repeats itself.
    """

    def __init__(self, string: str) -> None:
        self.string, self.length = string, 0
        self._shorter = [0, 0]  # by length of a beginning: that of the next shorter one with which it ends
        for character in string[1:]:
            self._shorter.append(self._longest(self._shorter[-1], character))

    def push(self, character: str) -> bool:
        """Whether the text ends with the whole string after this character; then it takes no more."""
        self.length = self._longest(self.length, character)
        return self.length == len(self.string)

    def _longest(self, length: int, character: str) -> int:
        while length and self.string[length] != character:
            length = self._shorter[length]
        return length + (self.string[length] == character)
