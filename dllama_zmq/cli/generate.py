"""`run` and `generate`: stream the answer to stdout; progress and statistics go to stderr."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated

from typer import Argument

from dllama_zmq.bus.client_messages import Done, Logprob, Piece, Prefill, Queued, Started
from dllama_zmq.cli import completion, flags
from dllama_zmq.cli.chosen import chosen_path, elsewhere, for_a_call, for_a_model
from dllama_zmq.cli.cluster import listening
from dllama_zmq.cli.exit_codes import as_json
from dllama_zmq.cli.flags import Overrides
from dllama_zmq.cli.notes import note
from dllama_zmq.cli.overrides import check_elsewhere, check_running, fetched
from dllama_zmq.cli.progress import Display
from dllama_zmq.cli.prompt import read_prompt
from dllama_zmq.cli.stats import Stats
from dllama_zmq.client import SILENCE_S, Answer, Client
from dllama_zmq.cluster import ClusterFile
from dllama_zmq.errors import UsageError
from dllama_zmq.launch.lifecycle import for_one_call
from dllama_zmq.launch.registry import address_elsewhere
from dllama_zmq.sources import absolute_model


@dataclass(frozen=True, slots=True)
class _Answering:
    """A client of the cluster that answers, the path of its model, and its number of nodes."""

    client: Client
    model: str
    n_nodes: int


def run(
    *,
    source: Annotated[str | None, Argument(metavar="MODEL", help=flags.MODEL, autocompletion=completion.models)] = None,
    prompt: flags.PromptFlags,
    overrides: flags.Overrides,
    answer: flags.Answer,
    cluster: flags.Cluster = None,
) -> None:
    """Continue a text with a model, in any folder. Needs no file: one node on this computer, or --nodes N.

    A cluster of this folder that runs this very model is used; a model of the hub (hf:) is fetched first.

    Examples:
        dllama-zmq run story.gguf "Once upon a time"
        dllama-zmq run hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M "One day"
        echo 'One day, Lily' | dllama-zmq run demo -n 60 --temp 0
    """
    if overrides.model is not None or overrides.hub_model is not None:  # then the first argument is the prompt
        if source is not None and prompt.prompt is not None:
            raise UsageError("two models are given, as an argument and as a flag; give one")
        prompt = prompt if source is None else replace(prompt, prompt=source)
        source = overrides.model or f"hf:{overrides.hub_model}"
        overrides = replace(overrides, model=None, hub_model=None)
    if source is not None:
        absolute_model(source)  # raises before a prompt is read from stdin
    text = read_prompt(prompt, f'dllama-zmq run {source or "MODEL"} "Once upon a time"')
    _check(answer)
    if source is not None and cluster is None:
        overrides = fetched(replace(overrides, model=source), fetch=True)
        file = for_a_model(source, overrides)
    else:
        overrides = fetched(replace(overrides, model=source))
        file = for_a_call(chosen_path(cluster), overrides)
    _answer(text, _client(file, overrides), answer)


def generate(
    *,
    prompt: flags.PromptFlags,
    overrides: flags.Overrides,
    answer: flags.Answer,
    cluster: flags.Cluster = None,
    connect: flags.Connect = None,
) -> None:
    """Continue a text with this folder's cluster. With none running, brings one up for this call.

    Without a cluster.yaml, -m MODEL is enough: one node on this computer, or --nodes N.

    Examples:
        dllama-zmq generate "Once upon a time"
        dllama-zmq generate -m story.gguf -n 60 --temp 0 "One day"
        dllama-zmq generate -f prompt.txt --json
    """
    text = read_prompt(prompt, 'dllama-zmq generate "Once upon a time"')
    address = None if connect is None else elsewhere(connect, cluster)
    _check(answer)
    if address is not None:
        _answer(text, _client_at(address, overrides), answer)
    else:
        path, overrides = chosen_path(cluster), fetched(overrides)
        _answer(text, _client(for_a_call(path, overrides), overrides), answer)


def _answer(prompt: str, source: AbstractContextManager[_Answering], options: flags.Answer) -> None:
    with source as cluster, Display() as display:
        display.activity("asking the root")
        answers = cluster.client.generate(prompt, options.max_tokens(), options.sampling(), stop=options.stop_strings())
        printer = _Printer(prompt, options, cluster.model, display)
        try:
            for answer in answers:
                printer.take(answer)
        finally:
            answers.close()  # tells the root to stop if we stop early
            printer.end()
        printer.report(cluster.n_nodes)


def _check(options: flags.Answer) -> None:
    """Raise UsageError for options that the root would refuse, before a cluster is brought up."""
    if options.steps == 0:
        raise UsageError("--steps is 0; expected 1 or more, or -1 for no limit")
    options.sampling()
    options.stop_strings()


@contextmanager
def _client(file: ClusterFile, overrides: Overrides) -> Iterator[_Answering]:
    """The cluster; it is brought up for this call if it is not running."""
    if (address := address_elsewhere(file.cluster)) is not None:
        with _client_at(address, overrides) as cluster:
            yield cluster
        return

    def on_shared() -> None:
        note(f"{file.cluster.name} stays up until the others that use it are done")

    with ExitStack() as telling:
        listener = telling.enter_context(listening(file, for_this_call=True))
        with for_one_call(file, listener, on_shared) as running:
            telling.close()
            check_running(overrides, running, file)
            with Client(running.clients) as client:
                yield _Answering(client, running.model, running.cluster.n_nodes)


@contextmanager
def _client_at(address: str, overrides: Overrides) -> Iterator[_Answering]:
    """The cluster whose root has this address. It answers after its current step, which may take long."""
    with Client(address) as client:
        with Display() as display:
            display.activity(f"asking the root at {address}")
            status = client.status(SILENCE_S)
        check_elsewhere(overrides, address, status.model)
        yield _Answering(client, status.model, len(status.nodes))


class _Printer:
    """Prints one answer as it arrives, and progress on `display`."""

    def __init__(self, prompt: str, options: flags.Answer, model: str, display: Display) -> None:
        self._prompt = prompt
        self._model = model
        self._options = options
        self._display = display
        self._stats = Stats(per_token=options.stats == "tokens")
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[list[Logprob]] = []
        self._cached_tokens = 0
        self._started: Started | None = None
        self._reason = ""
        one_terminal = sys.stdout.isatty() and sys.stderr.isatty()
        # On one terminal the text would mix with the lines of each token, so it is printed at the end.
        self._streams = not options.json and not (options.stats == "tokens" and one_terminal)
        # Progress must not interrupt the text: a pipe may lead to the same terminal (`| tee`), and one file may take
        # both (`> log 2>&1`).
        self._tells_tokens = not self._streams or _is_file_of_its_own(sys.stdout.fileno(), sys.stderr.fileno())
        self._shown = False

    def take(self, answer: Answer) -> None:
        """Show one message of the root."""
        if isinstance(answer, Queued):
            self._display.activity(f"waiting: {answer.note or f'{answer.ahead} before this one'}")
        elif isinstance(answer, Started):
            self._started = answer
            self._display.activity("evaluating the prompt", 0, answer.prompt_tokens, "tokens")
        elif isinstance(answer, Prefill):
            self._cached_tokens = answer.cached_tokens
            self._stats.prompt(answer)
            self._display.activity("evaluating the prompt", answer.done, answer.total, "tokens")
        elif isinstance(answer, Piece):
            self._tokens.append(answer.token)
            if answer.logprobs:
                self._logprobs.append(answer.logprobs)
            self._stats.token(answer)
            self._show(answer.text)
            if self._tells_tokens:
                self._display.activity("generating", len(self._tokens), self._options.max_tokens() or 0, "tokens")
        elif isinstance(answer, Done):
            self._reason = answer.reason
            self._show(answer.text)

    def end(self) -> None:
        """The text has ended or was interrupted."""
        self._display.rest()
        if self._started is None or self._options.json:
            return
        if not self._streams:
            _write("".join([self._echoed(), *self._text, "\n"]))
        elif self._shown:
            _write("\n")

    def report(self, n_nodes: int) -> None:
        """Print what follows a complete answer of `n_nodes`."""
        if self._options.stats:
            self._stats.print_table(n_nodes)
        elif sys.stderr.isatty():
            note(self._stats.sentence())
        if self._started is not None and self._reason == "length" and len(self._tokens) != self._options.max_tokens():
            n_prompt, n_answer = self._started.prompt_tokens, len(self._tokens)
            note(
                f"the answer ends here because the context is full: {n_prompt} tokens of the prompt and {n_answer} of "
                "the answer; -c makes room for more, up to the model's own context (`dllama-zmq inspect` shows it)"
            )
        if self._options.json and self._started is not None:
            report = {
                "model": self._model,
                "prompt": self._prompt,
                "text": "".join(self._text),
                "tokens": self._tokens,
                "prompt_tokens": self._started.prompt_tokens,
                "cached_tokens": self._cached_tokens,
                "finish_reason": self._reason,
                "seed": self._started.seed,
                "stats": self._stats.averages(),
            }
            if self._logprobs:
                report["logprobs"] = [_as_maps(*of_token) for of_token in self._logprobs]
            _write(as_json(report) + "\n")

    def _show(self, text: str) -> None:
        self._text.append(text)
        if not self._streams:
            return
        if not self._tells_tokens:
            self._display.rest()  # before the first word, which it would erase
        _write(text if self._shown else self._echoed() + text)
        self._shown = True

    def _echoed(self) -> str:
        return self._prompt if self._options.echo else ""


def _as_maps(chosen: Logprob, *likeliest: Logprob) -> dict[str, object]:
    """A token's log-probability with its text, and the same of the most likely ones."""
    own, *top = ({"token": one.token, "text": one.text, "logprob": one.logprob} for one in (chosen, *likeliest))
    return {**own, "top": top}


def _is_file_of_its_own(out: int, err: int) -> bool:
    """Whether the descriptor `out` writes to a regular file, and `err` not to the same one."""
    return stat.S_ISREG(os.fstat(out).st_mode) and not os.path.sameopenfile(out, err)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
