"""A conversation over a pipe: one message a line, answered one after the other. Knows no keys and no commands."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterator

from dllama_zmq.cli.chat.conversation import QUOTES, is_quoted, quoted
from dllama_zmq.cli.chat.session import Session
from dllama_zmq.cli.chat.view import View
from dllama_zmq.cli.exit_codes import as_json
from dllama_zmq.cli.notes import note
from dllama_zmq.cli.progress import Display
from dllama_zmq.errors import UsageError

_SAY_AFTER_S = 1.5
_MAX_LINE_BYTES = 1 << 21  # more than a request can hold, which is refused with its own error


def converse(session: Session, messages: Iterator[str], json: bool) -> None:
    """Print the answer to each message, with an empty line between answers, or each as a line of JSON.

    Raises the error of the first message that cannot be answered.
    """
    for number, text in enumerate(messages):
        if number and not json:
            print(flush=True)  # noqa: T201
        with Display() as display:
            display.activity("asking the root")
            reply = session.ask(text, View(display, shows_text=not json, shows_thinking=False))
        if json:
            print(as_json(reply.as_map(session.used.model, text) | {"reasoning": reply.thinking}), flush=True)  # noqa: T201
        elif why := session.cut(reply):
            note(why)
        if session.settings.verbose and not json:
            note(reply.stats.sentence())


def messages() -> Iterator[str]:
    """The lines of stdin that are not empty; lines between triple quotes are one message. Raises UsageError.

    Says on stderr that it waits, if the first line takes long.
    """
    if not select.select([sys.stdin], [], [], _SAY_AFTER_S)[0]:
        note("reading messages from stdin, one a line")
    lines = _lines()

    def following() -> str:
        line = next(lines, None)
        if line is None:
            raise UsageError(f"the last message begins with {QUOTES} but does not end with {QUOTES}")
        return line

    for line in lines:
        if is_quoted(line):
            yield quoted(line, following)
        elif line.strip():
            yield line


def _lines() -> Iterator[str]:
    number = 0
    while data := sys.stdin.buffer.readline(_MAX_LINE_BYTES):
        number += 1
        try:
            yield data.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"line {number} of stdin is not UTF-8 text: byte {error.start} is {data[error.start]:#x}"
            ) from None
