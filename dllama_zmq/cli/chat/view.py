"""Shows an answer on its way: text to stdout, everything else to stderr. Knows no cluster and no conversation."""

from __future__ import annotations

import os
import sys

from dllama_zmq.cli.notes import inert
from dllama_zmq.cli.progress import Display
from dllama_zmq.reporting import Unit

_DIM, _NORMAL = "\x1b[2m", "\x1b[22m"


class View:
    """Shows one answer, as a `reply.Screen`. Progress is on `display` before the first word and while the answer waits.

    shows_text: false if the answer is shown in another form. shows_thinking: show the model's thinking too.
    """

    def __init__(self, display: Display, shows_text: bool, shows_thinking: bool) -> None:
        self._display = display
        self._shows_text, self._shows_thinking = shows_text, shows_text and shows_thinking
        self._on_terminal = sys.stdout.isatty()
        has_codes = self._on_terminal and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        self._dim, self._normal = (_DIM, _NORMAL) if has_codes else ("", "")
        self._thinking = False
        self._begun = False  # some text is on the screen
        self._waits = False  # the answer waits, and the reason was shown
        self._column = 0
        self._before = ""

    def begin_with(self, text: str) -> None:
        """Write `text` before the answer's first word; until then progress is shown."""
        self._before = text

    def progress(self, text: str, done: int = 0, total: int = 0, unit: Unit = "tokens") -> None:
        """Show progress if there is no text yet, or none can come."""
        if self._waits or not self._begun:
            self._display.activity(text, done, total, unit)

    def prompt(self, done: int, total: int) -> None:
        """Show how far the prompt is evaluated, or the text so far again."""
        if self._begun and done < total:
            self.waits("the text so far is evaluated again")
        self.progress("evaluating the prompt", done, total)

    def waits(self, why: str) -> None:
        """Show why an answer that has begun cannot continue now."""
        if not self._begun:
            self._display.activity(f"waiting: {why}")
            return
        if not self._waits:
            self._waits = True
            if self._on_terminal and self._column:
                self._write("\n")
            self._display.line(f"[the answer waits: {why}]")
        self._display.activity("waiting for the cluster")

    def thinking(self, text: str) -> None:
        """Show a part of the model's thinking."""
        if not self._shows_thinking:
            self.progress("thinking")
            return
        if not self._thinking:
            self._show(f"{self._dim}Thinking...\n")
        self._thinking = True
        self._show(self._dim + inert(text) + self._normal if self._on_terminal else text)

    def content(self, text: str) -> None:
        """Show more of the answer."""
        text, self._before = self._before + text, ""
        if not text:
            return
        if not self._shows_text:
            self.progress("generating")
            return
        self._end_thinking()
        self._show(inert(text) if self._on_terminal else text)

    def end(self) -> None:
        """End the line, because the answer has ended or was stopped."""
        self._end_thinking()
        self._display.rest()
        if self._begun and self._column:
            self._write("\n")

    def _end_thinking(self) -> None:
        if self._thinking:
            self._thinking = False
            self._show(f"{self._dim}\n...done thinking.{self._normal}\n\n")

    def _show(self, text: str) -> None:
        if self._waits:
            self._waits = False
            self._display.line("[the answer continues]")
        self._display.rest()
        self._begun = True
        self._write(text)

    def _write(self, text: str) -> None:
        plain = text.replace(_DIM, "").replace(_NORMAL, "") if self._dim else text
        if plain:
            self._column = 0 if plain.endswith("\n") else 1
        sys.stdout.write(text)
        sys.stdout.flush()
