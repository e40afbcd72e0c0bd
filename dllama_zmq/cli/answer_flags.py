"""Flags for a prompt and its answer: where the prompt is, how tokens are sampled, the form of the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from typer import Argument, Option

from dllama_zmq.cli.flag_kinds import MAX, choice, number, real
from dllama_zmq.cli.flags import Json
from dllama_zmq.cli.form import grammar_of
from dllama_zmq.errors import RequestError, UsageError
from dllama_zmq.grammar import Grammar
from dllama_zmq.sampling import Sampling
from dllama_zmq.stop_strings import check_stop

_SAMPLING = "Sampling"
_FORM = "Form of the answer"


def _real(*names: str, help: str) -> Any:
    """A flag of sampling that takes a number."""
    return Option(*names, metavar="X", parser=real, help=help, rich_help_panel=_SAMPLING)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFlags:
    """The text to continue, or its place."""

    prompt: Annotated[
        str | None, Argument(metavar="PROMPT", help="The text to continue; - or none: what is piped in")
    ] = None
    prompt_option: Annotated[str | None, Option("-p", "--prompt", metavar="TEXT", help="The same, as a flag")] = None
    prompt_file: Annotated[Path | None, Option("-f", "--file", metavar="FILE", help="A file with the prompt")] = None

    def is_missing(self) -> bool:
        """Whether none of these flags is given."""
        return self.prompt is None and self.prompt_option is None and self.prompt_file is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """How the answer is sampled, and its limits."""

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
    temperature: Annotated[
        float,
        Option("--temperature", "--temp", metavar="T", parser=real, help="0 is greedy", rich_help_panel=_SAMPLING),
    ] = 0.8
    top_p: Annotated[
        float,
        Option(
            "--top-p",
            "--topp",
            metavar="P",
            parser=real,
            help="Sample from the fewest tokens that hold P; 1: off",
            rich_help_panel=_SAMPLING,
        ),
    ] = 0.9
    top_k: Annotated[
        int,
        number(
            "--top-k",
            "--topk",
            least=-MAX,
            words="a whole number",
            help="Sample from the K likeliest tokens; 0: off",
            rich_help_panel=_SAMPLING,
        ),
    ] = 0
    seed: Annotated[
        int,
        number(
            "-s", "--seed", least=-1, help="Equal seeds give equal answers; -1: a new one", rich_help_panel=_SAMPLING
        ),
    ] = -1
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
            rich_help_panel=_SAMPLING,
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

    def sampling(self) -> Sampling:
        """The sampling parameters. Raises UsageError. A seed of -1 means a random one, as in llama.cpp."""
        biases = dict(_bias(text) for text in self.logit_bias or ())
        return _checked(
            Sampling(
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                seed=None if self.seed == -1 else self.seed,
                min_p=self.min_p,
                typical_p=self.typical_p,
                repetition_penalty=self.repetition_penalty,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                logit_bias=biases,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Sampled):
    """How the answer is sampled, its form, and how it is shown."""

    logprobs: Annotated[
        int | None,
        number(
            "--logprobs",
            least=0,
            help="With --json: the log-probabilities of each token and of the N likeliest",
            rich_help_panel=_SAMPLING,
        ),
    ] = None
    json_schema: Annotated[
        str | None,
        Option(
            "-j",
            "--json-schema",
            metavar="SCHEMA",
            help="JSON that a schema describes",
            rich_help_panel=_FORM,
        ),
    ] = None
    json_schema_file: Annotated[
        Path | None,
        Option("-jf", "--json-schema-file", metavar="FILE", help="The same, from a file", rich_help_panel=_FORM),
    ] = None
    grammar: Annotated[
        str | None,
        Option("--grammar", metavar="RULES", help="What these rules allow (GBNF)", rich_help_panel=_FORM),
    ] = None
    grammar_file: Annotated[
        Path | None,
        Option("--grammar-file", metavar="FILE", help="The same, from a file; FILE.lark: Lark", rich_help_panel=_FORM),
    ] = None
    stats: Annotated[
        str | None,
        choice("--stats", of=Literal["answer", "tokens"], help="Tell what a token took; =tokens: each of them too"),
    ] = None
    json: Json = False
    echo: Annotated[
        bool, Option("--echo/--no-echo", " /--no-display-prompt", help="Print the prompt before its continuation")
    ] = True

    def max_tokens(self, usual: int | None = 256) -> int | None:
        """The limit. Raises UsageError for 0."""
        return Sampled.max_tokens(self, usual)

    def sampling(self) -> Sampling:
        """The sampling parameters. Raises UsageError."""
        if self.logprobs is not None and not self.json:
            raise UsageError("--logprobs needs --json: plain text has no place for them")
        return _checked(msgspec.structs.replace(Sampled.sampling(self), logprobs=self.logprobs))

    def form(self) -> Grammar | None:
        """The grammar of the answer; reads its file. Raises as `grammar_of` does."""
        return grammar_of(self.json_schema, self.json_schema_file, self.grammar, self.grammar_file)

    def has_form(self) -> bool:
        """Whether a grammar is given."""
        return any((self.json_schema, self.json_schema_file, self.grammar, self.grammar_file))


def _checked(sampling: Sampling) -> Sampling:
    try:
        sampling.check()
    except RequestError as error:
        raise UsageError(str(error)) from error
    return sampling


def _bias(text: str) -> tuple[int, float]:
    """Parse llama.cpp's ID+BIAS or ID-BIAS."""
    found = re.fullmatch(r"(\d{1,9})([+-]\d+(?:\.\d+)?)", text)
    if found is None:
        raise UsageError(f"--logit-bias is {text!r}; expected a token id and the bias of its logit, such as 42-100")
    return int(found[1]), float(found[2])
