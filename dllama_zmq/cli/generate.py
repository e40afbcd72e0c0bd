"""`dllama-zmq generate`: stream the answer to stdout, figures to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dllama_zmq.bus.client_messages import Done, Piece, Prefill, Queued, Started
from dllama_zmq.cli.cluster import Overrides, bring_up_told
from dllama_zmq.cli.show import note
from dllama_zmq.cli.stats import Stats
from dllama_zmq.client import Client, Computing
from dllama_zmq.cluster import load_cluster
from dllama_zmq.errors import RequestError
from dllama_zmq.launch.lifecycle import connect, is_running, take_down
from dllama_zmq.root.sampler import Sampling

_SAY_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """The flags of `generate`."""

    steps: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stats: bool
    json: bool
    echo: bool

    def max_tokens(self) -> int | None:
        """-1 is llama.cpp's word for no limit."""
        return None if self.steps == -1 else self.steps

    def given_seed(self) -> int | None:
        """-1 is llama.cpp's word for any."""
        return None if self.seed == -1 else self.seed

    def check(self) -> None:
        """Raise RequestError where the root would, before a cluster is brought up for nothing."""
        if self.steps < 1 and self.steps != -1:
            raise RequestError(f"--steps is {self.steps}; expected 1 or more, or -1 for no limit")
        Sampling(self.temperature, self.top_p, self.top_k, self.given_seed() or 0).check()


def run(prompt: str, path: Path, options: Options, overrides: Overrides) -> None:
    """Answer `prompt` with the cluster of `path`, brought up for this call where it is not running."""
    options.check()
    with _client(path, overrides) as client:
        _answer(client, prompt, options)


@contextmanager
def _client(path: Path, overrides: Overrides) -> Iterator[Client]:
    file = load_cluster(path)
    name = file.cluster.name
    if is_running(name):
        if overrides:
            note(f"{name} is running already: {' '.join(overrides.flags())} has no effect on it")
        with connect(name) as client:
            yield client
        return
    note(f"{name} is not running: bringing up {path} for this call (`dllama-zmq up` keeps it)")
    bring_up_told(overrides.apply(file), overrides)
    try:
        with connect(name) as client:
            yield client
    finally:
        _take_down(name, file.cluster.limits.stop_s)


def _take_down(name: str, stop_s: float) -> None:
    """End what this call brought up, unless others have come to use it."""
    with connect(name) as client:
        status = client.status()
    if status.active or status.queued:
        note(f"{name} stays up, others are using it: `dllama-zmq down` stops it")
        return
    take_down(name, stop_s)


def _answer(client: Client, prompt: str, options: Options) -> None:
    stats = Stats(per_token=options.stats)
    text: list[str] = []
    answers = client.generate(
        prompt,
        options.max_tokens(),
        options.temperature,
        options.top_p,
        options.top_k,
        options.given_seed(),
    )
    reason, said, seed, prompt_tokens, tokens = "", "", 0, 0, []
    next_word = time.monotonic() + _SAY_EVERY_S
    try:
        for answer in answers:
            if isinstance(answer, Queued):
                waiting = f"waiting: {answer.note or f'{answer.ahead} before this one'}"
                if waiting != said:
                    note(waiting)
                said = waiting
            elif isinstance(answer, Started):
                seed, prompt_tokens = answer.seed, answer.prompt_tokens
                if options.echo and not options.json:
                    _write(prompt)
            elif isinstance(answer, Computing):
                if not text:  # later, a line on a terminal would stand in the middle of the text
                    note(f"computing: {answer.silent_s:.0f} s in this step")
            elif isinstance(answer, Prefill):
                stats.prompt(answer)
                if answer.done < answer.total and time.monotonic() > next_word:
                    note(f"prompt: {answer.done} of {answer.total} tokens")
                    next_word = time.monotonic() + _SAY_EVERY_S
            elif isinstance(answer, Piece | Done):
                text.append(answer.text)
                if not options.json:
                    _write(answer.text)
                if isinstance(answer, Piece):
                    tokens.append(answer.token)
                    stats.token(answer)
                else:
                    reason = answer.reason
    finally:
        answers.close()  # tells the root to stop where we stop early
        if prompt_tokens and not options.json:
            _write("\n")
    if options.stats:
        stats.print_averages()
    if options.json:
        report = {
            "prompt": prompt,
            "text": "".join(text),
            "tokens": tokens,
            "prompt_tokens": prompt_tokens,
            "finish_reason": reason,
            "seed": seed,
            "stats": stats.averages(),
        }
        _write(json.dumps(report, ensure_ascii=False) + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
