"""Chat templates: messages to the text of a prompt. Knows no vocabulary and no file.

A file's template is a program that nobody has looked at. Forbidding, operator by operator, whatever could take long or
much memory would be a list that is never complete, so it runs in a process of its own (`chat_child.py`) that may use
little memory and is ended when its time is over. That process lives as long as the template, and renders in about a
millisecond; starting it takes a tenth of a second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from dllama_zmq.errors import FormatError, RequestError, UsageError
from dllama_zmq.tokenizer.builtin_templates import BUILTIN, told_by
from dllama_zmq.tokenizer.child import Child

RENDER_S = 2.0
"""Seconds that a template may take."""
_GRACE_S = 1.0  # for a template inside one long operation, which can only be ended from without
MAX_TEXT_CHARS = 8 << 20


class ChatTemplate:
    """A file's chat template, or several by name: `tool_use` where there are tools, else `default`.

    source: the file, or "built-in NAME".
    """

    def __init__(self, templates: Mapping[str, str], words: Mapping[str, str], source: str) -> None:
        self._templates = dict(templates)
        self._words = dict(words)
        self.source = source
        self._renderer = _Renderer()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation, to be encoded with bos=False, specials=True: it holds its BOS by name.

        messages: at least one, of what JSON can hold; keys whose value is None are left out, as transformers does. A
        template that cannot render them so gets them as they are: some ask whether `content` is none.
        Raises RequestError where the template refuses or cannot render this conversation, FormatError where the
        template itself is at fault: no Jinja, too long, too large, or reaching for what it must not.
        """
        if not messages:
            raise RequestError("the conversation is empty; give at least one message")
        shown = {
            **self._words,
            "documents": None,
            **variables,
            "messages": [_checked(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._templates:
            names = ", ".join(sorted(self._templates))
            raise RequestError(f"{self.source}: no chat template is the default; choose one by name: {names}")
        where = f"{self.source}: chat template"
        bare = [{key: value for key, value in message.items() if value is not None} for message in shown["messages"]]
        try:
            return self._renderer.render(self._templates[name], shown | {"messages": bare}, where)
        except RequestError:
            if bare == shown["messages"]:
                raise
            with suppress(RequestError):
                return self._renderer.render(self._templates[name], shown, where)
            raise


def choose_template(
    templates: Mapping[str, str], name: str | None, names: Mapping[str, int], words: Mapping[str, str], source: str
) -> ChatTemplate:
    """The file's templates; else, or where `name` says so, a built-in one."""
    if name is None and templates:
        return ChatTemplate(templates, words, source)
    chosen = name or told_by(names)
    if chosen is None:
        raise RequestError(
            f"{source}: this tokenizer has no chat template, and its special tokens tell none; "
            f"choose one by name: {', '.join(BUILTIN)}"
        )
    text = templates.get(chosen, BUILTIN.get(chosen))
    if text is None:
        raise UsageError(f"{chosen!r} is no chat template; expected one of {', '.join([*templates, *BUILTIN])}")
    return ChatTemplate({"default": text}, words, source if chosen in templates else f"built-in {chosen}")


def _checked(message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"a message is a {type(message).__name__}; expected an object with a role and content")
    return dict(message)


class _Renderer:
    """The process that renders."""

    def __init__(self) -> None:
        self._child = Child("chat_child.py", max_bytes=16 * MAX_TEXT_CHARS)

    def render(self, template: str, variables: Mapping[str, Any], where: str) -> str:
        """The text. Raises RequestError or FormatError, see `ChatTemplate.render`."""
        request = {"template": template, "variables": variables, "seconds": RENDER_S, "chars": MAX_TEXT_CHARS}
        try:
            line = json.dumps(request).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the conversation holds what JSON cannot: {error}") from error
        answer = self._child.ask(line, RENDER_S + _GRACE_S)
        if answer is None:
            raise FormatError(
                f"{where}: it takes longer than {RENDER_S:g} s or more memory than it may, in one of its "
                f"{template.count(chr(10)) + 1} lines. Choose a built-in template by name."
            )
        if "text" in answer:
            return str(answer["text"])
        place = where + (f", line {answer['line']}" if answer["line"] else "")
        what = f"{place}: {answer['what']}"
        if answer["kind"] == "refused":
            raise RequestError(f"{place}, refuses this conversation: {answer['what']}")
        if answer["kind"] == "conversation":
            raise RequestError(f"{what}. It cannot render this conversation; check the messages' roles and content.")
        raise FormatError(f"{what}. Choose a built-in template by name.")
