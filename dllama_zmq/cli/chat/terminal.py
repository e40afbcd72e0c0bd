"""A conversation at a terminal: the prompt, its history and its keys. Only this module imports prompt_toolkit."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.utils import is_dumb_terminal

from dllama_zmq.cli.chat import commands, settings
from dllama_zmq.cli.chat.commands import BY_NAME
from dllama_zmq.cli.chat.conversation import is_quoted, quoted
from dllama_zmq.cli.chat.session import Session, error_text
from dllama_zmq.cli.chat.view import View
from dllama_zmq.cli.notes import note
from dllama_zmq.cli.progress import Display
from dllama_zmq.cli.reply import Reply
from dllama_zmq.errors import DllamaError
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.launch.paths import chat_history

_PROMPT, _MORE = ">>> ", "... "
_MAX_HISTORY_BYTES = 1 << 20


class Terminal:
    """Asks for messages and shows the replies until the user leaves."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._hinted: set[str] = set()
        self._keys: PromptSession[str] = PromptSession(
            history=open_history(),
            completer=_Completer(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,  # a menu would keep lines of the screen free
            enable_suspend=True,
            output=_output(),
        )

    def run(self) -> None:
        """Run until Ctrl-D or /bye."""
        with _quiet_keys():
            self._converse()

    def _converse(self) -> None:
        session = self._session
        while (text := self._message()) is not None:
            if text.startswith("/"):
                try:
                    if not commands.run(session, text, self._answer):
                        return
                except (DllamaError, OSError) as error:
                    note(f"error: {error_text(error, session)}")
            elif text.strip() or session.attached or session.continues:
                self._answer(text)

    def _message(self) -> str | None:
        """The next message or command; None at the end."""
        while True:
            try:
                text = self._keys.prompt(_PROMPT)
                if not is_quoted(text):
                    return text
                text = quoted(text, lambda: self._keys.prompt(_MORE))
                return f" {text}" if text.startswith("/") else text  # the space makes it a message
            except KeyboardInterrupt:
                if not self._keys.default_buffer.text:
                    note("Ctrl-D or /bye leaves")
            except EOFError:
                return None

    def _answer(self, text: str | None) -> None:
        """Show the reply to a message; None: a new reply to the last message."""
        session, before, interrupts = self._session, self._session.last, Interrupts()
        with suppress(KeyboardInterrupt), interrupts.caught(), Display() as display:
            display.activity("asking the root")
            view = View(display, shows_text=True, shows_thinking=True)
            try:
                if text is None:
                    session.ask_again(view, interrupts)
                else:
                    session.ask(text, view, interrupts)
            except BrokenPipeError:  # the reader of stdout has gone: `chat | head`
                raise
            except (DllamaError, OSError) as error:
                display.line(f"error: {error_text(error, session)}")
        if session.last is not None and session.last is not before:
            self._remark(session.last)
        print(file=sys.stderr)  # noqa: T201

    def _remark(self, reply: Reply) -> None:
        """Say how a reply ended, unless its text shows it."""
        session = self._session
        plain = session.template is None
        if reply.reason == "cancelled":
            kept = (
                "its text so far stays in the conversation"
                if reply.content
                else "the message is not in the conversation"
            )
            note(f"[{'not answered' if reply.failed else 'stopped'}; {kept}]")
        elif why := session.cut(reply):
            note(f"[{why}]")
        elif not reply.content:
            note("[the answer is empty]")
        if plain and reply.content:
            self._hint(
                "the text has ended: your next message starts a new one"
                if reply.reason == "stop"
                else "the text is open: a message continues it, Enter alone lets the model continue, /clear ends it"
            )
        if session.settings.verbose and reply.started is not None:
            note(reply.stats.sentence())

    def _hint(self, text: str) -> None:
        """Show a hint once."""
        if text not in self._hinted:
            self._hinted.add(text)
            note(f"[{text}]")


class _Completer(Completer):
    """Completes commands, the settings of /set, and paths."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """The completions for the text before the cursor."""
        name, space, rest = document.text_before_cursor.partition(" ")
        if not name.startswith("/"):
            return
        if not space:
            words, begun = [f"{word} " if one.takes else word for word, one in BY_NAME.items()], name
        elif name == "/set" and " " not in rest:
            words, begun = [f"{word} " for word in settings.NAMES], rest
        else:
            if name in BY_NAME and BY_NAME[name].takes == "FILE":
                yield from self._paths.get_completions(Document(rest), complete_event)
            return
        yield from (Completion(word, -len(begun)) for word in words if word.startswith(begun))


def open_history() -> History:
    """The input of this user's earlier chats; only in memory if the file cannot be written."""
    try:
        path = chat_history()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        if path.stat().st_size > _MAX_HISTORY_BYTES:
            data = path.read_bytes()[-_MAX_HISTORY_BYTES // 2 :]
            path.write_bytes(data[data.find(b"\n# ") :])  # each entry begins with a comment with its time
    except OSError as error:
        note(f"your input is not kept for the next chat: {error.filename}: {error.strerror}")
        return InMemoryHistory()
    return _File(path)


class _File(FileHistory):
    """A history whose file may become unwritable."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)

    def store_string(self, string: str) -> None:
        """prompt_toolkit's."""
        with suppress(OSError):
            super().store_string(string)


def _output() -> Vt100_Output | None:
    """The terminal of stdout or stderr, without cursor position requests: their answer could arrive as a message.

    None for a dumb terminal: prompt_toolkit then writes plain text.
    """
    if is_dumb_terminal():
        return None
    stream = sys.stdout if sys.stdout.isatty() else sys.stderr

    def size() -> Size:
        columns, rows = os.get_terminal_size(stream.fileno())
        return Size(rows or 24, columns or 80)

    return Vt100_Output(stream, size, term=os.environ.get("TERM"), enable_cpr=False)


@contextmanager
def _quiet_keys() -> Iterator[None]:
    """During this block, typed text is not echoed into the answer, but kept for the next prompt. Ctrl-C still works.

    The terminal is restored at the end and after an error: a signal may come while a prompt is drawn.
    """
    descriptor = sys.stdin.fileno()
    before, quiet = termios.tcgetattr(descriptor), termios.tcgetattr(descriptor)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)  # with ICANON, Ctrl-D would be lost
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
