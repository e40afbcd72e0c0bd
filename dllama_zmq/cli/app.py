"""The commands and their flags. What a command does is in the modules beside this one, imported when it runs."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dllama_zmq import __version__
from dllama_zmq.cli import flags
from dllama_zmq.cli.command import Command
from dllama_zmq.cli.endings import exit_code, with_exit_codes
from dllama_zmq.errors import UsageError

if TYPE_CHECKING:
    from dllama_zmq.cli.cluster import Overrides

app = typer.Typer(
    name="dllama-zmq",
    help="Run one large language model over 2^n ordinary computers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
@with_exit_codes
def up(
    file: flags.ClusterFile = None,
    cluster: flags.ClusterOptionToo = None,
    foreground: flags.Foreground = False,
    leave_with_stdin: flags.LeaveWithStdin = False,
    threads: flags.Threads = None,
    sync: flags.Sync = None,
    kernels: flags.Kernels = None,
    model: flags.Model = None,
    weights: flags.Weights = None,
) -> None:
    """Bring a cluster up; returns when every node is ready."""
    from dllama_zmq.cli import cluster as commands

    overrides = _overrides(threads, sync, kernels, model, weights)
    path = _one_cluster(file, cluster)
    if foreground:
        commands.be_cluster(path, overrides, leave_with_stdin)
    else:
        commands.up(path, overrides)


@app.command()
@with_exit_codes
def down(file: flags.ClusterFile = None, cluster: flags.ClusterOptionToo = None) -> None:
    """Take a cluster down."""
    from dllama_zmq.cli import cluster as commands

    commands.down(_one_cluster(file, cluster))


@app.command()
@with_exit_codes
def status(file: flags.ClusterFile = None, cluster: flags.ClusterOptionToo = None, json: flags.Json = False) -> None:
    """Show how a cluster is."""
    from dllama_zmq.cli import cluster as commands

    commands.status(_one_cluster(file, cluster), json)


@app.command()
@with_exit_codes
def logs(
    node: flags.LogNode = "root",
    cluster: flags.ClusterOption = None,
    lines: flags.LogLines = 50,
    follow: flags.LogFollow = False,
) -> None:
    """Print a node's log."""
    from dllama_zmq.cli import cluster as commands

    commands.logs(_one_cluster(None, cluster), node, lines, follow)


@app.command()
@with_exit_codes
def worker(
    root: flags.RootAddress,
    name: flags.WorkerName = "",
    threads: flags.WorkerThreads = None,
    leave_with_stdin: flags.LeaveWithStdin = False,
    crowded: flags.Crowded = False,
) -> None:
    """Be a worker of the cluster whose root is at ADDRESS; needs no model file."""
    from dllama_zmq.cli import worker as command

    command.run(root, name, threads, leave_with_stdin, crowded)


@app.command()
@with_exit_codes
def generate(
    prompt: flags.Prompt = None,
    prompt_option: flags.PromptOption = None,
    steps: flags.Steps = 256,
    temperature: flags.Temperature = 0.8,
    top_p: flags.TopP = 0.9,
    top_k: flags.TopK = 0,
    seed: flags.Seed = -1,
    cluster: flags.ClusterOption = None,
    stats: flags.ShowStats = False,
    json: flags.Json = False,
    echo: flags.Echo = True,
    threads: flags.Threads = None,
    sync: flags.Sync = None,
    kernels: flags.Kernels = None,
    model: flags.Model = None,
    weights: flags.Weights = None,
) -> None:
    """Continue a text. Uses the running cluster; with none running, brings one up for this call."""
    from dllama_zmq.cli import generate as command

    options = command.Options(steps, temperature, top_p, top_k, seed, stats, json, echo)
    overrides = _overrides(threads, sync, kernels, model, weights)
    command.run(_one_prompt(prompt, prompt_option), _one_cluster(None, cluster), options, overrides)


@app.command()
@with_exit_codes
def inspect(
    source: flags.Source,
    weights: flags.ReadWeights = None,
    json: flags.Json = False,
    tensors: flags.ListTensors = False,
) -> None:
    """Tell what is in a model, over how many nodes it can be split, and what each must hold."""
    from dllama_zmq.cli import inspect as command

    command.run(source, weights.value if weights else None, json, tensors)


@app.command()
@with_exit_codes
def convert(
    source: flags.Source,
    out: flags.ConvertOut,
    weights: flags.ConvertWeights = None,
    tokenizer: flags.ConvertTokenizer = None,
    force: flags.Force = False,
) -> None:
    """Write a model of any format as a .m file, and its tokenizer as a .t file."""
    from dllama_zmq.cli import convert as command

    command.run(source, out, weights.value if weights else None, tokenizer, force)


