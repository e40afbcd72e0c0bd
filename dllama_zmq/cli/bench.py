"""`dllama-zmq bench`: the table goes to stdout, progress to stderr."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Mapping

from dllama_zmq.bench.cases import cases
from dllama_zmq.bench.nodes import Nodes
from dllama_zmq.bench.output import Json, Markdown, RunningJson, RunningMarkdown
from dllama_zmq.bench.run import BenchSettings, RandomModel, run_bench
from dllama_zmq.bench.running import measure_running
from dllama_zmq.cli.chosen import client_of
from dllama_zmq.cli.measure_flags import Bench
from dllama_zmq.cli.progress import Display
from dllama_zmq.errors import UsageError
from dllama_zmq.shapes import SHAPES
from dllama_zmq.sources import DEMO
from dllama_zmq.spec import FloatType

MOST_TOKENS = 1 << 24  # as many positions as any model may have
MOST_NODES = 1 << 20  # the plan says which numbers can be
MOST_THREADS = 1024
_NOTHING = "--n-prompt and --n-gen are both 0: nothing to measure"


def run(options: Bench, numbers: Mapping[str, int]) -> None:
    """Measure what the flags ask for and print it. numbers: of a shape, those that are given anew."""
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger().setLevel(logging.WARNING)  # what the root logs of its nodes is told as progress here
    running = options.cluster is not None or options.connect is not None
    settings = None if running else settings_of(options, numbers, shlex.join(["dllama-zmq", *sys.argv[1:]]))
    with Display(per_s=1.0) as display:  # seldom, for it takes time from what is measured

        def write(text: str) -> None:
            display.rest()
            sys.stdout.write(text)
            sys.stdout.flush()

        if settings is None:
            _run_on_cluster(options, numbers, write, display)
            return
        run_bench(settings, (Json if options.output == "json" else Markdown)(write), display)


def _run_on_cluster(options: Bench, numbers: Mapping[str, int], write: Callable[[str], None], display: Display) -> None:
    """Measure a running cluster, on the computers that it has."""
    others = {
        "--model": options.model, "--shape": options.shape, "--weights": options.weights, "--profile": options.profile,
        "--depth": options.depth != "0", "--nodes": options.nodes != "1", "--threads": options.threads != "1",
        "--kernels": options.kernels != "auto", "--sync": options.sync != "f32", "--layers and its like": numbers,
    }  # fmt: skip
    if given := [flag for flag, value in others.items() if value]:
        raise UsageError(f"{given[0]} is for nodes that bench starts; a running cluster is measured as it is")
    prompts, generated = _lengths(options)
    with client_of(options.cluster, options.connect) as client:
        status = client.status()
        output = (RunningJson if options.output == "json" else RunningMarkdown)(write, status)
        for row in measure_running(client, prompts, generated, options.repetitions, display):
            output.row(row)
        output.end()


def settings_of(options: Bench, numbers: Mapping[str, int], command: str) -> BenchSettings:
    """What the flags ask for. Raises UsageError where they do not fit together."""
    found = cases(*_lengths(options), counts(options.depth, "--depth", 0, MOST_TOKENS))
    nodes = counts(options.nodes, "--nodes", 1, MOST_NODES)
    threads = counts(options.threads, "--threads", 1, MOST_THREADS)
    return BenchSettings(
        model=_model(options, numbers),
        cases=found,
        nodes=[Nodes(n_nodes, n_threads) for n_nodes in nodes for n_threads in threads],
        repetitions=options.repetitions,
        sync=options.sync,
        kernels=options.kernels,
        command=command,
        profile=options.profile,
    )


def _lengths(options: Bench) -> tuple[list[int], list[int]]:
    """Of prompts and of answers, in tokens; 0 stands for none."""
    prompts = counts(options.n_prompt, "--n-prompt", 0, MOST_TOKENS)
    generated = counts(options.n_gen, "--n-gen", 0, MOST_TOKENS)
    if not any((*prompts, *generated)):
        raise UsageError("--n-prompt and --n-gen are both 0: nothing to measure")
    return prompts, generated


def _model(options: Bench, numbers: Mapping[str, int]) -> str | RandomModel:
    if options.shape is None:
        given = [f"--{name}" for name in numbers] + (["--weights"] if options.weights else [])
        if given:
            raise UsageError(f"{given[0]} is for random weights; add --shape NAME, one of {', '.join(SHAPES)}")
        return options.model or DEMO
    if options.model is not None:
        raise UsageError("--model and --shape both say what to measure; give one of them")
    return RandomModel(options.shape, FloatType[(options.weights or "q40").upper()], numbers)


def counts(text: str, flag: str, least: int, most: int) -> list[int]:
    """The whole numbers of a list such as `128,512`, each once. Raises UsageError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 and least <= int(word) <= most for word in words):
        raise UsageError(f"{flag} {text!r}: expected numbers of {least} to {most} with commas between, such as 1,2")
    return list(dict.fromkeys(map(int, words)))
