"""Every flag, once: all its spellings, what it takes, what it says of itself. Of the spellings the first short and the
first long one are shown; the others are distributed-llama's (--nthreads, --buffer-float-type, --topp) and llama.cpp's
(--n-predict, --temp, --ctx-size, -hfr).

Flags that go together are a dataclass, which is what a command gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from dllama_zmq.cli import completion
from dllama_zmq.cli.kinds import MOST, KernelChoice, choice, model_flag, number, real
from dllama_zmq.spec import Sync, Weights

# --- clusters --------------------------------------------------------------------------------------------------------

_SETTINGS = "Instead of what the file says"
_CLUSTER = "The cluster's file; ./cluster.yaml if not given"

Cluster = Annotated[
    Path | None, Option("--cluster", metavar="FILE", help=_CLUSTER, show_default=False, autocompletion=completion.files)
]
Force = Annotated[bool, Option("-f", "--force", help="Replace what is there")]
Json = Annotated[bool, Option("--json", help="One JSON object instead of text")]
Watch = Annotated[
    float | None,
    Option("--watch", metavar="[SECONDS]", parser=real, help="Show it again every SECONDS (2), to Ctrl-C"),
]
Connect = Annotated[
    str | None,
    Option("--connect", metavar="HOST", help="A running root on any computer, with :PORT where it is not 5572"),
]
Foreground = Annotated[bool, Option("--foreground", help="Stay here (or under a supervisor) until stopped")]
Detach = Annotated[bool, Option("-d", "--detach", hidden=True, help="What `up` does anyway")]


Workers = Annotated[
    str | None,
    Option("--workers", metavar="HOST,…", help="Other computers: this one is the root, those its workers"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    """What `init` writes."""

    file: Annotated[Path | None, Argument(metavar="FILE", help="The file to write; ./cluster.yaml if not given")] = None
    model: Annotated[
        str | None, model_flag("-m", "--model", help="Its model: a file or folder, hf:REPO[:FILE] or demo")
    ] = None
    nodes: Annotated[int | None, number("--nodes", help="Nodes, all on this computer: 1, 2, 4, 8, ...")] = None
    workers: Workers = None
    host: Annotated[
        str | None, Option("--host", metavar="ADDRESS", help="This computer's address for them, found out if not given")
    ] = None
    force: Force = False


RootName = Annotated[str, Argument(metavar="NAME", help="The cluster's name")]
RootLock = Annotated[int, Option("--lock", metavar="N", help="The descriptor of the cluster's lock")]
LeaveWithStdin = Annotated[bool, Option("--leave-with-stdin", hidden=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyCluster:
    """Which cluster: its file as an argument or as a flag."""

    file: Annotated[
        Path | None,
        Argument(metavar="FILE", help=_CLUSTER, show_default=False, autocompletion=completion.files),
    ] = None
    option: Annotated[
        Path | None, Option("-f", "--cluster", "--file", metavar="FILE", help="The same, as a flag", show_default=False)
    ] = None


LogNode = Annotated[
    str | None,
    Argument(
        metavar="NODE", help="root, or a worker of this computer; all if not given", autocompletion=completion.nodes
    ),
]
LogLines = Annotated[int, number("-n", "--lines", help="How many of the last lines")]
LogFollow = Annotated[bool, Option("-f", "--follow", help="Go on printing what is added")]

RootHost = Annotated[
    str | None, Argument(metavar="HOST", help="The root's computer: a name or address, with :PORT where it is not 5570")
]
RootAddress = Annotated[str | None, Option("--root", metavar="ADDRESS", help="The same, as a flag")]
WorkerName = Annotated[
    str, Option("--name", metavar="NAME", help="Which worker of the file to be; any free one if not given")
]
WorkerThreads = Annotated[
    int | None, number("-t", "--threads", "--nthreads", help="Compute threads; all cores if not given")
]
Crowded = Annotated[bool, Option("--crowded", hidden=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the command line says instead of the file. A model's path is relative to where the command runs."""

    model: Annotated[
        str | None,
        model_flag("-m", "--model", help="A file or folder of any format, hf:REPO[:FILE] or demo"),
    ] = None
    hub_model: Annotated[
        str | None,
        Option(
            "-hf", "-hfr", "--hf-repo", metavar="REPO[:FILE]", autocompletion=completion.pulled,
            help="A model of the Hugging Face hub; fetched where it is not here",
        ),
    ] = None  # fmt: skip
    nodes: Annotated[int | None, number("--nodes", help="Nodes on this computer (1), or of a file the first N")] = None
    workers: Workers = None
    context: Annotated[
        int | None,
        number(
            "-c", "--ctx-size", "--max-seq-len", "--context", most=1 << 24,
            help="Positions to keep room for, prompt and answer together", rich_help_panel=_SETTINGS,
        ),
    ] = None  # fmt: skip
    tokenizer: Annotated[
        Path | None,
        Option(
            "--tokenizer", metavar="FILE", help="The model's tokenizer, where it does not bring one",
            rich_help_panel=_SETTINGS,
        ),
    ] = None  # fmt: skip
    weights: Annotated[
        Weights | None,
        choice("--weights", of=Weights, help="Type in which a folder's weights are read", rich_help_panel=_SETTINGS),
    ] = None
    threads: Annotated[
        int | None,
        number("-t", "--threads", "--nthreads", help="Threads of every node here", rich_help_panel=_SETTINGS),
    ] = None
    sync: Annotated[
        Sync | None,
        choice(
            "--sync", "--buffer-float-type", of=Sync, help="Type of activations on the bus", rich_help_panel=_SETTINGS
        ),
    ] = None
    kernels: Annotated[
        KernelChoice | None,
        choice("--kernels", of=KernelChoice, help="Back end of the arithmetic", rich_help_panel=_SETTINGS),
    ] = None
    force: Annotated[
        bool, Option("--force", help="Start it although memory seems too small", rich_help_panel=_SETTINGS)
    ] = False


