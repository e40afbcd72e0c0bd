"""`dllama-zmq bench`: the table on stdout, progress on stderr."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Struct
from msgspec.structs import asdict
from typer import Option

from dllama_zmq.bench.cases import BenchSettings, Nodes, RandomModel, cases
from dllama_zmq.bench.output import as_json, markdown, running_markdown
from dllama_zmq.bench.run import run_bench
from dllama_zmq.bench.running import measure_running
from dllama_zmq.cli import flags
from dllama_zmq.cli.chosen import client_of
from dllama_zmq.cli.flag_kinds import KernelChoice, choice, model_flag, number
from dllama_zmq.cli.flags import cluster_flag
from dllama_zmq.cli.notes import note
from dllama_zmq.cli.progress import Display
from dllama_zmq.cli.shape_flags import ShapeNumbers, shape_flag
from dllama_zmq.client import Client
from dllama_zmq.errors import UsageError
from dllama_zmq.shapes import SHAPES
from dllama_zmq.sources import DEMO
from dllama_zmq.spec import FloatType, Sync, Weights

MAX_TOKENS = 1 << 24  # positions of the longest context that a model may have
MAX_NODES = 1 << 20  # the plan says which numbers are possible
MAX_THREADS = 1024
MAX_SEQUENCES = 1024
_OF_CLUSTERS = ("cluster", "n_prompt", "n_gen", "repetitions", "output", "json")
"""Flags that a running cluster supports."""


class Options(Struct, frozen=True, kw_only=True):
    """What `bench` measures. Lists are as typed."""

    cluster: Annotated[Path | None, cluster_flag("A running cluster, as it is, instead of nodes here")] = None
    model: Annotated[str | None, model_flag("-m", "--model", help="A model; demo if not given")] = None
    shape: Annotated[str | None, shape_flag("Random weights of a published shape")] = None
    weights: Annotated[Weights | None, flags.weights_flag("Type of the random weights; q40 if not given")] = None
    n_prompt: Annotated[str, Option("-p", "--n-prompt", metavar="N,…", help="Prompt lengths in tokens; 0: none")] = (
        "128,512"
    )
    n_gen: Annotated[str, Option("-n", "--n-gen", metavar="N,…", help="Numbers of tokens to generate; 0: none")] = "32"
    depth: Annotated[
        str, Option("-d", "--depth", "--n-depth", metavar="N,…", help="Positions that the cache holds already")
    ] = "0"
    parallel: Annotated[
        str, Option("-np", "--parallel", metavar="N,…", help="Sequences together; beside them, a new prompt")
    ] = "1"
    repetitions: Annotated[
        int, number("-r", "--repetitions", most=1 << 20, help="Repetitions of each, after a warm-up")
    ] = 5
    nodes: Annotated[str, Option("--nodes", metavar="N,…", help="Numbers of nodes, all on this computer")] = "1"
    threads: Annotated[
        str, Option("-t", "--threads", "--nthreads", metavar="N,…", help="Compute threads of each node")
    ] = "1"
    kernels: Annotated[KernelChoice, flags.KERNELS] = "auto"
    sync: Annotated[Sync, flags.SYNC] = "f32"
    output: Annotated[
        Literal["md", "json"],
        choice("-o", "--output", of=Literal["md", "json"], help="A Markdown table, or its rows as JSON"),
    ] = "md"
    json: Annotated[bool, Option("--json", help="The same as -o json")] = False
    profile: Annotated[
        bool, Option("--profile", help="Show where the root's time for a token goes: kernels, waiting, Python")
    ] = False
    predict: Annotated[bool, Option("--predict", help="Predict each row too, as `dllama-zmq plan` does")] = False


def bench(*, options: Options, there: flags.There, shape: ShapeNumbers) -> None:
    """Measure how fast a model runs on this computer, beside what the computer could do; or a running cluster.

    Without --cluster or --connect it needs no cluster: it starts nodes of its own on this computer.

    Examples:
        dllama-zmq bench --shape tinyllama --nodes 1,2
        dllama-zmq bench -m story.gguf -p 128 -n 32 -t 1,2
        dllama-zmq bench --cluster home.yaml
    """
    numbers = shape.given()
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger().setLevel(logging.WARNING)  # the display shows what the root logs about its nodes
    notes: list[str] = []
    with Display(per_s=1.0) as display, ExitStack() as cleanup:  # drawing takes time from what is measured
        if options.cluster is not None or there.connect is not None:
            _check_for_cluster(options, numbers)
            client = cleanup.enter_context(client_of(there, options.cluster))
            texts = _of_cluster(options, client, display, notes)
        else:
            texts = _of_own_nodes(options, numbers, cleanup, display)
        for text in texts:
            display.rest()
            sys.stdout.write(text)
            sys.stdout.flush()
    for text in notes:  # after the table, which stays whole if both are on one terminal
        note(text)


def _of_own_nodes(options: Options, numbers: Mapping[str, int], cleanup: ExitStack, display: Display) -> Iterator[str]:
    """The table or JSON for nodes that are started for the measurement."""
    settings = settings_of(options, numbers, shlex.join(["dllama-zmq", *sys.argv[1:]]))
    batches = cleanup.enter_context(closing(run_bench(settings, display)))
    if options.output == "md" and not options.json:
        yield from markdown(batches)
    else:
        yield as_json(list(chain.from_iterable(batches)))


def _check_for_cluster(options: Options, numbers: Mapping[str, int]) -> None:
    """Raise UsageError for flags that a running cluster does not support."""
    defaults = asdict(Options())
    differ = [name for name, value in asdict(options).items() if value != defaults[name]]
    given = [name for name in differ if name not in _OF_CLUSTERS] + list(numbers)
    if given:
        raise UsageError(f"--{given[0]} is for nodes that bench starts; a running cluster is measured as it is")


def _of_cluster(options: Options, client: Client, display: Display, notes: list[str]) -> Iterator[str]:
    """The table or JSON of a running cluster on its own computers. `notes` gets what to say after it."""
    prompts, generated = _lengths(options)
    status = client.status()
    rows = measure_running(client, prompts, generated, options.repetitions, display, notes)
    if options.output == "md" and not options.json:
        yield from running_markdown(status, rows)
    else:
        about = {"cluster": status.name, "model": status.model, "sync": status.sync, "version": status.version}
        yield as_json({**about, "rows": list(rows)})


def settings_of(options: Options, numbers: Mapping[str, int], command: str) -> BenchSettings:
    """The settings that the flags ask for. Raises UsageError if they do not fit together."""
    depths = counts(options.depth, "--depth", 0, MAX_TOKENS)
    found = cases(*_lengths(options), depths, counts(options.parallel, "--parallel", 1, MAX_SEQUENCES))
    nodes = counts(options.nodes, "--nodes", 1, MAX_NODES)
    threads = counts(options.threads, "--threads", 1, MAX_THREADS)
    return BenchSettings(
        model=_model(options, numbers),
        cases=found,
        nodes=[Nodes(n_nodes, n_threads) for n_nodes in nodes for n_threads in threads],
        repetitions=options.repetitions,
        sync=options.sync,
        kernels=options.kernels,
        command=command,
        profile=options.profile,
        predict=options.predict,
    )


def _lengths(options: Options) -> tuple[list[int], list[int]]:
    """The lengths of prompts and of answers in tokens. 0 means none."""
    prompts = counts(options.n_prompt, "--n-prompt", 0, MAX_TOKENS)
    generated = counts(options.n_gen, "--n-gen", 0, MAX_TOKENS)
    if not any((*prompts, *generated)):
        raise UsageError("--n-prompt and --n-gen are both 0: nothing to measure")
    return prompts, generated


def _model(options: Options, numbers: Mapping[str, int]) -> str | RandomModel:
    if options.shape is None:
        given = [f"--{name}" for name in numbers] + (["--weights"] if options.weights else [])
        if given:
            raise UsageError(f"{given[0]} needs random weights; add --shape NAME, one of {', '.join(SHAPES)}")
        return options.model or DEMO
    if options.model is not None:
        raise UsageError("--model and --shape exclude each other; give one of them")
    return RandomModel(options.shape, FloatType[(options.weights or "q40").upper()], numbers)


def counts(text: str, flag: str, least: int, most: int) -> list[int]:
    """The whole numbers of a list such as `128,512`, without duplicates. Raises UsageError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 and least <= int(word) <= most for word in words):
        raise UsageError(f"{flag} {text!r}: expected numbers of {least} to {most} with commas between, such as 1,2")
    return list(dict.fromkeys(map(int, words)))
