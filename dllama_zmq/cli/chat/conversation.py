"""A conversation: its turns, its file, and the messages to send. Knows no model and no terminal.

The file of /save and /load is a JSON object in UTF-8. `format` is "dllama-zmq chat 1"; `model` names the model, for
people; `messages` is a list as in OpenAI's API: an optional message of the role `system`, then `user` and `assistant`
in turn, each with a text `content`. A message of the assistant may have `reasoning_content` (its thoughts) and
`finish_reason` (`stop`, `length` or `cancelled`: how its text ended). Other keys are ignored when it is read. A bare
list of messages is read too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from dllama_zmq.errors import UsageError

MAX_FILE_BYTES = 64 << 20
QUOTES = '"""'
"""Between these a message may have several lines."""
Reason = Literal["stop", "length", "cancelled"]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of the file, and of a chat on its way to the root."""

    role: Literal["system", "user", "assistant"]
    content: str
    reasoning_content: str = ""
    finish_reason: Reason = "stop"


class _File(msgspec.Struct, frozen=True):
    format: Literal["dllama-zmq chat 1"]
    messages: list[Message]
    model: str = ""


class Turn(Struct, frozen=True):
    """A message of the user and the answer to it."""

    user: str
    answer: Message


class Conversation(Struct):
    """The turns so far, and the system message."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def messages(self, user: str) -> list[dict[str, Any]]:
        """The messages to send with a new one. Earlier thinking is left out: models are trained without it."""
        said = [Message("system", self.system)] if self.system else []
        for turn in self.turns:
            said += [Message("user", turn.user), Message("assistant", turn.answer.content)]
        return [{"role": one.role, "content": one.content} for one in (*said, Message("user", user))]

    def open_text(self) -> str:
        """The text that the next message continues if there is no template: the texts since the last one that ended."""
        text = ""
        for turn in self.turns:
            text = joined(text, turn.user) + turn.answer.content
            if turn.answer.finish_reason == "stop":
                text = ""
        return text

    def drop(self, n_turns: int) -> int:
        """Remove the oldest turns. Returns their number."""
        n_dropped = min(n_turns, len(self.turns))
        del self.turns[:n_dropped]
        return n_dropped

    def save(self, path: Path, model: str) -> None:
        """Write the file. Raises UsageError if it cannot be written, or exists and is no saved conversation."""
        from dllama_zmq.formats.files import replace_file

        if path.exists():
            try:
                read_conversation(path)
            except UsageError:
                raise UsageError(f"{path} exists and is no saved conversation; choose another name") from None
        messages = [Message("system", self.system)] if self.system else []
        for turn in self.turns:
            messages += [Message("user", turn.user), turn.answer]
        data = msgspec.json.format(msgspec.json.encode(_File("dllama-zmq chat 1", messages, model)), indent=2)
        with replace_file(path) as file:
            file.write(data + b"\n")


def joined(text: str, more: str) -> str:
    """`text` and `more`, with a space between two words."""
    gap = " " if text and more and not text[-1].isspace() and not more[0].isspace() else ""
    return text + gap + more


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


def read_conversation(path: Path) -> Conversation:
    """The conversation in a file. Raises UsageError with what is wrong in it."""
    data = read_bounded(path, MAX_FILE_BYTES)
    try:
        found = msgspec.json.decode(data, type=list[Message] | _File)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no saved conversation: {error}") from None
    messages = found if isinstance(found, list) else found.messages
    conversation = Conversation()
    if messages and messages[0].role == "system":
        conversation.system = messages.pop(0).content
    roles = [one.role for one in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise UsageError(
            f"{path}: it has messages of {', '.join(roles[:6])}{', ...' if len(roles) > 6 else ''}; expected user and "
            "assistant in turn, and an answer at the end"
        )
    pairs = zip(messages[::2], messages[1::2], strict=True)
    conversation.turns = [Turn(user.content, answer) for user, answer in pairs]
    return conversation


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file. Raises UsageError."""
    try:
        if not path.is_file():
            what = "is no regular file" if path.exists() else "there is no such file"
            raise UsageError(f"{path}: {what}; check the path")
        if (n_bytes := path.stat().st_size) > most_bytes:
            raise UsageError(f"{path}: it has {n_bytes} bytes; expected at most {most_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: it cannot be read ({error.strerror}); check the path") from None
