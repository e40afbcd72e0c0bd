"""A conversation with the model of a cluster: sends messages, stores replies, explains refusals. Knows no terminal."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from msgspec import Struct

from dllama_zmq.bus.prompts import Chat
from dllama_zmq.bus.text_messages import Model
from dllama_zmq.chat import needs_specials
from dllama_zmq.cli.chat.conversation import Conversation, Message, Turn, joined, read_bounded
from dllama_zmq.cli.chat.settings import Settings
from dllama_zmq.cli.chat.view import View
from dllama_zmq.cli.reply import Reply
from dllama_zmq.cli.using import Used
from dllama_zmq.client import Answer
from dllama_zmq.errors import ContextExceeded, DllamaError, UsageError
from dllama_zmq.host import in_words
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.tokenizer.builtin_templates import BUILTIN

_MAX_TEMPLATE_BYTES = 1 << 18
_TRIED = [{"role": "user", "content": "Hello"}]


class Template(Struct, frozen=True):
    """The chat template of a conversation. text: its source, as far as known. name, given: as in `Chat`.

    is_guess: it is a built-in one that fits the names of the model's special tokens.
    """

    text: str
    name: str | None = None
    given: str | None = None
    source: str = "of the model"
    is_guess: bool = False


class Session:
    """A conversation. `template` is None if messages just continue a text. `last` is the last reply."""

    def __init__(self, used: Used, model: Model, template: Template | None, settings: Settings) -> None:
        self.used, self.model, self.template, self.settings = used, model, template, settings
        self.conversation = Conversation()
        self.attached = ""  # text that goes with the next message
        self.last: Reply | None = None

    @property
    def continues(self) -> bool:
        """Whether the next message continues an open text. Never true with a template."""
        return self.template is None and bool(self.conversation.open_text())

    def ask(self, user: str, view: View, interrupts: Interrupts | None = None) -> Reply:
        """Send a message, show the reply and store both as a turn. Without a template the reply is shown after the
        message.

        interrupts: must be caught; Ctrl-C ends the reply, and its reason says so. If the reply has no text by then, the
        conversation is unchanged. Raises the error that ended the request on the root.
        """
        user = joined(self.attached, user)
        reply = Reply(view, None if self.template is None else self.template.text)
        if self.template is None:
            view.begin_with(user)
        try:
            self._pump(self._request(user), reply, interrupts)
        except (DllamaError, OSError):
            reply.failed = True
            raise
        finally:
            reply.end()
            self.last = reply
            if reply.content or reply.reason != "cancelled":
                self.attached = ""
                said = Message("assistant", reply.content, reply.thinking, reply.reason)
                self.conversation.turns.append(Turn(user, said))
        return reply

    def ask_again(self, view: View, interrupts: Interrupts | None = None) -> Reply:
        """Replace the last reply with a new one, or keep it if no new one comes."""
        if not self.conversation.turns:
            raise UsageError("there is no answer yet")
        attached, self.attached = self.attached, ""
        turn = self.conversation.turns.pop()
        n_before = len(self.conversation.turns)
        try:
            return self.ask(turn.user, view, interrupts)
        finally:
            self.attached = attached
            if len(self.conversation.turns) == n_before:
                self.conversation.turns.append(turn)

    def _request(self, user: str) -> Generator[Answer, None, None]:
        settings = self.settings
        prompt: str | Chat
        if self.template is None:
            prompt, specials = joined(self.conversation.open_text(), user), False
        else:
            prompt = self._chat(self.conversation.messages(user), self.template)
            specials = needs_specials(self.template.text, None)
        return self.used.client.generate(
            prompt, settings.max_tokens, settings.sampling, stop=settings.stop, specials=specials
        )

    def _chat(self, messages: list[dict[str, Any]], template: Template) -> Chat:
        variables = self.settings.variables()
        return Chat(messages, template=template.name, template_text=template.given, variables=variables)

    def _pump(self, answers: Generator[Answer, None, None], reply: Reply, interrupts: Interrupts | None) -> None:
        """Handle each message. Ctrl-C is noticed while a message is awaited, not while it is shown."""
        try:
            while True:
                with nullcontext() if interrupts is None else interrupts.raised():
                    answer = next(answers, None)
                if answer is None:
                    return
                reply.take(answer)
        except KeyboardInterrupt:
            if interrupts is None:
                raise
        finally:
            answers.close()  # cancels the request if we stop early

    def cut(self, reply: Reply) -> str:
        """Why the reply was cut short; empty if it ended by itself."""
        if reply.reason != "length" or reply.started is None:
            return ""
        if len(reply.tokens) == self.settings.max_tokens:
            return f"the answer is cut after {len(reply.tokens)} tokens, the limit of max_tokens (-n)"
        n_prompt, n_answer = reply.started.prompt_tokens, len(reply.tokens)
        return (
            f"the answer is cut because the context is full: {n_prompt} tokens of the conversation and {n_answer} of "
            "the answer; -c makes room for more, up to the model's own context"
        )

    def check(self) -> None:
        """Raise the root's error if the template cannot render a message."""
        if self.template is not None and (self.template.name or self.template.given):
            self.used.client.tokenize(self._chat(_TRIED, self.template))


def template_of(model: Model) -> Template | None:
    """The template that the cluster uses for this model; None if it has none."""
    name = next((name for name, text in BUILTIN.items() if text == model.template), None)
    if name is not None:
        return Template(model.template, source=f"built-in {name}", is_guess=True)
    return Template(model.template) if model.template else None


def chosen_template(named: str | None) -> Template | None:
    """The template of --template: a file, a template of the model, or a built-in one. Raises UsageError."""
    if named is None:
        return None
    path = Path(named).expanduser()
    if os.sep in named or path.is_file():
        try:
            text = read_bounded(path, _MAX_TEMPLATE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"--template {path}: it is not UTF-8 text (byte {error.start})") from None
        return Template(text, given=text, source=f"in {path}")
    return Template(BUILTIN.get(named, ""), name=named, source=named)


def error_text(error: Exception, session: Session) -> str:
    """The message of an error, with what helps in a chat."""
    if isinstance(error, ContextExceeded) and session.conversation.turns:
        n_prompt, n_context = error.numbers
        return (
            f"the conversation has {n_prompt} tokens, and the context {n_context}; "
            "/drop removes the oldest turn, /clear starts anew, and -c makes room for more"
        )
    return in_words(error)
