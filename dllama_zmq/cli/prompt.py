"""Reads the prompt from an argument, a flag, a file or stdin."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

from dllama_zmq.cli.answer_flags import PromptFlags
from dllama_zmq.cli.notes import note
from dllama_zmq.errors import RequestError, UsageError

_SAY_AFTER_S = 1.5
_STDIN = "-"


def read_prompt(flags: PromptFlags, example: str) -> str:
    """The text to continue. A line end at the end of a file or of stdin is dropped, as in llama.cpp.

    Without a flag, stdin is read unless it is a terminal. Raises UsageError for no prompt, several, or one that is not
    UTF-8; RequestError for a file that cannot be read.
    """
    given = [one for one in (flags.prompt, flags.prompt_option, flags.prompt_file) if one is not None]
    if len(given) > 1:
        raise UsageError("the prompt is given twice; give it once: as an argument, with --prompt or with --file")
    text = given[0] if given else None
    try:
        if isinstance(text, Path):
            return _without_line_end(_content(text))
        if text == _STDIN:
            return _without_line_end(_piped())
        if text is not None:
            return os.fsencode(text).decode()
        if sys.stdin is not None and not sys.stdin.isatty() and (piped := _piped()):
            return _without_line_end(piped)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the prompt is not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}"
        ) from None
    raise UsageError(f"the prompt is missing; give a text to continue: {example}")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"--file {path}: the prompt cannot be read ({error.strerror}); check the path") from None


def _piped() -> bytes:
    """All of stdin. Says on stderr that it waits, if it waits long."""
    if sys.stdin is None:
        return b""
    if not select.select([sys.stdin], [], [], _SAY_AFTER_S)[0]:
        note("reading the prompt from stdin, until its end")
    return sys.stdin.buffer.read()


def _without_line_end(data: bytes) -> str:
    return data.decode().removesuffix("\n").removesuffix("\r")
