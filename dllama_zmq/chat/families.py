"""The forms in which families of models write tool calls, and the marks around them. Knows no thinking.

Each reader takes an answer from its content on. Sources: the models' chat templates, and Meta's pages on the
prompt formats of Llama 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from dllama_zmq.chat.calls import Tools, read_arguments, read_call, read_calls
from dllama_zmq.chat.deltas import Collector
from dllama_zmq.chat.pythonic import read_pythonic_calls
from dllama_zmq.chat.reader import Reader, Reading
from dllama_zmq.chat.tagged import read_tagged_call

_PYTHON_TAG = "<|python_tag|>"
_TOOL_CALLS = "[TOOL_CALLS]"
_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_END, _SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


def read_text(reader: Reader, out: Collector, tools: Tools) -> Reading[None]:
    """Read an answer without calls."""
    yield from reader.until((), out.content)


def read_hermes(reader: Reader, out: Collector, tools: Tools) -> Reading[None]:
    """Read calls of Hermes 2 Pro, Qwen2.5, Qwen3: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, repeated.

    Small models sometimes write several objects between two marks.
    """
    while mark := (yield from reader.until(("<tool_call>",), out.content)):
        has_begun = False
        reader.hold()
        yield from reader.space()
        while (yield from read_call(reader, out, None)):
            has_begun = True
            reader.hold()
            yield from reader.space()
        if not has_begun:
            reader.undo()
            out.content(mark)
        elif (yield from reader.take("</tool_call>")):
            reader.keep()
        else:
            reader.undo()


def read_qwen_coder(reader: Reader, out: Collector, tools: Tools) -> Reading[None]:
    """Read calls of Qwen3-Coder: <tool_call><function=NAME><parameter=KEY>VALUE</parameter>...</function></tool_call>.

    The model sometimes leaves <tool_call> out.
    """
    while mark := (yield from reader.until(("<tool_call>", "<function="), out.content)):
        reader.hold()
        yield from reader.space()
        if mark == "<function=":
            is_call = yield from read_tagged_call(reader, out, tools, any_name=False)
        elif (yield from reader.take("<function=")):
            is_call = yield from read_tagged_call(reader, out, tools, any_name=True)
        else:
            is_call = yield from read_call(reader, out, None)
        if is_call:
            yield from reader.space()
            yield from reader.take("</tool_call>")
        else:
            reader.undo()
            out.content(mark)


def read_llama(reader: Reader, out: Collector, tools: Tools) -> Reading[None]:
    """Read calls of Llama 3.1, 3.2, 3.3: {"name": ..., "parameters": {...}} or [name(...)], alone or after
    <|python_tag|>.

    Several objects have ";" or white space between them.
    """
    reader.hold()
    yield from reader.space()
    if not (yield from _llama_calls(reader, out, tools)):
        reader.undo()
    while mark := (yield from reader.until((_PYTHON_TAG,), out.content)):
        reader.hold()
        yield from reader.space()
        if not (yield from _llama_calls(reader, out, tools)):
            reader.undo()
            out.content(mark)


def _llama_calls(reader: Reader, out: Collector, tools: Tools) -> Reading[bool]:
    start = reader.at
    if (yield from reader.character()) == "[":
        if (yield from read_pythonic_calls(reader, out, tools)):
            return True
        reader.at = start
        return (yield from read_calls(reader, out, tools))
    has_begun = False
    while (yield from read_call(reader, out, tools)):
        has_begun = True
        reader.hold()
        yield from reader.space()
        yield from reader.take(";")
        yield from reader.space()
    if has_begun:
        reader.undo()
    return has_begun


def read_mistral(reader: Reader, out: Collector, tools: Tools) -> Reading[None]:
    """Read calls of Mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}], or [TOOL_CALLS]name[ARGS]{...} for each.

    An answer without the names of special tokens begins with the list itself.
    """
    reader.hold()
    yield from reader.space()
    if not (yield from read_calls(reader, out, tools)):
        reader.undo()
    while mark := (yield from reader.until((_TOOL_CALLS,), out.content)):
        reader.hold()
        yield from reader.space()
        begins = yield from reader.character()
        if begins == "[":
            is_call = yield from read_calls(reader, out, None)
        elif begins == "{":
            is_call = yield from read_call(reader, out, None)
        else:
            is_call = yield from _named_call(reader, out)
        if not is_call:
            reader.undo()
            out.content(mark)


def _named_call(reader: Reader, out: Collector) -> Reading[bool]:
    name = yield from reader.word()
    if (yield from reader.take("[CALL_ID]")):
        yield from reader.word()
    yield from reader.take("[ARGS]")
    yield from reader.space()
    if not name or (yield from reader.character()) != "{":
        return False
    return (yield from read_arguments(reader, out, name))


def read_deepseek(reader: Reader, out: Collector, tools: Tools) -> Reading[None]:
    """DeepSeek V3.1: CALL_BEGIN name SEP {...} CALL_END for each call; V3 and R1 write
    CALL_BEGIN function SEP name, and the arguments in a fenced block of JSON.
    """
    while mark := (yield from reader.until((_CALLS_BEGIN, _CALL_BEGIN), out.content)):
        reader.hold()
        yield from reader.space()
        if mark == _CALLS_BEGIN:
            yield from reader.take(_CALL_BEGIN)
        if (yield from _deepseek_call(reader, out)):
            yield from reader.space()
            yield from reader.take(_CALL_END)
            yield from reader.space()
            yield from reader.take(_CALLS_END)
        else:
            reader.undo()
            out.content(mark)


def _deepseek_call(reader: Reader, out: Collector) -> Reading[bool]:
    name = yield from reader.word()
    if not name or not (yield from reader.take(_SEP)):
        return False
    if (yield from reader.character()) == "{":
        return (yield from read_arguments(reader, out, name))
    name = yield from reader.word()
    yield from reader.space()
    yield from reader.take("```json")
    yield from reader.space()
    if not name or (yield from reader.character()) != "{":
        return False
    is_call = yield from read_arguments(reader, out, name)
    yield from reader.space()
    yield from reader.take("```")
    return is_call


class Family(Struct, frozen=True):
    """A group of models that write tool calls in one form. marks: the template contains one of them."""

    name: str
    marks: tuple[str, ...]
    read: Callable[[Reader, Collector, Tools], Reading[None]]


HERMES = Family("hermes", ("<tool_call>",), read_hermes)
FAMILIES = (
    Family("deepseek", (_CALLS_BEGIN,), read_deepseek),
    Family("mistral", (_TOOL_CALLS,), read_mistral),
    Family("qwen3-coder", ("<parameter=",), read_qwen_coder),
    HERMES,
    Family("llama3", ("<|python_tag|>", "ipython"), read_llama),
)


def family_of(template: str) -> Family:
    """The family of a template; Hermes if the template has no tools, because many models know its form."""
    return next((family for family in FAMILIES if any(mark in template for mark in family.marks)), HERMES)
