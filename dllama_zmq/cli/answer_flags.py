"""Flags for a prompt and its answer: where the prompt is, how tokens are sampled, the form of the answer."""

from __future__ import annotations

import os
import re
import select
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Struct
from typer import Argument, Option

from dllama_zmq.cli.flag_kinds import MAX, choice, number, real
from dllama_zmq.cli.flags import Json
from dllama_zmq.cli.notes import note
from dllama_zmq.errors import RequestError, UsageError
from dllama_zmq.grammar import Grammar
from dllama_zmq.sampling import Sampling
from dllama_zmq.stop_strings import check_stop

Asked: TypeAlias = tuple[int | None, Sampling, list[str], Grammar | None]
"""The limit of tokens, the sampling parameters, the stop strings and the grammar of an answer."""

_SAY_AFTER_S = 1.5
_STDIN = "-"
_SAMPLING = "Sampling"
_BY_NAME = [name for name in Sampling.__struct_fields__ if name not in ("seed", "logit_bias", "logprobs")]
"""The sampling parameters that flags of their names give as they are."""


def _real(*names: str, help: str, metavar: str = "X") -> Any:
    """A flag that takes a number."""
    return Option(*names, metavar=metavar, parser=real, help=help)


class PromptFlags(Struct, frozen=True, kw_only=True):
    """The text to continue, or its place."""

    prompt: Annotated[
        str | None, Argument(metavar="PROMPT", help="The text to continue; - or none: what is piped in")
    ] = None
    prompt_option: Annotated[str | None, Option("-p", "--prompt", metavar="TEXT", help="The same, as a flag")] = None
    prompt_file: Annotated[Path | None, Option("-f", "--file", metavar="FILE", help="A file with the prompt")] = None

    def is_missing(self) -> bool:
        """Whether none of these flags is given."""
        return self.prompt is None and self.prompt_option is None and self.prompt_file is None

    def read(self, example: str) -> str:
        """The text to continue. A line end at the end of a file or of stdin is dropped, as in llama.cpp.

        Without a flag, stdin is read unless it is a terminal. Raises UsageError for no prompt, several, or one that is
        not UTF-8; RequestError for a file that cannot be read.
        """
        given = [one for one in (self.prompt, self.prompt_option, self.prompt_file) if one is not None]
        if len(given) > 1:
            raise UsageError("the prompt is given twice; give it once: as an argument, with --prompt or with --file")
        text = given[0] if given else None
        try:
            if isinstance(text, Path):
                return _without_line_end(_prompt_of(text))
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


