"""`dllama-zmq generate`: stream the answer to stdout, figures and whatever keeps the reader waiting to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dllama_zmq.bus.client_messages import Done, Piece, Prefill, Queued, Started
from dllama_zmq.cli import flags
from dllama_zmq.cli.cluster import listening
from dllama_zmq.cli.overrides import Overrides
from dllama_zmq.cli.show import note
from dllama_zmq.cli.stats import Stats
from dllama_zmq.client import Answer, Client, Computing
from dllama_zmq.cluster import ClusterFile
from dllama_zmq.errors import UsageError
from dllama_zmq.launch.lifecycle import for_one_call
from dllama_zmq.launch.registry import address_elsewhere, cluster_here
from dllama_zmq.root.sampler import Sampling

_SAY_EVERY_S = 2.0


def run(prompt: str, path: Path, options: flags.Answer, overrides: Overrides) -> None:
    """Answer `prompt` with the cluster of `path`, brought up for this call where it is not running."""
    _check(options)
    file = overrides.apply(cluster_here(path))
    with _client(file, overrides) as (client, model):
        answers = client.generate(
            prompt,
            options.max_tokens(),
            options.temperature,
            options.top_p,
            options.top_k,
            options.given_seed(),
        )
        printer = _Printer(prompt, options, model)
        try:
            for answer in answers:
                printer.take(answer)
        finally:
            answers.close()  # tells the root to stop where we stop early
            printer.end()
        printer.report()


def _check(options: flags.Answer) -> None:
    """Raise where the root would, before a cluster is brought up for nothing."""
    if options.steps == 0:
        raise UsageError("--steps is 0; expected 1 or more, or -1 for no limit")
    Sampling(options.temperature, options.top_p, options.top_k, options.given_seed() or 0).check()


@contextmanager
def _client(file: ClusterFile, overrides: Overrides) -> Iterator[tuple[Client, str]]:
    """A client of the cluster, brought up for this call where it is not running; and the path of its model."""
    if (address := address_elsewhere(file.cluster)) is not None:
        with Client(address) as client:
            yield client, client.status().model
        return

    def on_shared() -> None:
        note(f"{file.cluster.name} stays up until the others that use it are done")

    with ExitStack() as telling:
        listener = telling.enter_context(listening(file, for_this_call=True))
        with for_one_call(file, listener, on_shared) as running:
            telling.close()
            overrides.check_running(running, file)
            with Client(running.clients) as client:
                yield client, running.model


class _Printer:
    """Shows one answer as it comes."""

    def __init__(self, prompt: str, options: flags.Answer, model: str) -> None:
        self._prompt = prompt
        self._model = model
        self._options = options
        self._stats = Stats(per_token=options.stats)
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._started: Started | None = None
        self._reason = ""
        # On one terminal the text would stand between the figures, which show each token: then it comes at the end.
        self._at_end = options.stats and sys.stdout.isatty() and sys.stderr.isatty()
        self._begun = time.monotonic()
        self._next_word = self._begun + _SAY_EVERY_S
        self._waiting_for = ""

    def take(self, answer: Answer) -> None:
        """Show what the root says now."""
        if isinstance(answer, Queued):
            self._wait(answer.note or f"{answer.ahead} before this one")
        elif isinstance(answer, Started):
            self._started = answer
            if self._options.echo:
                self._show(self._prompt)
        elif isinstance(answer, Computing):
            if not self._text:  # later, a line on a terminal would stand in the middle of the text
                note(f"computing: {answer.silent_s:.0f} s in this step")
        elif isinstance(answer, Prefill):
            self._stats.prompt(answer)
            if answer.done < answer.total and time.monotonic() > self._next_word:
                note(f"prompt: {answer.done} of {answer.total} tokens")
                self._next_word = time.monotonic() + _SAY_EVERY_S
        else:
            self._text.append(answer.text)
            self._show(answer.text)
            if isinstance(answer, Piece):
                self._tokens.append(answer.token)
                self._stats.token(answer)
            elif isinstance(answer, Done):
                self._reason = answer.reason

    def end(self) -> None:
        """The text is over, by itself or not."""
        if self._started is not None and not self._options.json:
            echoed = self._prompt if self._options.echo else ""
            _write("".join([echoed, *self._text, "\n"]) if self._at_end else "\n")

    def report(self) -> None:
        """What is told after a whole answer."""
        if self._options.stats:
            self._stats.print_averages()
        if self._options.json and self._started is not None:
            report = {
                "model": self._model,
                "prompt": self._prompt,
                "text": "".join(self._text),
                "tokens": self._tokens,
                "prompt_tokens": self._started.prompt_tokens,
                "finish_reason": self._reason,
                "seed": self._started.seed,
                "stats": self._stats.averages(),
            }
            _write(json.dumps(report, ensure_ascii=False) + "\n")

    def _show(self, text: str) -> None:
        if not self._options.json and not self._at_end:
            _write(text)

    def _wait(self, reason: str) -> None:
        now = time.monotonic()
        if reason != self._waiting_for or now > self._next_word:
            note(f"waiting for {now - self._begun:.0f} s: {reason}")
            self._waiting_for, self._next_word = reason, now + _SAY_EVERY_S


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
