"""Chat templates: messages to the text of a prompt. Knows no vocabulary and no file.

A file's template is a program that nobody has looked at. Forbidding, operator by operator, whatever could take long or
much memory would be a list that is never complete, so it runs in a process of its own (`chat_child.py`) that may use
little memory and is ended when its time is over. That process lives as long as the template, and renders in about a
millisecond; starting it takes a tenth of a second.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from dllama_zmq.errors import FormatError, RequestError, UsageError
from dllama_zmq.tokenizer.builtin_templates import BUILTIN, told_by

RENDER_S = 2.0
"""Seconds that a template may take."""
_GRACE_S = 1.0  # for a template inside one long operation, which can only be ended from without
_START_S = 30.0
MAX_TEXT_CHARS = 8 << 20
_CHILD = Path(__file__).with_name("chat_child.py")


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

        messages: at least one, of what JSON can hold; keys whose value is None are left out, as transformers does.
        Raises RequestError where the template refuses or cannot render this conversation, FormatError where the
        template itself is at fault: no Jinja, too long, too large, or reaching for what it must not.
        """
        if not messages:
            raise RequestError("the conversation is empty; give at least one message")
        shown = {
            **self._words,
            "documents": None,
            **variables,
            "messages": [_without_none(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._templates:
            names = ", ".join(sorted(self._templates))
            raise RequestError(f"{self.source}: no chat template is the default; choose one by name: {names}")
        return self._renderer.render(self._templates[name], shown, f"{self.source}: chat template")


def choose_template(
    templates: Mapping[str, str], name: str | None, specials: Mapping[str, int], words: Mapping[str, str], source: str
) -> ChatTemplate:
    """The file's templates; else, or where `name` says so, a built-in one."""
    if name is None and templates:
        return ChatTemplate(templates, words, source)
    chosen = name or told_by(specials)
    if chosen is None:
        raise RequestError(
            f"{source}: this tokenizer has no chat template, and its special tokens tell none; "
            f"choose one by name: {', '.join(BUILTIN)}"
        )
    text = templates.get(chosen, BUILTIN.get(chosen))
    if text is None:
        raise UsageError(f"{chosen!r} is no chat template; expected one of {', '.join([*templates, *BUILTIN])}")
    return ChatTemplate({"default": text}, words, source if chosen in templates else f"built-in {chosen}")


def _without_none(message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"a message is a {type(message).__name__}; expected an object with a role and content")
    return {key: value for key, value in message.items() if value is not None}


class _Renderer:
    """The process that renders; started when it is first needed, and again after it had to be ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def render(self, template: str, variables: Mapping[str, Any], where: str) -> str:
        request = {"template": template, "variables": variables, "seconds": RENDER_S, "chars": MAX_TEXT_CHARS}
        try:
            line = json.dumps(request).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the conversation holds what JSON cannot: {error}") from error
        with self._lock:
            answer = self._ask(line)
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

    def _ask(self, line: bytes) -> dict[str, Any] | None:
        """The child's answer; None where it gave none in time, after which it has been ended."""
        fresh = self._process is None or self._process.poll() is not None
        if fresh:
            self._start()
        process = self._process
        answer = None if process is None else _exchange(process, line, RENDER_S + _GRACE_S + (_START_S if fresh else 0))
        if answer is None:
            self._end()
            return None
        return answer

    def _start(self) -> None:
        self._end()
        process = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process)

    def _end(self) -> None:
        if self._process is not None:
            self._finalizer()
            self._process = None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _exchange(process: subprocess.Popen[bytes], line: bytes, wait_s: float) -> dict[str, Any] | None:
    """Send `line`, and wait at most `wait_s` seconds for the line that answers it."""
    if process.stdin is None or process.stdout is None:
        return None
    deadline = time.monotonic() + wait_s
    received = bytearray()
    to_send = memoryview(line)
    os.set_blocking(process.stdin.fileno(), False)
    os.set_blocking(process.stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while not received.endswith(b"\n"):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or len(received) > 16 * MAX_TEXT_CHARS:
                return None
            for key, _ in selector.select(left_s):
                try:
                    if key.fileobj is process.stdin:
                        to_send = to_send[os.write(process.stdin.fileno(), to_send) :]
                        if not to_send:
                            selector.unregister(process.stdin)
                    else:
                        data = os.read(process.stdout.fileno(), 1 << 16)
                        if not data:
                            return None
                        received += data
                except (BlockingIOError, InterruptedError):
                    continue
                except BrokenPipeError:
                    return None
    answer: dict[str, Any] = json.loads(received)
    return answer