class Limits(Struct, frozen=True, kw_only=True):
    """Where an answer ends."""

    steps: Annotated[
        int | None,
        number(
            "-n",
            "--steps",
            "--n-predict",
            "--predict",
            "--max-tokens",
            least=-1,
            words="a whole number of tokens, or -1 for no limit",
            help="Most tokens of an answer (256, in a chat no limit); -1: no limit",
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        Option(
            "--stop", metavar="TEXT", show_default=False, help="End the answer before this text; may be given again"
        ),
    ] = None

    def max_tokens(self, usual: int | None = None) -> int | None:
        """The limit, or `usual`. -1 means no limit, as in llama.cpp. Raises UsageError for 0."""
        if self.steps == 0:
            raise UsageError("--steps is 0; expected 1 or more, or -1 for no limit")
        return usual if self.steps is None else None if self.steps == -1 else self.steps

    def stop_strings(self) -> list[str]:
        """The texts before which the answer ends. Raises UsageError."""
        stop = self.stop or []
        try:
            check_stop(stop)
        except RequestError as error:
            raise UsageError(f"--stop: {error}") from error
        return stop


class Sampled(Limits, frozen=True, kw_only=True):
    """How the tokens of an answer are chosen, and where it ends."""

    panel = _SAMPLING
    temperature: Annotated[float, _real("--temperature", "--temp", metavar="T", help="0 is greedy")] = 0.8
    top_p: Annotated[
        float, _real("--top-p", "--topp", metavar="P", help="Sample from the fewest tokens that hold P; 1: off")
    ] = 0.9
    top_k: Annotated[
        int,
        number(
            "--top-k", "--topk", least=-MAX, words="a whole number", help="Sample from the K likeliest tokens; 0: off"
        ),
    ] = 0
    seed: Annotated[int, number("-s", "--seed", least=-1, help="Equal seeds give equal answers; -1: a new one")] = -1
    min_p: Annotated[
        float, _real("--min-p", help="Leave out tokens less likely than X times the likeliest; 0: off")
    ] = 0.0
    typical_p: Annotated[
        float, _real("--typical", "--typical-p", help="Sample from the most typical tokens that hold X; 1: off")
    ] = 1.0
    repetition_penalty: Annotated[
        float,
        _real(
            "--repeat-penalty",
            "--repetition-penalty",
            help="Divide the logits of tokens of the prompt and the answer by X; 1: off",
        ),
    ] = 1.0
    presence_penalty: Annotated[
        float, _real("--presence-penalty", help="Subtract X from the logits of tokens of the answer; 0: off")
    ] = 0.0
    frequency_penalty: Annotated[
        float, _real("--frequency-penalty", help="The same for each time that a token stands there; 0: off")
    ] = 0.0
    logit_bias: Annotated[
        list[str] | None,
        Option(
            "--logit-bias",
            metavar="ID+X",
            show_default=False,
            help="Add X to the logit of a token, as 42-100; may be given again",
        ),
    ] = None

    def sampling(self, logprobs: int | None = None) -> Sampling:
        """The sampling parameters. Raises UsageError. A seed of -1 means a random one, as in llama.cpp."""
        as_given: dict[str, Any] = {name: getattr(self, name) for name in _BY_NAME}
        seed, biases = None if self.seed == -1 else self.seed, dict(map(_bias, self.logit_bias or ()))
        sampling = Sampling(**as_given, seed=seed, logit_bias=biases, logprobs=logprobs)
        try:
            sampling.check()
        except RequestError as error:
            raise UsageError(str(error)) from error
        return sampling


class Formed(Sampled, frozen=True, kw_only=True):
    """The form of an answer, named as in llama.cpp; how its tokens are chosen, and where it ends."""

    panel = "Form of the answer"
    json_schema: Annotated[
        str | None, Option("-j", "--json-schema", metavar="SCHEMA", help="JSON that a schema describes")
    ] = None
    json_schema_file: Annotated[
        Path | None, Option("-jf", "--json-schema-file", metavar="FILE", help="The same, from a file")
    ] = None
    grammar: Annotated[str | None, Option("--grammar", metavar="RULES", help="What these rules allow (GBNF)")] = None
    grammar_file: Annotated[
        Path | None, Option("--grammar-file", metavar="FILE", help="The same, from a file; FILE.lark: Lark")
    ] = None

    def form(self) -> Grammar | None:
        """The grammar of the answer; None if none is given.

        Rules are in llama.cpp's notation, those of a .lark file in Lark's. Raises UsageError for more than one, or one
        that is empty or too long; RequestError for a file that cannot be read.
        """
        all_four = (self.json_schema, self.json_schema_file, self.grammar, self.grammar_file)
        given = [one for one in all_four if one is not None]
        if not given:
            return None
        if len(given) > 1:
            raise UsageError("the answer can have only one form; give one of --json-schema, --grammar and their files")
        if self.json_schema is not None or self.json_schema_file is not None:
            text = self.json_schema or _content("--json-schema-file", self.json_schema_file)
            grammar = Grammar("json_schema", text)
        else:
            is_lark = self.grammar_file is not None and self.grammar_file.suffix == ".lark"
            text = self.grammar or _content("--grammar-file", self.grammar_file)
            grammar = Grammar("lark" if is_lark else "gbnf", text)
        try:
            grammar.check()
        except RequestError as error:
            raise UsageError(str(error)) from error
        return grammar

    def has_form(self) -> bool:
        """Whether a grammar is given."""
        return any((self.json_schema, self.json_schema_file, self.grammar, self.grammar_file))


class Answer(Formed, frozen=True, kw_only=True):
    """An answer, and how it is shown."""

    logprobs: Annotated[
        int | None,
        number(
            "--logprobs",
            least=0,
            help="With --json: the log-probabilities of each token and of the N likeliest",
            rich_help_panel=_SAMPLING,
        ),
    ] = None
    stats: Annotated[
        str | None,
        choice("--stats", of=Literal["answer", "tokens"], help="Tell what a token took; =tokens: each of them too"),
    ] = None
    json: Json = False
    echo: Annotated[
        bool, Option("--echo/--no-echo", " /--no-display-prompt", help="Print the prompt before its continuation")
    ] = True

    def checked(self) -> Asked:
        """What the answer must be, before a cluster is brought up for it.

        Raises UsageError, also for what the root would refuse; RequestError for a file that cannot be read.
        """
        if self.logprobs is not None and not self.json:
            raise UsageError("--logprobs needs --json: plain text has no place for them")
        return self.max_tokens(256), self.sampling(self.logprobs), self.stop_strings(), self.form()


def _content(flag: str, path: Path | None) -> str:
    if path is None:  # the text of the flag is empty
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{flag} {path}: it cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise RequestError(f"{flag} {path}: it is not UTF-8 text") from None


def _bias(text: str) -> tuple[int, float]:
    """Parse llama.cpp's ID+BIAS or ID-BIAS."""
    found = re.fullmatch(r"(\d{1,9})([+-]\d+(?:\.\d+)?)", text)
    if found is None:
        raise UsageError(f"--logit-bias is {text!r}; expected a token id and the bias of its logit, such as 42-100")
    return int(found[1]), float(found[2])


def _prompt_of(path: Path) -> bytes:
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
