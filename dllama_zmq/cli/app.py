"""The commands. What a command does is in the modules beside this one, imported when it runs."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import typer

from dllama_zmq import __version__
from dllama_zmq.cli import flags, measure_flags
from dllama_zmq.cli.command import Group, add_command
from dllama_zmq.cli.endings import open_output, with_exit_codes, with_output
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
    app, TEXT, "run",
    examples=[
        'dllama-zmq run story.gguf "Once upon a time"',
        'dllama-zmq run hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M "One day"',
        "echo 'One day, Lily' | dllama-zmq run demo -n 60 --temp 0",
    ],
)  # fmt: skip
def run(
    *,
    source: flags.RunModel = None,
    prompt: flags.PromptFlags,
    overrides: flags.Overrides,
    answer: flags.Answer,
    cluster: flags.Cluster = None,
) -> None:
    """Continue a text with a model, in any folder. Needs no file: one node on this computer, or --nodes N.

    A cluster of this folder that runs this very model is used; a model of the hub (hf:) is fetched first.
    """
    from dllama_zmq.cli import chosen
    from dllama_zmq.cli import generate as command
    from dllama_zmq.cli.prompt import read_prompt
    from dllama_zmq.sources import absolute_model

    if overrides.model is not None or overrides.hub_model is not None:  # then what stands first is the prompt
        if source is not None and prompt.prompt is not None:
            raise UsageError("two models are given, as an argument and as a flag; give one")
        prompt = prompt if source is None else replace(prompt, prompt=source)
        source = overrides.model or f"hf:{overrides.hub_model}"
        overrides = replace(overrides, model=None, hub_model=None)
    if source is not None:
        absolute_model(source)  # raises where there is none, before anybody waits for a prompt
    text = read_prompt(prompt, f'dllama-zmq run {source or "MODEL"} "Once upon a time"')
    if cluster is not None or source is None:
        command.run(text, chosen.chosen_path(cluster), answer, replace(overrides, model=source))
    else:
        command.run_model(text, source, answer, overrides)


@add_command(
    app, TEXT, "generate", "inference",
    examples=[
        'dllama-zmq generate "Once upon a time"',
        'dllama-zmq generate -m story.gguf -n 60 --temp 0 "One day"',
        "dllama-zmq generate -f prompt.txt --json",
    ],
)  # fmt: skip
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
    """
    from dllama_zmq.cli import chosen
    from dllama_zmq.cli import generate as command
    from dllama_zmq.cli.prompt import read_prompt

    text = read_prompt(prompt, 'dllama-zmq generate "Once upon a time"')
    if connect is not None:
        command.run_elsewhere(text, chosen.elsewhere(connect, cluster), answer, overrides)
    else:
        command.run(text, chosen.chosen_path(cluster), answer, overrides)


@add_command(
    app, CLUSTERS, "up",
    examples=["dllama-zmq up", "dllama-zmq up home.yaml", "dllama-zmq up -m story.gguf --nodes 2"],
)  # fmt: skip
def up(
    *,
    which: flags.AnyCluster,
    overrides: flags.Overrides,
    foreground: flags.Foreground = False,
    detach: flags.Detach = False,
) -> None:
    """Bring a cluster up and leave it running. Returns when every node is ready.

    Without a cluster.yaml, -m MODEL is enough: one node on this computer, or --nodes N.
    """
    from dllama_zmq.cli import chosen

    if foreground and detach:
        raise UsageError("--foreground stays and --detach does not; give one of them")
    path = chosen.chosen_path(which.file, which.option)
    if foreground:
        from dllama_zmq.cli.root import be_cluster

        be_cluster(path, overrides)
    else:
        from dllama_zmq.cli import cluster as commands

        commands.up(path, overrides)


@add_command(
    app, CLUSTERS, "init",
    examples=[
        "dllama-zmq init -m story.gguf --nodes 2",
        "dllama-zmq init home.yaml -m demo --workers 192.168.1.11",
    ],
)  # fmt: skip
def init(*, options: flags.Init) -> None:
    """Write a cluster's file with a comment on everything that can be changed in it."""
    from dllama_zmq.cli import init as command

    command.run(options)


@add_command(app, CLUSTERS, "restart", examples=["dllama-zmq restart", "dllama-zmq restart -c 8192"])
def restart(*, which: flags.AnyCluster, overrides: flags.Overrides) -> None:
    """Take a cluster down and bring it up as its file says now."""
    from dllama_zmq.cli import chosen
    from dllama_zmq.cli import cluster as commands

    commands.restart(chosen.chosen_path(which.file, which.option), overrides)


