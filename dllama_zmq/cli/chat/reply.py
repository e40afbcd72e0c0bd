"""One reply: collects the root's messages and shows the text; the conversation stores it. Knows no terminal."""

from __future__ import annotations

from dllama_zmq.bus.client_messages import Done, Prefill, Queued, Started, TokenText
from dllama_zmq.chat import AnswerParser, Delta
from dllama_zmq.cli.chat.conversation import Message, Reason
from dllama_zmq.cli.chat.view import View
from dllama_zmq.cli.stats import Stats
from dllama_zmq.client import Answer


class Reply:
    """Collects an answer and shows it on `view`. template: the text of the chat template; None: the answer is all text.

    After the end: content, thinking, reason, tokens, cached_tokens, stats; started, None if it waited in the queue
    until then; failed, true if an error ended it.
    """

    def __init__(self, view: View, template: str | None) -> None:
        self.content, self.thinking = "", ""
        self.reason: Reason = "cancelled"  # until the answer ends by itself
        self.failed = False
        self.tokens: list[int] = []
        self.started: Started | None = None
        self.cached_tokens = 0
        self.stats = Stats()
        self._view, self._template = view, template
        self._parser = AnswerParser("", "", None)

    def take(self, message: Answer) -> None:
        """Handle one message of the root."""
        if isinstance(message, Queued):
            why = message.note or f"{message.ahead} before this one"
            self._view.waits(why)
        elif isinstance(message, Started):
            self.started = message
            self._parser = AnswerParser(self._template or "", message.prompt_end, None)
            self._view.progress("evaluating the prompt", 0, message.prompt_tokens)
        elif isinstance(message, Prefill):
            self.cached_tokens = self.cached_tokens or message.cached_tokens
            self.stats.prompt(message)
            if self.tokens and message.done < message.total:
                self._view.waits("the text so far is evaluated again")
            self._view.progress("evaluating the prompt", message.done, message.total)
        elif isinstance(message, TokenText):
            self.tokens.append(message.token)
            self.stats.token(message)
            self._text(message.text)
        elif isinstance(message, Done):
            self.reason = message.reason
            self._text(message.text)

    def end(self) -> None:
        """Finish the text, after the answer has ended or was stopped."""
        if self._template is not None:
            self._deltas(self._parser.finish())
        self._view.end()

    def message(self) -> Message:
        """The message to store."""
        return Message("assistant", self.content, self.thinking, self.reason)

    def _text(self, text: str) -> None:
        if self._template is not None:
            self._deltas(self._parser.push(text))
            return
        self.content += text
        self._view.content(text)

    def _deltas(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            self.thinking += delta.reasoning
            self.content += delta.content
            if delta.reasoning:
                self._view.thinking(delta.reasoning)
            if delta.content:
                self._view.content(delta.content)
