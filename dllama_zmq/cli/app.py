"""The commands. What a command does is in the modules beside this one, imported when it runs."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path

import typer

from dllama_zmq import __version__
from dllama_zmq.cli import flags
from dllama_zmq.cli.command import Group, add_command
from dllama_zmq.cli.endings import with_exit_codes, with_output
from dllama_zmq.cli.overrides import Overrides
from dllama_zmq.cli.wrong_use import exit_code
from dllama_zmq.errors import UsageError

app = typer.Typer(
    name="dllama-zmq",
    cls=Group,
    help="Run one large language model over 2^n ordinary computers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TEXT, CLUSTERS, MODELS, MEASURE = "Generate text", "Clusters", "Models", "Measure"


@add_command(
    app, TEXT, "generate", "inference", "run",
    examples=['dllama-zmq generate "Once upon a time"', 'dllama-zmq generate -m story.gguf -n 60 --temp 0 "One day"'],
)  # fmt: skip
def generate(
    *,
    prompt: flags.Prompt = None,
    prompt_option: flags.PromptOption = None,
    overrides: Overrides,
    answer: flags.Answer,
    cluster: flags.Cluster = None,
) -> None:
    """Continue a text. Uses the running cluster; with none running, brings one up for this call."""
    from dllama_zmq.cli import generate as command

    command.run(_one_prompt(prompt, prompt_option), _one_cluster(None, cluster), answer, overrides)


@add_command(
    app, CLUSTERS, "up",
    examples=["dllama-zmq up", "dllama-zmq up home.yaml -m hf:org/model-GGUF:Q4_K_M"],
)  # fmt: skip
def up(
    *,
    which: flags.AnyCluster,
    overrides: Overrides,
    foreground: flags.Foreground = False,
    detach: flags.Detach = False,
) -> None:
    """Bring a cluster up. Returns when every node is ready."""
    from dllama_zmq.cli import cluster as commands

    path = _one_cluster(which.file, which.option)
    if foreground and detach:
        raise UsageError("--foreground stays and --detach does not; give one of them")
    if foreground:
        commands.be_cluster(path, overrides)
    else:
        commands.up(path, overrides)


@add_command(app, CLUSTERS, "down", "stop", examples=["dllama-zmq down", "dllama-zmq down home.yaml"])
def down(*, which: flags.AnyCluster) -> None:
    """Take a cluster down."""
    from dllama_zmq.cli import cluster as commands

    commands.down(_one_cluster(which.file, which.option))


@add_command(app, CLUSTERS, "status", examples=["dllama-zmq status", "dllama-zmq status home.yaml --json"])
def status(*, which: flags.AnyCluster, json: flags.Json = False) -> None:
    """Show how a cluster is."""
    from dllama_zmq.cli import cluster as commands

    commands.status(_one_cluster(which.file, which.option), json)


@add_command(app, CLUSTERS, "logs", examples=["dllama-zmq logs", "dllama-zmq logs worker1 -f"])
def logs(
    *,
    node: flags.LogNode = "root",
    cluster: flags.Cluster = None,
    lines: flags.LogLines = 50,
    follow: flags.LogFollow = False,
) -> None:
    """Print a node's log."""
    from dllama_zmq.cli import cluster as commands

    commands.logs(_one_cluster(None, cluster), node, lines, follow)


@app.command(hidden=True)
@with_exit_codes
def root(name: flags.RootName, lock: flags.RootLock) -> None:
    """Be the root of the cluster that another command is starting under NAME."""
    from dllama_zmq.cli import cluster as commands

    commands.be_started_cluster(name, lock)


@add_command(app, CLUSTERS, "worker", examples=["dllama-zmq worker --root tcp://192.168.1.10:5570"])
def worker(
    *,
    root: flags.RootAddress,
    name: flags.WorkerName = "",
    threads: flags.WorkerThreads = None,
    leave_with_stdin: flags.LeaveWithStdin = False,
    crowded: flags.Crowded = False,
) -> None:
    """Be a worker of the cluster whose root is at ADDRESS. Needs no model file: its weights come over the bus."""
    from dllama_zmq.cli import worker as command

    command.run(root, name, threads, leave_with_stdin, crowded)


@add_command(
    app, MODELS, "pull",
    examples=["dllama-zmq pull TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M"],
)  # fmt: skip
def pull(
    *,
    model: flags.PullModel,
    revision: flags.PullRevision = "main",
    to: flags.PullFolder = None,
    offline: flags.PullOffline = False,
) -> None:
    """Fetch a model from a Hugging Face hub and print its path. Goes on where an earlier call stopped."""
    from dllama_zmq.cli import pull as command

    command.run(model, revision, to, offline)


@add_command(app, MODELS, "list", "ls", examples=["dllama-zmq list"])
def list_models(*, json: flags.Json = False) -> None:
    """List the models that have been pulled: what to type for each, its size, and where."""
    from dllama_zmq.cli import pulled as command

    command.list_models(json)


@add_command(app, MODELS, "rm", examples=["dllama-zmq rm org/model-GGUF:Q4_K_M"])
def rm(*, model: flags.PulledModel, yes: flags.Yes = False) -> None:
    """Remove a model that has been pulled. Asks first."""
    from dllama_zmq.cli import pulled as command

    command.remove(model, yes)


@add_command(app, MODELS, "inspect", "show", examples=["dllama-zmq inspect demo", "dllama-zmq inspect story.gguf"])
def inspect(
    *,
    source: flags.Source,
    weights: flags.ReadWeights = None,
    json: flags.Json = False,
    tensors: flags.ListTensors = False,
) -> None:
    """Tell what is in a model, over how many nodes it can be split, and what each must hold."""
    from dllama_zmq.cli import inspect as command

    command.run(source, weights, json, tensors)


@add_command(app, MODELS, "convert", examples=["dllama-zmq convert path/to/folder model.m --weights q40"])
def convert(
    *,
    source: flags.Source,
    out: flags.ConvertOut,
    weights: flags.ConvertWeights = None,
    tokenizer: flags.ConvertTokenizer = None,
    force: flags.Force = False,
) -> None:
    """Write a model of any format as a .m file, and its tokenizer as a .t file."""
    from dllama_zmq.cli import convert as command

    command.run(source, out, weights, tokenizer, force)


@add_command(
    app, MEASURE, "bench",
    examples=["dllama-zmq bench --shape tinyllama --nodes 1,2", "dllama-zmq bench -m story.gguf -p 128 -n 32 -t 1,2"],
)  # fmt: skip
def bench(*, options: flags.Bench, numbers: flags.ShapeNumbers) -> None:
    """Measure how fast a model runs on this computer, beside what the computer could do. Needs no cluster."""
    from dllama_zmq.cli import bench as command

    command.run(options, numbers.given())


@add_command(
    app, MEASURE, "netstat",
    examples=["dllama-zmq netstat --watch", "dllama-zmq netstat --predict llama3-8b --nodes 8 --sync q80"],
)  # fmt: skip
def netstat(*, options: flags.Netstat) -> None:
    """Show a running cluster's traffic beside what its plan predicts, or predict a model's."""
    from dllama_zmq.cli import netstat as command

    command.run(options)


@app.callback(invoke_without_command=True)
def _before(version: flags.Version = False, verbose: flags.Verbose = False) -> None:
    if version:
        typer.echo(f"dllama-zmq {__version__}")
        raise typer.Exit
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)


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
    sys.exit(with_output(lambda: exit_code(app)))