@add_command(app, CLUSTERS, "down", "stop", examples=["dllama-zmq down", "dllama-zmq down home.yaml"])
def down(*, which: flags.AnyCluster, connect: flags.Connect = None) -> None:
    """Take a cluster down."""
    from dllama_zmq.cli import chosen
    from dllama_zmq.cli import cluster as commands

    if connect is not None:
        commands.down_elsewhere(chosen.elsewhere(connect, which.file, which.option))
    else:
        commands.down(chosen.chosen_path(which.file, which.option))


@add_command(
    app, CLUSTERS, "status",
    examples=["dllama-zmq status", "dllama-zmq status --watch", "dllama-zmq status home.yaml --json"],
)  # fmt: skip
def status(
    *,
    which: flags.AnyCluster,
    connect: flags.Connect = None,
    watch: flags.Watch = None,
    json: flags.Json = False,
) -> None:
    """Show how a cluster is."""
    from dllama_zmq.cli import chosen
    from dllama_zmq.cli import cluster as commands

    if connect is not None:
        commands.status_elsewhere(chosen.elsewhere(connect, which.file, which.option), json, watch)
    else:
        commands.status(chosen.chosen_path(which.file, which.option), json, watch)


@add_command(app, CLUSTERS, "ps", examples=["dllama-zmq ps"])
def ps(*, json: flags.Json = False) -> None:
    """List the clusters that run on this computer."""
    from dllama_zmq.cli import cluster as commands

    commands.list_running(json)


@add_command(app, CLUSTERS, "logs", examples=["dllama-zmq logs", "dllama-zmq logs worker1 -f"])
def logs(
    *,
    node: flags.LogNode = None,
    cluster: flags.Cluster = None,
    lines: flags.LogLines = 50,
    follow: flags.LogFollow = False,
) -> None:
    """Print the log of a node, or of all nodes of this computer."""
    from dllama_zmq.cli import chosen
    from dllama_zmq.cli import logs as command

    command.run(chosen.chosen_path(cluster), node, lines, follow)


@app.command(hidden=True)
@with_exit_codes
def root(name: flags.RootName, lock: flags.RootLock) -> None:
    """Be the root of the cluster that another command is starting under NAME."""
    from dllama_zmq.cli.root import be_started_cluster

    be_started_cluster(name, lock)


@add_command(app, CLUSTERS, "worker", examples=["dllama-zmq worker 192.168.1.10", "dllama-zmq worker pi1:5570 -t 3"])
def worker(
    *,
    host: flags.RootHost = None,
    root: flags.RootAddress = None,
    name: flags.WorkerName = "",
    threads: flags.WorkerThreads = None,
    leave_with_stdin: flags.LeaveWithStdin = False,
    crowded: flags.Crowded = False,
) -> None:
    """Be a worker of the cluster whose root is on HOST. Needs no model file: its weights come over the bus."""
    from dllama_zmq.cli import worker as command

    if (host is None) == (root is None):
        raise UsageError("say once where the root is: dllama-zmq worker 192.168.1.10")
    command.run(host or root or "", name, threads, leave_with_stdin, crowded)


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
    """Write a model of any format as a .m file, and its tokenizer beside it as it is."""
    from dllama_zmq.cli import convert as command

    command.run(source, out, weights, tokenizer, force)


@add_command(
    app, MEASURE, "bench",
    examples=[
        "dllama-zmq bench --shape tinyllama --nodes 1,2",
        "dllama-zmq bench -m story.gguf -p 128 -n 32 -t 1,2",
        "dllama-zmq bench --cluster home.yaml",
    ],
)  # fmt: skip
def bench(*, options: measure_flags.Bench, numbers: measure_flags.ShapeNumbers) -> None:
    """Measure how fast a model runs on this computer, beside what the computer could do; or a running cluster.

    Without --cluster or --connect it needs no cluster: it starts nodes of its own on this computer.
    """
    from dllama_zmq.cli import bench as command

    command.run(options, numbers.given())


@add_command(
    app, MEASURE, "netstat",
    examples=["dllama-zmq netstat --watch", "dllama-zmq netstat --predict llama3-8b --nodes 8 --sync q80"],
)  # fmt: skip
def netstat(*, options: measure_flags.Netstat) -> None:
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


def main() -> None:
    """Run the command line and exit with its code."""
    open_output()
    sys.exit(with_output(lambda: exit_code(app)))
