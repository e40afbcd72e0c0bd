"""One reply: collects the root's messages and shows the text on a screen. Knows no terminal and no conversation."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from dllama_zmq.bus.client_messages import Done, Logprob, Prefill, Queued, Started, TokenText
from dllama_zmq.chat import AnswerParser, Delta
from dllama_zmq.cli.stats import Stats
from dllama_zmq.client import Answer


class Screen(Protocol):
    """Where a reply is shown, and its progress."""

    def waits(self, why: str) -> None:
        """The reply cannot begin or continue now."""

    def prompt(self, done: int, total: int) -> None:
        """`done` tokens of the prompt are evaluated; again, if some text was shown already."""

    def thinking(self, text: str) -> None:
        """A part of the model's thinking."""

    def content(self, text: str) -> None:
        """More of the answer; "" if a token has completed no character."""

    def end(self) -> None:
        """The reply has ended or was stopped."""


class Reply:
    """Collects an answer and shows it on `screen`. template: the text of the chat template; None: the answer is all
    text. stats: collects its figures.

    After the end: content, thinking, reason, tokens, logprobs, cached_tokens, stats; started, None if it waited in the
    queue until then; failed, true if an error ended it.
    """

    def __init__(self, screen: Screen, template: str | None = None, stats: Stats | None = None) -> None:
        self.content, self.thinking = "", ""
        self.reason: Literal["stop", "length", "cancelled"] = "cancelled"  # until the answer ends by itself
        self.failed = False
        self.tokens: list[int] = []
        self.logprobs: list[list[Logprob]] = []
        self.started: Started | None = None
        self.cached_tokens = 0
        self.stats = stats or Stats()
        self._screen, self._template = screen, template
        self._parser = AnswerParser("", "", None)

    def take(self, message: Answer) -> None:
        """Handle one message of the root."""
        if isinstance(message, Queued):
            self._screen.waits(message.note or f"{message.ahead} before this one")
        elif isinstance(message, Started):
            self.started = message
            self._parser = AnswerParser(self._template or "", message.prompt_end, None)
            self._screen.prompt(0, message.prompt_tokens)
        elif isinstance(message, Prefill):
            self.cached_tokens = message.cached_tokens
            self.stats.prompt(message)
            self._screen.prompt(message.done, message.total)
        elif isinstance(message, TokenText):
            self.tokens.append(message.token)
            if message.logprobs:
                self.logprobs.append(message.logprobs)
            self.stats.token(message)
            self._text(message.text)
        elif isinstance(message, Done):
            self.reason = message.reason
            self._text(message.text)

    def end(self) -> None:
        """Finish the text, after the answer has ended or was stopped."""
        if self._template is not None:
            self._deltas(self._parser.finish())
        self._screen.end()

    def as_map(self, model: str, prompt: str) -> dict[str, Any]:
        """The JSON object of a reply of `model` to `prompt`."""
        started = self.started
        return {
            "model": model,
            "prompt": prompt,
            "text": self.content,
            "tokens": self.tokens,
            "prompt_tokens": started.prompt_tokens if started is not None else 0,
            "cached_tokens": self.cached_tokens,
            "finish_reason": self.reason,
            "seed": started.seed if started is not None else None,
            "stats": self.stats.averages(),
        }

    def _text(self, text: str) -> None:
        if self._template is not None:
            self._deltas(self._parser.push(text))
            return
        self.content += text
        self._screen.content(text)

    def _deltas(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            self.thinking += delta.reasoning
            self.content += delta.content
            if delta.reasoning:
                self._screen.thinking(delta.reasoning)
            if delta.content:
                self._screen.content(delta.content)
