"""A user at the terminal of `dllama-zmq chat`: types, and reads what comes until the next prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from command_line import Cli
from terminal import Terminal, at_terminal, lines_left, without_codes

WAIT_S = 60.0
_PROMPTED, _ENTERED = b"\x1b[?2004h", b"\x1b[?2004l"  # what a prompt switches on when it is shown, and off at its end


@dataclass
class Chatting:
    """A chat at a terminal. `terminal` has all that was written."""

    terminal: Terminal
    n_prompts: int = 0

    def say(self, text: str) -> str:
        """Type a line; what is written from Enter to the next prompt."""
        self.begin(text)
        return self.answer()

    def begin(self, text: str) -> None:
        """Type a line, and do not wait for the answer."""
        self.terminal.type(f"{text}\r")

    def answer(self) -> str:
        """What is written up to the next prompt, when that is there, and has not been written over."""
        return "\n".join(lines_left(self.raw_answer()))

    def raw_answer(self) -> bytes:
        """The same with its control codes."""
        self.n_prompts += 1
        self.terminal.until(lambda text: self.terminal.seen.count(_PROMPTED) >= self.n_prompts, WAIT_S)
        return self._since_enter().rpartition(_PROMPTED)[0]

    def until(self, words: str) -> None:
        """Wait for these words after Enter."""
        self.terminal.until(lambda text: words in without_codes(self._since_enter()), WAIT_S)

    def leave(self) -> None:
        """Press Ctrl-D; the chat must end well."""
        self.terminal.type("\x04")
        assert self.terminal.to_the_end(WAIT_S) == 0, self.terminal.text()

    def _since_enter(self) -> bytes:
        return self.terminal.seen.rpartition(_ENTERED)[2]


@contextmanager
def chatting(cli: Cli, *words: str, command: str = "chat", **env: str) -> Iterator[Chatting]:
    """A chat in the folder of `cli`, whose prompt waits."""
    line = [sys.executable, "-m", "dllama_zmq", command, *words]
    with at_terminal(line, cli.folder, cli.environment(**env), typing=True) as terminal:
        chat = Chatting(terminal)
        chat.answer()
        yield chat
