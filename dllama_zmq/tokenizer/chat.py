"""Chat templates: render messages as the text of a prompt. Knows no vocabulary and no file.

A file's template is an untrusted program, and no list of forbidden operations bounds its time and memory. So it runs in
a process of its own (`chat_child.py`) with a memory limit and RENDER_S of CPU time. All templates of a tokenizer are
rendered there: starting it takes 0.1 s, compiling a template once about 10 ms, rendering 0.1 ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dllama_zmq.errors import FormatError, RequestError, UsageError
from dllama_zmq.tokenizer.builtin_templates import BUILTIN, template_for
from dllama_zmq.tokenizer.child import BUSY_S, Children

RENDER_S = 2.0
"""CPU seconds that a template may take."""
MAX_TEXT_CHARS = 8 << 20
_END = "<|the message goes on from here|>"  # templates that strip white space strip the space after it
_OURS = frozenset({"messages", "tools", "add_generation_prompt"})


def renderers() -> Children:
    """The renderers of templates: processes that live as long as this one."""
    return Children(Path(__file__).with_name("chat_child.py"), max_bytes=16 * MAX_TEXT_CHARS)


class ChatTemplate:
    """Chat templates by name: `tool_use` renders chats with tools, if it exists; `default` all others.

    source: the file, or "built-in NAME".
    """

    def __init__(
        self, templates: Mapping[str, str], words: Mapping[str, str], source: str, children: Children | None = None
    ) -> None:
        self._templates = dict(templates)
        self._words = dict(words)
        self.source = source
        self._children = children or renderers()

    @property
    def text(self) -> str:
        """The Jinja source of the template for chats without tools; "" if there is none."""
        return self._templates.get("default", "")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continues: bool = False,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The text of a chat. Encode it with bos=False and specials=True: it has the BOS as text.

        continues: it ends with the content of the last message, without what the template writes after that, and
        without a generation prompt (`continue_final_message` of transformers).

        messages: one or more, of JSON values. Keys whose value is None are left out, as in transformers; if that fails
        they are passed, because some templates test whether `content` is none.

        Raises RequestError if the template refuses or cannot render this chat; FormatError if the template itself is
        wrong: not Jinja, too slow, too large, or with forbidden operations.
        """
        if not messages:
            raise RequestError("the conversation is empty; give at least one message")
        if ours := sorted(_OURS & variables.keys()):
            raise RequestError(f"the template's variable {ours[0]} is part of the chat itself; give other names")
        shown = {
            **self._words,
            "documents": None,
            **variables,
            "messages": [_checked(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": add_generation_prompt and not continues,
        }
        said = ""
        if continues:
            said = _content(shown["messages"][-1])
            shown["messages"][-1]["content"] = f"{said}{_END} "
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._templates:
            names = ", ".join(sorted(self._templates))
            raise RequestError(f"{self.source}: there is no default chat template; choose one by name: {names}")
        where = f"{self.source}: chat template"
        bare = [{key: value for key, value in message.items() if value is not None} for message in shown["messages"]]
        try:
            text = self._rendered(self._templates[name], shown | {"messages": bare}, where)
        except RequestError as error:
            if bare == shown["messages"]:
                raise
            try:
                text = self._rendered(self._templates[name], shown, where)
            except RequestError:
                raise error from None
        return self._up_to_end(text, said) if continues else text

    def _rendered(self, template: str, variables: Mapping[str, Any], where: str) -> str:
        """The rendered text. Raises as `render` does."""
        request = {"template": template, "variables": variables, "seconds": RENDER_S, "chars": MAX_TEXT_CHARS}
        try:
            answer = self._children.ask(request, RENDER_S + BUSY_S)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the conversation cannot be written as JSON: {error}") from error
        if answer is None or "error" in answer:
            raise FormatError(
                f"{where}: it takes longer than {RENDER_S:g} s or too much memory, in one of its "
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

    def _up_to_end(self, text: str, said: str) -> str:
        """The text up to the end of the last message's content, which is `said` and a mark."""
        at = text.rfind(_END)
        if at < 0:
            raise RequestError(f"{self.source}: this chat template changes the last message, so it cannot be continued")
        keeps_spaces = text.startswith(f"{_END} ", at)
        return text[:at] if keeps_spaces else text[:at].removesuffix(said[len(said.rstrip()) :])


def choose_template(
    templates: Mapping[str, str], name: str | None, names: Mapping[str, int], source: str
) -> tuple[Mapping[str, str], str]:
    """The templates to use, and their source, for a ChatTemplate.

    These are the template `name`, of the file or built in. Without `name` they are the file's templates, or else the
    built-in one that fits.
    """
    if name is None and templates:
        return templates, source
    chosen = name or template_for(names)
    if chosen is None:
        raise RequestError(
            f"{source}: this tokenizer has no chat template, and its special tokens fit no built-in one; "
            f"choose one by name: {', '.join(BUILTIN)} (`--template`)"
        )
    text = templates.get(chosen, BUILTIN.get(chosen))
    if text is None:
        raise UsageError(f"{chosen!r} is not a chat template; expected one of {', '.join([*templates, *BUILTIN])}")
    return {"default": text}, source if chosen in templates else f"built-in {chosen}"


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise RequestError("the last message has no text, so it cannot be continued")
    return content


def _checked(message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"a message is a {type(message).__name__}; expected an object with a role and content")
    return dict(message)
