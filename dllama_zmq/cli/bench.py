"""`dllama-zmq bench`: the table goes to stdout, progress to stderr."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from dllama_zmq.bench.cases import cases
from dllama_zmq.bench.nodes import Nodes
from dllama_zmq.bench.output import Json, Markdown
from dllama_zmq.bench.run import BenchSettings, RandomModel, run_bench
from dllama_zmq.cli.show import note
from dllama_zmq.cluster import DEMO
from dllama_zmq.errors import UsageError
from dllama_zmq.kernels import KernelChoice
from dllama_zmq.shapes import SHAPES
from dllama_zmq.spec import FloatType, Sync

MOST_TOKENS = 1 << 24  # as many positions as any model may have
MOST_NODES = 1 << 20  # the plan says which numbers can be
MOST_THREADS = 1024


@dataclass(frozen=True, slots=True)
class Options:
    """The flags of `bench`; lists as they were written, numbers of a shape that were not given left out."""

    model: str | None
    shape: str | None
    weights: str | None
    overrides: Mapping[str, int]
    n_prompt: str
    n_gen: str
    depth: str
    repetitions: int
    nodes: str
    threads: str
    sync: Sync
    kernels: str
    output: Literal["md", "json"]
    profile: bool = False

    def settings(self, command: str) -> BenchSettings:
        """What they ask for. Raises UsageError where they do not fit together."""
        found = cases(
            counts(self.n_prompt, "--n-prompt", 0, MOST_TOKENS),
            counts(self.n_gen, "--n-gen", 0, MOST_TOKENS),
            counts(self.depth, "--depth", 0, MOST_TOKENS),
        )
        if not found:
            raise UsageError("--n-prompt and --n-gen are both 0: nothing to measure")
        nodes = counts(self.nodes, "--nodes", 1, MOST_NODES)
        threads = counts(self.threads, "--threads", 1, MOST_THREADS)
        return BenchSettings(
            model=self._model(),
            cases=found,
            nodes=[Nodes(n_nodes, n_threads) for n_nodes in nodes for n_threads in threads],
            repetitions=self.repetitions,
            sync=self.sync,
            kernels=kernel_choice(self.kernels),
            command=command,
            profile=self.profile,
        )

    def _model(self) -> str | RandomModel:
        if self.shape is None:
            given = [f"--{name}" for name in self.overrides] + (["--weights"] if self.weights else [])
            if given:
                raise UsageError(f"{given[0]} is for random weights; add --shape NAME, one of {', '.join(SHAPES)}")
            return self.model or DEMO
        if self.model is not None:
            raise UsageError("--model and --shape both say what to measure; give one of them")
        return RandomModel(self.shape, FloatType[(self.weights or "q40").upper()], self.overrides)


def run(options: Options) -> None:
    """Measure what the flags ask for and print it."""
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger().setLevel(logging.WARNING)  # what the root logs of its nodes is told as progress here
    settings = options.settings(shlex.join(["dllama-zmq", *sys.argv[1:]]))
    output = (Json if options.output == "json" else Markdown)(_write)
    run_bench(settings, output, note)


def counts(text: str, flag: str, least: int, most: int) -> list[int]:
    """The whole numbers of a list such as `128,512`, each once. Raises UsageError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 and least <= int(word) <= most for word in words):
        raise UsageError(f"{flag} {text!r}: expected numbers of {least} to {most} with commas between, such as 1,2")
    return list(dict.fromkeys(map(int, words)))


def kernel_choice(text: str) -> KernelChoice:
    """The back end called `text`. Raises UsageError, with all names, where there is none."""
    choices: tuple[KernelChoice, ...] = get_args(KernelChoice)
    for choice in choices:
        if choice == text:
            return choice
    raise UsageError(f"--kernels {text!r}: no back end of that name; there are {', '.join(choices)}")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
