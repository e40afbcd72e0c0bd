"""A conversation with the model of a cluster: asks, keeps what comes, and says what is refused. Knows no terminal."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllama_zmq.bus.prompts import Chat
from dllama_zmq.bus.text_messages import Model
from dllama_zmq.chat import needs_specials
from dllama_zmq.cli.chat.conversation import Conversation, Turn, joined, read_bounded
from dllama_zmq.cli.chat.reply import Reply
from dllama_zmq.cli.chat.settings import Settings
from dllama_zmq.cli.chat.view import View
from dllama_zmq.cli.using import Used
from dllama_zmq.client import Answer
from dllama_zmq.errors import ContextExceeded, DllamaError, UsageError
from dllama_zmq.host import in_words
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.tokenizer.builtin_templates import BUILTIN

_MAX_TEMPLATE_BYTES = 1 << 18
_TRIED = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True, slots=True)
class Template:
    """The chat template of a conversation. text: what it says, as far as is known; name, given: as in `Chat`."""

    text: str
    name: str | None = None
    given: str | None = None
    source: str = "of the model"


class Session:
    """A conversation. `template` is None where messages just continue a text. `last` is the last exchange."""

    def __init__(self, used: Used, model: Model, template: Template | None, settings: Settings) -> None:
        self.used, self.model, self.template, self.settings = used, model, template, settings
        self.conversation = Conversation()
        self.attached = ""  # what goes with the next message
        self.last: Reply | None = None

    @property
    def continues(self) -> bool:
        """Whether the next message continues an open text. Never true with a template."""
        return self.template is None and bool(self.conversation.open_text())

    def ask(self, user: str, view: View, interrupts: Interrupts | None = None) -> Reply:
        """The answer to a message, and the turn of both is kept. Without a template it is shown behind the message.

        interrupts: they must be caught; Ctrl-C ends the answer, and its reason says so. Where nothing of an answer has
        come, the conversation is as it was. Raises what ended the request on the root.
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
                self.conversation.turns.append(Turn(user, reply.message()))
        return reply

    def ask_again(self, view: View, interrupts: Interrupts | None = None) -> Reply:
        """Another answer to the last message, in place of the last; which is kept where none comes."""
        if not self.conversation.turns:
            raise UsageError("nothing has been answered yet")
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
        """Take each message. Ctrl-C is heard while one is awaited, and not while it is shown."""
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
            answers.close()  # tells the root to stop if we stop early

    def cut(self, reply: Reply) -> str:
        """Why the answer was cut short; empty if it has ended by itself."""
        if reply.reason != "length" or reply.started is None:
            return ""
        if len(reply.tokens) == self.settings.max_tokens:
            return f"the answer is cut after {len(reply.tokens)} tokens, as max_tokens (-n) says"
        n_prompt, n_answer = reply.started.prompt_tokens, len(reply.tokens)
        return (
            f"the answer is cut because the context is full: {n_prompt} tokens of the conversation and {n_answer} of "
            "the answer; -c makes room for more, up to the model's own context"
        )

    def check(self) -> None:
        """Raise what the root says of the template, if it cannot render a message."""
        if self.template is not None and (self.template.name or self.template.given):
            self.used.client.tokenize(self._chat(_TRIED, self.template))


def chosen_template(named: str | None) -> Template | None:
    """The template of --template: a file, or a name of one of the model's or built-in ones. Raises UsageError."""
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


def told(error: Exception, session: Session) -> str:
    """The words of an error, with what helps in a chat."""
    if isinstance(error, ContextExceeded) and session.conversation.turns:
        n_prompt, n_context = error.numbers
        return (
            f"the conversation has {n_prompt} tokens, and the context {n_context}; "
            "/drop takes the oldest turn out, /clear begins anew, and -c makes room for more"
        )
    return in_words(error)
