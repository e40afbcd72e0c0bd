"""The prompts that answers continue: a text, token ids or a chat, as users write it and as it is on the wire."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from dllama_zmq.bus.messages import Count
from dllama_zmq.errors import RequestError

MAX_PROMPT_BYTES = 1 << 19  # of UTF-8: half of the longest header
MAX_PROMPT_TOKENS = 100_000  # of 5 bytes at most
Prompt = Annotated[str, msgspec.Meta(max_length=MAX_PROMPT_BYTES)]
TokenIds = Annotated[list[Count], msgspec.Meta(max_length=MAX_PROMPT_TOKENS)]
_SHOWN = 200
_TOKEN_BYTES = 36  # of an integer, and of its place in a list


class Chat(msgspec.Struct, frozen=True):
    """A conversation, whose text the model's chat template makes on the root.

    messages, tools: as in OpenAI's API, `content` being a text. template: a template's name, the file's own or a
    built-in one; template_text: one in Jinja. Without both, it is the model's own. variables: more of what the template
    may know, such as `enable_thinking`. generation_prompt: the text ends where an answer begins. continues: the text
    ends with the last message, and the answer continues it.
    """

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    template: str | None = None
    template_text: str | None = None
    variables: dict[str, Any] = {}
    generation_prompt: bool = True
    continues: bool = False


_CHAT = msgspec.json.Decoder(Chat)


class ChatText(msgspec.Struct, frozen=True):
    """A Chat on the wire, as the text of a JSON object.

    So the root holds no more than its text, and its nesting can harm nobody else.
    """

    json: Prompt

    def chat(self) -> Chat:
        """The chat. Raises RequestError if it is none."""
        try:
            return _CHAT.decode(self.json)
        except RecursionError:
            raise RequestError("the chat is nested too deeply") from None
        except (msgspec.MsgspecError, ValueError) as error:  # ValueError: a string that is not UTF-8
            raise RequestError(f"the chat is not as expected: {str(error)[:_SHOWN]}") from None


PromptText: TypeAlias = Prompt | ChatText
AnyPrompt: TypeAlias = Prompt | TokenIds | ChatText


def text_on_wire(prompt: str | Chat) -> PromptText:
    """`prompt` as it is sent. Raises RequestError if it cannot be."""
    if isinstance(prompt, str):
        return _sendable("prompt", prompt)
    if not isinstance(prompt, Chat):
        raise RequestError(f"a {type(prompt).__name__} is not tokenized; expected a text or a Chat")
    try:
        text = json.dumps(msgspec.to_builtins(prompt), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"the chat cannot be written as JSON: {str(error)[:_SHOWN]}") from None
    written = ChatText(_sendable("chat", text))
    written.chat()
    return written


def tokens_on_wire(tokens: Sequence[int]) -> list[int]:
    """Ids of tokens as they are sent. Raises RequestError if they cannot be."""
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence):
        raise RequestError(f"a {type(tokens).__name__} where a list of ids of tokens was expected")
    if len(tokens) > MAX_PROMPT_TOKENS:
        raise RequestError(f"{len(tokens)} tokens; at most {MAX_PROMPT_TOKENS} are sent")
    for token in tokens:
        if type(token) is not int or not 0 <= token <= 1 << 31:
            raise RequestError(f"{token!r:.40} is no token; expected ids of 0 or more")
    return list(tokens)


def prompt_on_wire(prompt: str | Sequence[int] | Chat) -> AnyPrompt:
    """`prompt` as it is sent. Raises RequestError if it cannot be."""
    return text_on_wire(prompt) if isinstance(prompt, str | Chat) else tokens_on_wire(prompt)


def _sendable(what: str, text: str) -> str:
    """The text, with U+FFFD for lone surrogates, which UTF-8 cannot hold."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    n_bytes = len(text.encode())
    if n_bytes > MAX_PROMPT_BYTES:
        raise RequestError(f"the {what} has {n_bytes} bytes; at most {MAX_PROMPT_BYTES} are sent")
    return text


def held_bytes(prompt: AnyPrompt) -> int:
    """About how much memory it takes while it waits; a character that is not ASCII counts as one byte."""
    if isinstance(prompt, list):
        return _TOKEN_BYTES * len(prompt)
    return len(prompt.json if isinstance(prompt, ChatText) else prompt)
