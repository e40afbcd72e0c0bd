"""Every flag, once: all its spellings, what it takes, what it says of itself. Of the spellings the first short and the
first long one are shown; the others are distributed-llama's (--nthreads, --buffer-float-type, --topp) and llama.cpp's
(--n-predict, --temp, --ctx-size, -hfr).

Flags that go together are a dataclass, which is what a command gets. Those of `bench` and `netstat` are in
`measure_flags.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

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

Version = Annotated[bool, Option("--version", help="Print the version and exit")]
Verbose = Annotated[bool, Option("-v", "--verbose", help="Log the protocol too")]
