"""The commands of a chat: /help and the like, named as in ollama and llama-cli."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct
from rich.console import Console, RenderableType
from rich.table import Table

from dllama_zmq.cli.chat.conversation import read_bounded, read_conversation
from dllama_zmq.cli.chat.session import Session
from dllama_zmq.cli.cluster_tables import status_table
from dllama_zmq.cli.notes import inert, note
from dllama_zmq.errors import UsageError
from dllama_zmq.reporting import human_bytes, plural

_MAX_READ_BYTES = 1 << 19  # about as much as a request can hold
_STATUS_S = 10.0


def run(session: Session, text: str, answer: Callable[[str | None], None]) -> bool:
    """Run the command in `text`. Returns False if the user leaves. Raises UsageError and the command's errors.

    answer: shows an answer to a message; None: a new answer to the last message.
    """
    name, _, rest = text.strip().partition(" ")
    command, rest = BY_NAME.get(name.lower()), rest.strip()
    if command is None:
        near = difflib.get_close_matches(name, BY_NAME, 1)
        meant = f"; did you mean {near[0]}?" if near else "; /help lists them"
        raise UsageError(f"there is no command {name}{meant} (a space before it makes it a message)")
    own_name = command.names[0]
    if rest and not command.takes:
        raise UsageError(f"{own_name} takes no argument")
    if not rest and command.takes == "FILE":
        raise UsageError(f"{own_name} needs a file: {own_name} FILE")
    if own_name == "/regen":
        answer(None)
    elif command.run is not None:
        command.run(session, rest)
    return own_name != "/bye"


def _help(session: Session, rest: str) -> None:
    table = Table.grid(padding=(0, 2))
    for one in _TABLE:
        table.add_row(" ".join([", ".join(one.names), one.takes]).rstrip(), one.help)
    table.add_row('"""', "Begin and end a message of several lines")
    table.add_row("Ctrl-C", "Stop the answer; its text so far stays")
    _print(table)


def _clear(session: Session, rest: str) -> None:
    session.conversation.turns.clear()
    session.attached = ""
    note("a new conversation" + ("; the system message stays" if session.conversation.system else ""))


def _drop(session: Session, rest: str) -> None:
    if rest and not rest.isdecimal():
        raise UsageError(f"/drop {rest}: expected a number of turns")
    n_dropped = session.conversation.drop(int(rest or 1))
    left = plural(len(session.conversation.turns), "turn")
    note(f"{plural(n_dropped, 'turn')} dropped, {left} left" if n_dropped else "the conversation is empty")


def _system(session: Session, rest: str) -> None:
    conversation = session.conversation
    if not rest:
        note(conversation.system or "there is no system message; /system TEXT sets one")
        return
    if session.template is None:
        raise UsageError("a system message needs a chat template; this model continues plain text")
    conversation.system = rest[1:-1] if len(rest) > 1 and rest[0] == rest[-1] == '"' else rest
    note("the system message is set, from the next answer on" if conversation.system else "no system message")


def _set(session: Session, rest: str) -> None:
    name, _, value = rest.removeprefix("parameter ").strip().partition(" ")
    if not name:
        table = Table.grid(padding=(0, 2))
        for one, words in session.settings.shown().items():
            table.add_row(one, inert(words))
        _print(table)
    elif name == "system":  # the names of ollama, as those below
        _system(session, value.strip() or '""')
    else:
        name, value = {"quiet": ("verbose", "off"), "nothink": ("think", "off")}.get(name, (name, value.strip()))
        if not value and name not in ("verbose", "think"):
            raise UsageError(f"/set {name} needs a value: /set {name} VALUE")
        session.settings = session.settings.changed(name, value)
        note(f"{name} is set")


def _show(session: Session, rest: str) -> None:
    last = "none"
    if session.last is not None and session.last.started is not None:
        last = f"{session.last.started.prompt_tokens + len(session.last.tokens)} tokens with its prompt"
    rows = {
        "model": session.used.model,
        "architecture": f"{session.model.architecture}, {session.model.n_params / 1e6:,.0f} million parameters",
        "nodes": str(session.used.n_nodes),
        "context": f"{session.model.seq_len} tokens (the model's own: {session.model.context})",
        "template": "none: texts are continued" if session.template is None else session.template.source,
        "system": session.conversation.system or "none",
        "conversation": plural(len(session.conversation.turns), "turn"),
        "last answer": last,
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, inert(value))
    _print(table)


def _save(session: Session, rest: str) -> None:
    path = Path(rest).expanduser()
    session.conversation.save(path, session.model.name)
    note(f"saved {plural(len(session.conversation.turns), 'turn')} in {path}")


def _load(session: Session, rest: str) -> None:
    path = Path(rest).expanduser()
    session.conversation = read_conversation(path)
    note(f"loaded {plural(len(session.conversation.turns), 'turn')} from {path}")


def _read(session: Session, rest: str) -> None:
    path = Path(rest).expanduser()
    data = read_bounded(path, _MAX_READ_BYTES)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: it is not UTF-8 text (byte {error.start})") from None
    session.attached += text if session.template is None else f"{text.strip()}\n\n"
    note(f"{path} ({human_bytes(len(data))}) goes with your next message; Enter alone sends it")


def _stats(session: Session, rest: str) -> None:
    last = session.last
    if last is None or not last.tokens:
        raise UsageError("there is no answer yet")
    last.stats.print_table(session.used.n_nodes)


def _nodes(session: Session, rest: str) -> None:
    _print(status_table(session.used.client.status(_STATUS_S)))


def _print(shown: RenderableType) -> None:
    Console(stderr=True, highlight=False, markup=False).print(shown)


class Command(Struct, frozen=True):
    """names: all names, with "/". takes: the arguments, as the help shows them. run: None: `run` above does it."""

    names: tuple[str, ...]
    takes: str
    help: str
    run: Callable[[Session, str], None] | None = None


_TABLE = (
    Command(("/help", "/?"), "", "Show this list", _help),
    Command(("/bye", "/exit", "/quit"), "", "Leave, as Ctrl-D does"),
    Command(("/clear",), "", "Start a new conversation; the system message stays", _clear),
    Command(("/drop",), "[N]", "Remove the oldest N turns (1) from the conversation", _drop),
    Command(("/regen",), "", "Give another answer to the last message"),
    Command(("/system",), "[TEXT]", 'Set the system message; "" removes it, no argument shows it', _system),
    Command(("/set",), "[NAME VALUE]", "Change a setting of answers; no argument shows all", _set),
    Command(("/show",), "", "Show the model, its template and the conversation's size", _show),
    Command(("/save",), "FILE", "Write the conversation as JSON", _save),
    Command(("/load",), "FILE", "Go on with a saved conversation", _load),
    Command(("/read",), "FILE", "Send the text of a file with the next message", _read),
    Command(("/stats",), "", "Show time and traffic of the last answer", _stats),
    Command(("/nodes",), "", "Show the nodes of the cluster", _nodes),
)
BY_NAME = {name: command for command in _TABLE for name in command.names}
