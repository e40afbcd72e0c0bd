"""`chat`, and `run` without a prompt: chooses cluster, template, and terminal or lines."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Annotated

from msgspec import Struct
from msgspec.structs import replace
from typer import Argument, Option

from dllama_zmq.cli import answer_flags, completion, flags
from dllama_zmq.cli.chat.session import Session, Template, chosen_template, template_of
from dllama_zmq.cli.chat.settings import Settings
from dllama_zmq.cli.chosen import elsewhere
from dllama_zmq.cli.notes import note
from dllama_zmq.cli.using import Used, file_for, used, used_at, with_model
from dllama_zmq.errors import UsageError
from dllama_zmq.tokenizer.builtin_templates import BUILTIN


class Options(Struct, frozen=True):
    """The settings of a chat at its beginning, from its flags."""

    settings: Settings
    system: str = ""
    template: str | None = None
    plain: bool = False
    json: bool = False


def chat(
    *,
    source: Annotated[
        str | None,
        Argument(metavar="MODEL", help=f"{flags.MODEL}; none: this folder's cluster", autocompletion=completion.models),
    ] = None,
    system: Annotated[
        str, Option("-sys", "--system", "--system-prompt", metavar="TEXT", help="Tell the model how to be")
    ] = "",
    template: Annotated[
        str | None,
        Option(
            "--template",
            "--chat-template",
            metavar="NAME|FILE",
            help="The chat template, if not the model's own",
            autocompletion=completion.templates,
        ),
    ] = None,
    plain: Annotated[bool, Option("--plain", help="Use no template: messages just continue a text")] = False,
    think: Annotated[
        bool | None, Option("--think/--no-think", help="Whether a model that can is to think before it answers")
    ] = None,
    stats: Annotated[bool, Option("--stats", "--verbose", help="Tell tokens/s after each answer")] = False,
    json: Annotated[bool, Option("--json", help="One JSON object a line for each answer")] = False,
    overrides: flags.Overrides,
    answer: answer_flags.Sampled,
    cluster: flags.Cluster = None,
    there: flags.There,
) -> None:
    """Talk with a model. At a terminal /help lists commands; over a pipe each line is a message.

    Uses this folder's cluster, or with MODEL a cluster that runs it here; with none running, brings one up for this
    call.

    Examples:
        dllama-zmq chat demo
        dllama-zmq chat hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_0 -sys "Be brief."
        dllama-zmq chat --connect 192.168.1.10
        printf 'Hello!\\nAnd in French?\\n' | dllama-zmq chat story.gguf --json
    """
    settings = Settings(answer.sampling(), answer.max_tokens(), tuple(answer.stop_strings()), think, stats)
    options = Options(settings, system, template, plain, json)
    if (address := elsewhere(there, cluster)) is not None:
        source, overrides = with_model(source, overrides)
        converse(used_at(address, there.security, replace(overrides, model=source)), options)
        return
    source, overrides = with_model(source, overrides)
    converse(used(*file_for(source, overrides, cluster)), options)


def converse(cluster: AbstractContextManager[Used], options: Options) -> None:
    """Run a conversation with the model of `cluster`. Raises UsageError for options that exclude each other."""
    if options.plain and options.template is not None:
        raise UsageError("--plain and --template exclude each other; give one of them")
    chosen = chosen_template(options.template)
    messages: Iterator[str] | None = None
    if options.json or not has_terminal():
        from dllama_zmq.cli.chat.lines import messages as read

        messages = read()
        first = next(messages, None)
        if first is None:
            note("stdin had no message")
            return
        messages = itertools.chain([first], messages)
    with cluster as found:
        session = _session(found, options, chosen)
        if messages is not None:
            from dllama_zmq.cli.chat.lines import converse as answer_lines

            answer_lines(session, messages, options.json)
            return
        from dllama_zmq.cli.chat.terminal import Terminal

        Terminal(session).run()


def has_terminal() -> bool:
    """Whether there is a terminal to type at, and one to show answers on."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    typed, *seen = (stream is not None and stream.isatty() for stream in streams)
    return typed and any(seen)


def _session(found: Used, options: Options, chosen: Template | None) -> Session:
    """The conversation at its beginning, after a note about it. Raises the root's error about the template."""
    model = found.client.model()
    if chosen is not None:
        template: Template | None = replace(chosen, text=chosen.text or model.template)
    else:
        template = template_of(model) if not options.plain else None
    if template is None and options.system:
        raise UsageError(
            f"--system needs a chat template, and {model.name} has none in use; --template chooses one, such as "
            f"{' or '.join(BUILTIN)}"
        )
    session = Session(found, model, template, options.settings)
    session.conversation.system = options.system
    session.check()
    if template is None and not options.plain:
        note(
            f"{model.name} has no chat template: it continues texts and does not converse, so it continues each "
            "message (--template chooses a template)."
        )
    elif template is not None and template.is_guess:
        note(
            f"{model.name} has no chat template of its own, so it may not have learned to converse; the "
            f"{template.source} one fits its special tokens (--plain continues texts instead)."
        )
    if not options.json and has_terminal():
        begin = "Type the beginning of a text, such as: Once upon a time\n" if template is None else ""
        note(f"{begin}/help lists commands, Ctrl-D leaves.")
    return session
