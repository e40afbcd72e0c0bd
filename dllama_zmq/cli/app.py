"""The commands, and the flags before them."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from dllama_zmq import __version__
from dllama_zmq.cli import command
from dllama_zmq.cli.exit_codes import open_output, with_output
from dllama_zmq.cli.wrong_use import exit_code


class Group(command.Group):
    """dllama-zmq's commands."""

    table = {  # noqa: RUF012 - never written to
        "Generate text": {
            "run": ("generate:run", "Continue a text with a model, in any folder"),
            "chat": ("chat.command:chat", "Talk with a model"),
            "generate inference": ("generate:generate", "Continue a text with this folder's cluster"),
        },
        "Clusters": {
            "up": ("cluster:up", "Bring a cluster up and leave it running"),
            "serve": ("serve:serve", "Serve a model over HTTP until Ctrl-C"),
            "init": ("init:init", "Write a commented cluster file"),
            "restart": ("cluster:restart", "Take a cluster down and bring it up as its file says now"),
            "down stop": ("cluster:down", "Take a cluster down"),
            "status": ("cluster:status", "Show how a cluster is"),
            "ps": ("cluster:ps", "List the clusters that run on this computer"),
            "logs": ("logs:logs", "Print the log of a node, or of all nodes of this computer"),
            "render": ("render:render", "Write what systemd, compose or Kubernetes needs to run it"),
            "worker": ("worker:worker", "Be a worker of the cluster whose root is on HOST"),
        },
        "Other computers": {
            "token": ("keys:token", "Print a line with which another computer joins"),
            "join": ("join:join", "Use a cluster of another computer"),
            "keys": ("keys:keys", "List and remove the keys that may connect"),
            "keygen": ("keygen:keygen", "Print your public key on this computer"),
        },
        "Models": {
            "pull": ("pull:pull", "Fetch a model from a Hugging Face hub and print its path"),
            "list ls": ("pulled:list_models", "List the models that have been pulled"),
            "rm": ("pulled:rm", "Remove a model that has been pulled"),
            "inspect show": ("inspect:inspect", "Tell what is in a model"),
            "convert": ("convert:convert", "Write a model of any format as a .m file"),
        },
        "Measure": {
            "bench": ("bench:bench", "Measure how fast a model runs on this computer or cluster"),
            "plan": ("plan:plan", "Predict memory and speed of a model on 1, 2, 4, ... nodes"),
            "doctor": ("doctor:doctor", "Look for what may be wrong here and in the cluster"),
            "netstat": ("netstat:netstat", "Show a running cluster's traffic, or predict a model's"),
        },
        "": {
            "root": ("root:root", "Be the root of a cluster that another command is starting"),
            "gateway": ("gateway:gateway", "Be the API server of a cluster"),
        },
    }


app = typer.Typer(
    name="dllama-zmq",
    cls=Group,
    help="Run one large language model over 2^n ordinary computers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _before(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log the protocol too")] = False,
) -> None:
    if version:
        typer.echo(f"dllama-zmq {__version__}")
        raise typer.Exit
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)


def main() -> None:
    """Run the command line and exit with its code."""
    open_output()
    sys.exit(with_output(lambda: exit_code(app)))
