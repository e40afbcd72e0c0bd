"""Flags that several commands share. Flags that belong together are a Struct.

The help shows the first short and the first long spelling of a flag. The others are distributed-llama's
(--nthreads, --buffer-float-type, --topp) and llama.cpp's (--n-predict, --temp, --ctx-size, -hfr).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from msgspec import Struct
from typer import Argument, Option

from dllama_zmq.cli import completion
from dllama_zmq.cli.flag_kinds import KernelChoice, choice, model_flag, number, real
from dllama_zmq.errors import UsageError
from dllama_zmq.hub import HUB_PREFIX
from dllama_zmq.node_config import Security
from dllama_zmq.spec import Sync, Weights

CLUSTER = "The cluster's file; ./cluster.yaml if not given"


def cluster_flag(help: str) -> Any:
    """The flag for a cluster's file, for commands that have no -f of their own."""
    names = ("-f", "--cluster", "--file")
    return Option(*names, metavar="FILE", help=help, show_default=False, autocompletion=completion.files)


def weights_flag(help: str) -> Any:
    """The flag for a type of weights."""
    return choice("--weights", of=Weights, help=help)


def threads_flag(help: str) -> Any:
    """The flag for a number of compute threads."""
    return number("-t", "--threads", "--nthreads", most=1024, help=help)


SYNC = choice("--sync", "--buffer-float-type", of=Sync, help="Type of activations on the bus")
KERNELS = choice("--kernels", of=KernelChoice, help="Back end of the arithmetic")
CONTEXT = number(
    "-c",
    "--ctx-size",
    "--max-seq-len",
    "--context",
    most=1 << 24,
    help="Positions to keep room for, prompt and answer together",
)
Cluster = Annotated[
    Path | None, Option("--cluster", metavar="FILE", help=CLUSTER, show_default=False, autocompletion=completion.files)
]
MODEL = "A file or folder of any format, hf:REPO[:FILE] or demo"
Source = Annotated[str, Argument(metavar="MODEL", help=MODEL, autocompletion=completion.models)]
ModelOrNone = Annotated[
    str | None, Argument(metavar="MODEL", help=MODEL, show_default=False, autocompletion=completion.models)
]
Force = Annotated[bool, Option("-f", "--force", help="Replace what is there")]
Json = Annotated[bool, Option("--json", help="One JSON object instead of text")]
Watch = Annotated[
    float | None, Option("--watch", metavar="[SECONDS]", parser=real, help="Show it again every SECONDS (2), to Ctrl-C")
]
SecurityFlag = Annotated[
    Security, choice("--security", of=Security, help="none: the bus is open, as its cluster's file says")
]
Workers = Annotated[
    str | None, Option("--workers", metavar="HOST,…", help="Other computers: this one is the root, those its workers")
]


class AnyCluster(Struct, frozen=True, kw_only=True):
    """Which cluster: its file as an argument or as a flag."""

    file: Annotated[
        Path | None, Argument(metavar="FILE", help=CLUSTER, show_default=False, autocompletion=completion.files)
    ] = None
    option: Annotated[Path | None, cluster_flag("The same, as a flag")] = None


class There(Struct, frozen=True, kw_only=True):
    """A running root on another computer."""

    connect: Annotated[
        str | None,
        Option("--connect", metavar="HOST", help="A running root on any computer, with :PORT where it is not 5572"),
    ] = None
    security: SecurityFlag = "curve"


class ModelAndNodes(Struct, frozen=True, kw_only=True):
    """The model, whose path is relative to the current folder, and the nodes."""

    model: Annotated[str | None, model_flag("-m", "--model", help=MODEL)] = None
    hub_model: Annotated[
        str | None,
        Option(
            "-hf",
            "-hfr",
            "--hf-repo",
            metavar="REPO[:FILE]",
            autocompletion=completion.pulled,
            help="A model of the Hugging Face hub; fetched where it is not here",
        ),
    ] = None
    nodes: Annotated[int | None, number("--nodes", help="Nodes on this computer (1), or of a file the first N")] = None
    workers: Workers = None

    def named_model(self) -> str | None:
        """The model that these flags name."""
        return self.model or (None if self.hub_model is None else f"{HUB_PREFIX}{self.hub_model}")


class Overrides(ModelAndNodes, frozen=True, kw_only=True):
    """Values of the command line that replace the file's."""

    panel = "Instead of what the file says"
    context: Annotated[int | None, CONTEXT] = None
    tokenizer: Annotated[
        Path | None, Option("--tokenizer", metavar="FILE", help="The model's tokenizer, where it does not bring one")
    ] = None
    weights: Annotated[Weights | None, weights_flag("Type in which a folder's weights are read")] = None
    threads: Annotated[int | None, threads_flag("Threads of every node here")] = None
    sync: Annotated[Sync | None, SYNC] = None
    kernels: Annotated[KernelChoice | None, KERNELS] = None
    force: Annotated[bool, Option("--force", help="Start it although memory seems too small")] = False


def either(argument: str | None, flag: str | None) -> str | None:
    """The model that is given as an argument or as a flag. Raises UsageError if both are."""
    if argument is not None and flag is not None:
        raise UsageError("two models are given, as an argument and as a flag; give one")
    return flag if argument is None else argument