# --- texts -----------------------------------------------------------------------------------------------------------

_SAMPLING = "Sampling"

RunModel = Annotated[
    str | None,
    Argument(
        metavar="MODEL", help="A file or folder of any format, hf:REPO[:FILE] or demo", autocompletion=completion.models
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFlags:
    """The text to continue, or where it is."""

    prompt: Annotated[
        str | None, Argument(metavar="PROMPT", help="The text to continue; - or none: what is piped in")
    ] = None
    prompt_option: Annotated[str | None, Option("-p", "--prompt", metavar="TEXT", help="The same, as a flag")] = None
    prompt_file: Annotated[Path | None, Option("-f", "--file", metavar="FILE", help="A file with the prompt")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a text goes on, and how it is shown."""

    steps: Annotated[
        int,
        number(
            "-n", "--steps", "--n-predict", "--predict", "--max-tokens",
            least=-1, words="a whole number of tokens, or -1 for no limit",
            help="Most tokens to generate; -1: until it ends",
        ),
    ] = 256  # fmt: skip
    temperature: Annotated[
        float,
        Option("--temperature", "--temp", metavar="T", parser=real, help="0 is greedy", rich_help_panel=_SAMPLING),
    ] = 0.8
    top_p: Annotated[
        float,
        Option(
            "--top-p", "--topp", metavar="P", parser=real,
            help="Sample from the fewest tokens that hold P; 1: off", rich_help_panel=_SAMPLING,
        ),
    ] = 0.9  # fmt: skip
    top_k: Annotated[
        int,
        number(
            "--top-k", "--topk", least=-MOST, words="a whole number",
            help="Sample from the K likeliest tokens; 0: off", rich_help_panel=_SAMPLING,
        ),
    ] = 0  # fmt: skip
    seed: Annotated[
        int,
        number(
            "-s", "--seed", least=-1, help="Equal seeds give equal answers; -1: a new one", rich_help_panel=_SAMPLING
        ),
    ] = -1
    stats: Annotated[
        str | None,
        choice("--stats", of=Literal["answer", "tokens"], help="Tell what a token took; =tokens: each of them too"),
    ] = None
    json: Json = False
    echo: Annotated[
        bool, Option("--echo/--no-echo", " /--no-display-prompt", help="Print the prompt before its continuation")
    ] = True

    def max_tokens(self) -> int | None:
        """-1 is llama.cpp's word for no limit."""
        return None if self.steps == -1 else self.steps

    def given_seed(self) -> int | None:
        """-1 is llama.cpp's word for any."""
        return None if self.seed == -1 else self.seed


# --- models ----------------------------------------------------------------------------------------------------------

Source = Annotated[
    str,
    Argument(
        metavar="MODEL", help="A file or folder of any format, hf:REPO[:FILE] or demo", autocompletion=completion.models
    ),
]
ListTensors = Annotated[bool, Option("--tensors", help="List every tensor too")]
ReadWeights = Annotated[
    Weights | None, choice("--weights", of=Weights, help="As if the cluster's file had these `weights`")
]
ConvertOut = Annotated[Path, Argument(metavar="OUT.m", help="The file to write")]
ConvertWeights = Annotated[
    Weights | None,
    choice("--weights", of=Weights, help="If not given: as they are where a .m file can have that, else q40"),
]
ConvertTokenizer = Annotated[
    Path | None, Option("--tokenizer", metavar="OUT.t", help="Where the tokenizer goes; beside OUT.m if not given")
]
PullModel = Annotated[
    str, Argument(metavar="REPO[:FILE]", help="USER/REPO; FILE is a file's name, a glob, or a quantization as Q4_K_M")
]
PulledModel = Annotated[
    str, Argument(metavar="REPO[:FILE]", help="A name of `dllama-zmq list`", autocompletion=completion.pulled)
]
Yes = Annotated[bool, Option("-y", "--yes", help="Do not ask")]
PullRevision = Annotated[str, Option("--revision", metavar="NAME", help="A branch, tag or commit of the repository")]
PullFolder = Annotated[
    Path | None, Option("--to", metavar="FOLDER", help="Put the files there, not into the cache that other tools share")
]
PullOffline = Annotated[bool, Option("--offline", help="Ask no hub: only say where the cache has it")]

# --- measuring -------------------------------------------------------------------------------------------------------

_SHAPE_PANEL = "Instead of the shape's own numbers"


def _shape_number(name: str) -> Any:
    return number(f"--{name}", least=0, most=1 << 24, help="", rich_help_panel=_SHAPE_PANEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeNumbers:
    """A shape's numbers that are given anew."""

    layers: Annotated[int | None, _shape_number("layers")] = None
    dim: Annotated[int | None, _shape_number("dim")] = None
    hidden: Annotated[int | None, _shape_number("hidden")] = None
    heads: Annotated[int | None, _shape_number("heads")] = None
    kv_heads: Annotated[int | None, _shape_number("kv-heads")] = None
    head_dim: Annotated[int | None, _shape_number("head-dim")] = None
    vocab: Annotated[int | None, _shape_number("vocab")] = None
    seq_len: Annotated[int | None, _shape_number("seq-len")] = None

    def given(self) -> dict[str, int]:
        """Those that are given, by the names that shapes know."""
        values = {name.replace("_", "-"): getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What `bench` measures; lists as they were written."""

    cluster: Annotated[
        Path | None,
        Option(
            "--cluster", metavar="FILE", help="A running cluster, as it is, instead of nodes on this computer",
            show_default=False, autocompletion=completion.files,
        ),
    ] = None  # fmt: skip
    connect: Connect = None
    model: Annotated[str | None, model_flag("-m", "--model", help="A model; demo if not given")] = None
    shape: Annotated[
        str | None,
        Option("--shape", metavar="NAME", help="Random weights of a published shape", autocompletion=completion.shapes),
    ] = None
    weights: Annotated[
        Weights | None, choice("--weights", of=Weights, help="Of the random weights; q40 if not given")
    ] = None
    n_prompt: Annotated[str, Option("-p", "--n-prompt", metavar="N,…", help="Lengths of prompts; 0: none")] = "128,512"
    n_gen: Annotated[str, Option("-n", "--n-gen", metavar="N,…", help="Numbers of tokens to generate; 0: none")] = "32"
    depth: Annotated[
        str, Option("-d", "--depth", "--n-depth", metavar="N,…", help="Positions that the cache holds before each")
    ] = "0"
    repetitions: Annotated[
        int, number("-r", "--repetitions", most=1 << 20, help="Times that each is measured, after a warm-up")
    ] = 5
    nodes: Annotated[str, Option("--nodes", metavar="N,…", help="Numbers of nodes, all on this computer")] = "1"
    threads: Annotated[
        str, Option("-t", "--threads", "--nthreads", metavar="N,…", help="Compute threads of every node")
    ] = "1"
    kernels: Annotated[KernelChoice, choice("--kernels", of=KernelChoice, help="Back end of the arithmetic")] = "auto"
    sync: Annotated[Sync, choice("--sync", "--buffer-float-type", of=Sync, help="Type of activations on the bus")] = (
        "f32"
    )
    output: Annotated[
        Literal["md", "json"],
        choice("-o", "--output", of=Literal["md", "json"], help="A table, or a list of its rows"),
    ] = "md"
    profile: Annotated[
        bool, Option("--profile", help="Where the root's time for a token goes: kernels, waiting, Python")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Netstat:
    """Whose traffic `netstat` shows: a running cluster's, by its file or address, or a model's, predicted."""

    cluster: Cluster = None
    connect: Connect = None
    predict: Annotated[
        str | None,
        Option(
            "--predict", metavar="MODEL", help="No cluster: a published shape, or a model",
            autocompletion=completion.shapes,
        ),
    ] = None  # fmt: skip
    nodes: Annotated[int | None, number("--nodes", least=-MOST, help="With --predict: the nodes; 4 if not given")] = (
        None
    )
    sync: Annotated[Sync | None, choice("--sync", of=Sync, help="With --predict: f32 if not given")] = None
    summary: Annotated[bool, Option("--summary", help="A few lines: all workers together, and whether all agrees")] = (
        False
    )
    watch: Watch = None
    json: Json = False


Version = Annotated[bool, Option("--version", help="Print the version and exit")]
Verbose = Annotated[bool, Option("-v", "--verbose", help="Log the protocol too")]