@app.command()
@with_exit_codes
def bench(
    model: flags.BenchModel = None,
    shape: flags.BenchShape = None,
    weights: flags.BenchWeights = None,
    n_prompt: flags.BenchPrompt = "128,512",
    n_gen: flags.BenchGen = "32",
    depth: flags.BenchDepth = "0",
    repetitions: flags.BenchRepetitions = 5,
    nodes: flags.BenchNodes = "1",
    threads: flags.BenchThreads = "1",
    kernels: flags.BenchKernels = "auto",
    sync: flags.BenchSync = flags.SyncChoice.f32,
    output: flags.BenchOutput = flags.OutputChoice.md,
    layers: flags.BenchLayers = None,
    dim: flags.BenchDim = None,
    hidden: flags.BenchHidden = None,
    heads: flags.BenchHeads = None,
    kv_heads: flags.BenchKvHeads = None,
    head_dim: flags.BenchHeadDim = None,
    vocab: flags.BenchVocab = None,
    seq_len: flags.BenchSeqLen = None,
    profile: flags.BenchProfile = False,
) -> None:
    """Measure how fast a model runs on this computer, beside what the computer could do. Needs no cluster."""
    from dllama_zmq.cli import bench as command

    numbers = {
        "layers": layers, "dim": dim, "hidden": hidden, "heads": heads, "kv-heads": kv_heads,
        "head-dim": head_dim, "vocab": vocab, "seq-len": seq_len,
    }  # fmt: skip
    options = command.Options(
        model=model,
        shape=shape,
        weights=weights.value if weights else None,
        overrides={name: value for name, value in numbers.items() if value is not None},
        n_prompt=n_prompt,
        n_gen=n_gen,
        depth=depth,
        repetitions=repetitions,
        nodes=nodes,
        profile=profile,
        threads=threads,
        sync=sync.value,
        kernels=kernels,
        output=output.value,
    )
    command.run(options)


@app.command(cls=Command)
@with_exit_codes
def netstat(
    cluster: flags.ClusterOption = None,
    connect: flags.Connect = None,
    predict: flags.Predict = None,
    nodes: flags.PredictNodes = None,
    sync: flags.PredictSync = None,
    watch: flags.Watch = None,
    json: flags.Json = False,
) -> None:
    """Show the traffic of a running cluster beside what its plan predicts, or predict a model's."""
    from dllama_zmq.cli import netstat as command

    command.run(command.Options(cluster, connect, predict, nodes, sync.value if sync else None, watch, json))


@app.command()
@with_exit_codes
def pull(
    model: flags.PullModel,
    revision: flags.PullRevision = "main",
    to: flags.PullFolder = None,
    offline: flags.PullOffline = False,
) -> None:
    """Fetch a model from a Hugging Face hub and print its path. Goes on where an earlier call stopped."""
    from dllama_zmq.cli import pull as command

    command.run(model, revision, to, offline)


app.command("inference", hidden=True, help="The same as generate.")(generate)
app.command("run", hidden=True, help="The same as generate.")(generate)


@app.callback(invoke_without_command=True)
def _before(version: flags.Version = False, verbose: flags.Verbose = False) -> None:
    if version:
        typer.echo(f"dllama-zmq {__version__}")
        raise typer.Exit
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)


def _overrides(
    threads: flags.Threads, sync: flags.Sync, kernels: flags.Kernels, model: flags.Model, weights: flags.Weights
) -> Overrides:
    from dllama_zmq.cli.cluster import Overrides

    return Overrides(
        threads, sync.value if sync else None, kernels.value if kernels else None, model,
        weights.value if weights else None,
    )  # fmt: skip


def _one_cluster(argument: Path | None, option: Path | None) -> Path:
    if argument is not None and option is not None and argument != option:
        raise UsageError(f"two files are given, {argument} and --cluster {option}; give one")
    return argument or option or Path("cluster.yaml")


def _one_prompt(argument: str | None, option: str | None) -> str:
    if argument is not None and option is not None:
        raise UsageError("the prompt is given twice, as an argument and with --prompt; give it once")
    text = argument if argument is not None else option
    if text is None:
        raise UsageError('the prompt is missing; give a text to continue: dllama-zmq generate "Once upon a time"')
    try:
        return (sys.stdin.buffer.read() if text == "-" else os.fsencode(text)).decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the prompt is not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}"
        ) from None


def main() -> None:
    """Run the command line and exit with its code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? where it cannot show a letter
    sys.exit(exit_code(app))
