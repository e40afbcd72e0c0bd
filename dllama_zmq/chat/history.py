"""A conversation in the form that its template reads: clients write all in one form, and templates differ.

Knows messages as OpenAI's clients write them: text content, `tool_calls` with arguments as JSON text, role "tool".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dllama_zmq.chat.deltas import ID_CHARACTERS, ID_LENGTH
from dllama_zmq.chat.families import family_of

Message = dict[str, Any]

_ONE_CALL = "single tool-call"  # Llama 3's templates refuse a message with several calls in these words
_WRITES_JSON = re.compile(r"arguments['\"]?\]?\s*\|\s*tojson")
"""A template that writes arguments as JSON reads them as an object."""

_THINKING_PARTS = "'thinking'"  # the name, in Mistral's templates, of the part of a message that is thinking


def for_template(
    template: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> tuple[list[Message], list[Message] | None]:
    """The messages and tools to render with `template`.

    If the template has no tools, they are explained in text: in the system's message, or before the first user message.
    If it has no calls, calls and results are written as text too, in Hermes' form.
    """
    family = family_of(template).name
    roles = {} if "developer" in template else {"developer": "system"}
    given = [{**message, "role": roles.get(message["role"], message["role"])} for message in messages]
    takes_text = family == "deepseek" and not _WRITES_JSON.search(template)
    changed = [_as_read(message, family, takes_text) for message in given]
    if _THINKING_PARTS in template and "reasoning_content" not in template:
        # The last message stays as it is: if it is to be continued, it must be a text.
        changed = [*map(_with_thinking_part, changed[:-1]), *changed[-1:]]
    if family == "mistral":
        changed = [_with_short_ids(message) for message in changed]
    if _ONE_CALL in template:
        changed = list(_one_call_each(changed))
    if "tool_calls" not in template:
        changed = _as_text(changed)
    if tools and "tools" not in template:
        _explain(changed, tools, _form_of(template))
        return changed, None
    return changed, [dict(tool) for tool in tools] if tools else None


def _as_read(message: Message, family: str, takes_text: bool) -> Message:
    """A copy with arguments as objects, or as text if the template takes text; without empty lists of calls."""
    calls = message.get("tool_calls")
    if not calls:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    content = message.get("content") or (None if family == "deepseek" else "")
    convert = _text if takes_text else _object
    functions = [{**call["function"], "arguments": convert(call["function"].get("arguments"))} for call in calls]
    return {
        **message,
        "content": content,
        "tool_calls": [{**call, "function": function} for call, function in zip(calls, functions, strict=True)],
    }


def _with_thinking_part(message: Message) -> Message:
    """A copy with the thinking as a part of the content."""
    thoughts, text = message.get("reasoning_content"), message.get("content")
    if not thoughts:
        return message
    parts = [{"type": "thinking", "thinking": thoughts}, *([{"type": "text", "text": text}] if text else [])]
    return {**{key: message[key] for key in message if key != "reasoning_content"}, "content": parts}


def _object(arguments: object) -> object:
    """The arguments as an object; unchanged if they are none, because an answer can be cut within them."""
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments
    return {} if value is None else value


def _text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)


def _with_short_ids(message: Message) -> Message:
    """A copy with ids of 9 letters and digits, as Mistral's templates require; equal ids stay equal."""
    changed = dict(message)
    if isinstance(message.get("tool_call_id"), str):
        changed["tool_call_id"] = _short(message["tool_call_id"])
    if "tool_calls" in message:
        changed["tool_calls"] = [{**call, "id": _short(str(call.get("id")))} for call in message["tool_calls"]]
    return changed


def _short(identity: str) -> str:
    if len(identity) == ID_LENGTH and identity.isascii() and identity.isalnum():
        return identity
    digest = hashlib.sha256(identity.encode("utf-8", "replace")).digest()
    return "".join(ID_CHARACTERS[byte % len(ID_CHARACTERS)] for byte in digest[:ID_LENGTH])


def _one_call_each(messages: Sequence[Message]) -> Iterator[Message]:
    """The conversation with one message for each call, followed by its result."""
    taken: set[int] = set()
    for place, message in enumerate(messages):
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            if place not in taken:
                yield message
            continue
        for number, call in enumerate(calls):
            yield {**message, "content": message["content"] if number == 0 else "", "tool_calls": [call]}
            for later in range(place + 1, len(messages)):
                if messages[later]["role"] != "tool":
                    break
                if messages[later].get("tool_call_id") == call.get("id"):
                    taken.add(later)
                    yield messages[later]


def _as_text(messages: Sequence[Message]) -> list[Message]:
    """The conversation with calls and results as text of messages that every template knows."""
    changed: list[Message] = []
    after_results = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result or (after_results and message["role"] == "user"):
            content = str(message.get("content") or "")
            text = f"<tool_response>\n{content}\n</tool_response>" if is_result else content
            if after_results:  # one message of the user, because many templates require user and assistant to alternate
                changed[-1]["content"] += f"\n{text}"
            else:
                changed.append({"role": "user", "content": text})
        elif "tool_calls" in message:
            calls = "\n".join(_written(call["function"]) for call in message["tool_calls"])
            content = "\n".join(part for part in (message["content"], calls) if part)
            changed.append({**{key: message[key] for key in message if key != "tool_calls"}, "content": content})
        else:
            changed.append(dict(message))
        after_results = is_result
    return changed


def _written(function: Mapping[str, Any]) -> str:
    call = {"name": function.get("name"), "arguments": function["arguments"]}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def _form_of(template: str) -> str:
    """The form of a call, in the style of the template's family."""
    if family_of(template).name != "deepseek":
        return '<tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>'
    call = "function<｜tool▁sep｜>NAME\n```json\n{...}\n```" if "```json" in template else "NAME<｜tool▁sep｜>{...}"
    return f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"


def _explain(messages: list[Message], tools: Sequence[Mapping[str, Any]], form: str) -> None:
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = (
        f"# Tools\nYou may call functions. These are their signatures:\n<tools>\n{signatures}\n</tools>\n"
        f"To call one, write its name and its arguments, a JSON object, in this form:\n{form}"
    )
    for place, message in enumerate(messages):
        if message["role"] in ("system", "user"):
            parts = [message.get("content") or "", text]
            ordered = parts if message["role"] == "system" else parts[::-1]
            messages[place] = {**message, "content": "\n\n".join(part for part in ordered if part)}
            return
    messages.insert(0, {"role": "user", "content": text})
