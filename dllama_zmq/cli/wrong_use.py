"""Errors for unknown flags, commands and arguments: one sentence, with the nearest known word."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from dllama_zmq.cli.command import flag_name
from dllama_zmq.cli.notes import note
from dllama_zmq.hub import HUB_PREFIX, is_hub_name
from dllama_zmq.sources import DEMO

_BY_INSTEAD = {
    "samples as `dllama-zmq generate --help` says": (
        "--repeat-last-n",
        "--mirostat",
        "--grammar",
        "--json-schema",
        "--dry-multiplier",
        "--samplers",
        "--num-beams",
        "--stop",
    ),
    "runs models on CPUs": ("-ngl", "--n-gpu-layers", "--gpu-layers", "--gpu-index", "--device", "--tensor-split"),
    "talks with `dllama-zmq chat`": (
        "-cnv",
        "--conversation",
        "--interactive",
        "--chat-template",
        "-sys",
        "--system",
        "--system-prompt",
    ),
}
_NOT_YET = {flag: instead for instead, flags in _BY_INSTEAD.items() for flag in flags}
"""Flags of llama.cpp, ollama, transformers and distributed-llama, with what this version does instead."""

_WrongUse: type[Exception] = typer.BadParameter.__mro__[1]  # click's UsageError, of the click that typer uses


def exit_code(app: typer.Typer, args: Sequence[str] | None = None) -> int:
    """Run `app` with `args` (default: the command line's). Returns the exit code; wrong use is a sentence on stderr."""
    try:
        return app(args, standalone_mode=False) or 0
    except _WrongUse as error:
        given = sys.argv[1:] if args is None else args
        context = getattr(error, "ctx", None)
        words = _not_yet(context, given) or _without_command(context, given) or _sentence(error)
        if words.startswith("Usage: "):  # no command at all: the help is the answer
            typer.echo(_message(error), err=True)
        elif words:
            place = getattr(context, "command_path", "dllama-zmq")
            note(f"error: {words}; see `{place} --help`")
        return 2
    except typer.Abort:
        return 130


def _not_yet(context: Any, given: Sequence[str]) -> str:
    """The sentence for a flag of another program, else empty. (click reads -ngl as -n with the value gl.)"""
    own = {name for parameter in getattr(getattr(context, "command", None), "params", ()) for name in parameter.opts}
    for flag in (word.partition("=")[0] for word in given):
        if flag in _NOT_YET and flag not in own:
            return f"{flag} is not in this version, which {_NOT_YET[flag]}; leave it out"
    return ""


def _without_command(context: Any, given: Sequence[str]) -> str:
    """If the words begin with no command: a sentence with a command that takes them; else empty."""
    commands: dict[str, Any] = getattr(getattr(context, "command", None), "commands", {})
    if not commands or not given or given[0] in commands:
        return ""
    flags = {word.partition("=")[0] for word in given if word.startswith("-") and word != "-"}
    fitting = [name for name, one in commands.items() if not one.hidden and flags <= set(_flags(one))]
    if not given[0].startswith("-"):
        use = "up" if Path(given[0]).suffix in (".yaml", ".yml") else "run"
        is_named = (
            given[0] == DEMO or given[0].startswith(HUB_PREFIX) or is_hub_name(given[0]) or Path(given[0]).exists()
        )
        fitting = [use] if is_named and use in fitting else []
    if not fitting:
        return ""
    example = shlex.join(["dllama-zmq", fitting[0], *given])
    return f"{given[0]} is given and no command is; did you mean `{example}`?"


def _flags(command: Any) -> list[str]:
    command.load()
    return [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]


def _sentence(error: Any) -> str:
    """The sentence for `error`, by default click's own; empty if the help was printed."""
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    wrong = getattr(error, "option_name", None)
    if wrong is not None and hasattr(error, "possibilities"):
        return f"there is no flag {wrong}{_nearest(wrong, _spellings(context))}"
    if type(error) is typer.BadParameter and parameter is not None:
        return f"{flag_name(parameter)}: {str(error.message).rstrip('.')}"
    if wrong is not None:
        return f"{wrong} needs a value"
    words = _message(error).rstrip(".")
    if words.startswith("Got unexpected extra argument"):
        return _too_many(context)
    if words.startswith("No such command") and context is not None:
        wrong = words.split("'")[1]
        return f"there is no command {wrong!r}{_nearest(wrong, context.command.commands)}"
    return words


def _message(error: Any) -> str:
    return str(error.format_message()).strip()


def _too_many(context: Any) -> str:
    """The sentence for more arguments than expected."""
    if any(parameter.name == "prompt" for parameter in context.command.params):
        return "the prompt is in several words; put quotes around it"
    taken = [parameter for parameter in context.command.params if parameter.param_type_name == "argument"]
    names = " and ".join(flag_name(parameter) for parameter in taken) or "no argument"
    return f"too many arguments; `{context.info_name}` takes {names}"


def _spellings(context: Any) -> list[str]:
    return [name for parameter in context.command.get_params(context) for name in parameter.opts if name[:2] == "--"]


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, 2, 0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""
