"""The flags of `bench` and `netstat`; see `flags.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from dllama_zmq.cli import completion
from dllama_zmq.cli.flags import Connect, Json, Watch
from dllama_zmq.cli.kinds import MOST, KernelChoice, choice, model_flag, number
from dllama_zmq.spec import Sync, Weights

_SHAPE_PANEL = "Instead of the shape's own numbers"


def _shape_number(name: str) -> Any:
    return number(f"--{name}", least=0, most=1 << 24, help="", rich_help_panel=_SHAPE_PANEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeNumbers:
    """Numbers that replace the shape's own."""

    layers: Annotated[int | None, _shape_number("layers")] = None
    dim: Annotated[int | None, _shape_number("dim")] = None
    hidden: Annotated[int | None, _shape_number("hidden")] = None
    heads: Annotated[int | None, _shape_number("heads")] = None
    kv_heads: Annotated[int | None, _shape_number("kv-heads")] = None
    head_dim: Annotated[int | None, _shape_number("head-dim")] = None
    vocab: Annotated[int | None, _shape_number("vocab")] = None
    seq_len: Annotated[int | None, _shape_number("seq-len")] = None

    def given(self) -> dict[str, int]:
        """Those that are given, by their names in shapes.OVERRIDES."""
        values = {name.replace("_", "-"): getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What `bench` measures. Lists are as they were typed."""

    cluster: Annotated[
        Path | None,
        Option(
            "-f",
            "--cluster",
            "--file",
            metavar="FILE",
            help="A running cluster, as it is, instead of nodes on this computer",
            show_default=False,
            autocompletion=completion.files,
        ),
    ] = None
    connect: Connect = None
    model: Annotated[str | None, model_flag("-m", "--model", help="A model; demo if not given")] = None
    shape: Annotated[
        str | None,
        Option("--shape", metavar="NAME", help="Random weights of a published shape", autocompletion=completion.shapes),
    ] = None
    weights: Annotated[
        Weights | None, choice("--weights", of=Weights, help="Type of the random weights; q40 if not given")
    ] = None
    n_prompt: Annotated[str, Option("-p", "--n-prompt", metavar="N,…", help="Prompt lengths in tokens; 0: none")] = (
        "128,512"
    )
    n_gen: Annotated[str, Option("-n", "--n-gen", metavar="N,…", help="Numbers of tokens to generate; 0: none")] = "32"
    depth: Annotated[
        str, Option("-d", "--depth", "--n-depth", metavar="N,…", help="Positions that the cache holds already")
    ] = "0"
    repetitions: Annotated[
        int, number("-r", "--repetitions", most=1 << 20, help="Repetitions of each, after a warm-up")
    ] = 5
    nodes: Annotated[str, Option("--nodes", metavar="N,…", help="Numbers of nodes, all on this computer")] = "1"
    threads: Annotated[
        str, Option("-t", "--threads", "--nthreads", metavar="N,…", help="Compute threads of each node")
    ] = "1"
    kernels: Annotated[KernelChoice, choice("--kernels", of=KernelChoice, help="Back end of the arithmetic")] = "auto"
    sync: Annotated[Sync, choice("--sync", "--buffer-float-type", of=Sync, help="Type of activations on the bus")] = (
        "f32"
    )
    output: Annotated[
        Literal["md", "json"],
        choice("-o", "--output", of=Literal["md", "json"], help="A Markdown table, or its rows as JSON"),
    ] = "md"
    json: Annotated[bool, Option("--json", help="The same as -o json")] = False
    profile: Annotated[
        bool, Option("--profile", help="Show where the root's time for a token goes: kernels, waiting, Python")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Netstat:
    """Whose traffic `netstat` shows: a running cluster's, by its file or address, or a model's, predicted."""

    cluster: Annotated[
        Path | None,
        Option(
            "-f", "--cluster", "--file", metavar="FILE", help="The cluster's file; ./cluster.yaml if not given",
            show_default=False, autocompletion=completion.files,
        ),
    ] = None  # fmt: skip
    connect: Connect = None
    predict: Annotated[
        str | None,
        Option(
            "--predict",
            metavar="MODEL",
            help="No cluster: a published shape, or a model",
            autocompletion=completion.shapes,
        ),
    ] = None
    nodes: Annotated[int | None, number("--nodes", least=-MOST, help="With --predict: the nodes; 4 if not given")] = (
        None
    )
    sync: Annotated[Sync | None, choice("--sync", of=Sync, help="With --predict: f32 if not given")] = None
    summary: Annotated[bool, Option("--summary", help="A few lines: all workers together, and whether all agrees")] = (
        False
    )
    watch: Watch = None
    json: Json = False
