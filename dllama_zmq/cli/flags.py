"""Every flag with all its spellings: ours, distributed-llama's (--nthreads, --buffer-float-type, --topp) and
llama.cpp's (-p, -n, -t, -s, --temp)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


class SyncChoice(StrEnum):
    """The types in which activations cross the bus."""

    f32 = "f32"
    f16 = "f16"
    q80 = "q80"


class WeightsChoice(StrEnum):
    """The types that all weights of a model can have."""

    q40 = "q40"
    q80 = "q80"
    f16 = "f16"
    f32 = "f32"


class KernelsChoice(StrEnum):
    """The back ends of the arithmetic."""

    auto = "auto"
    simd = "simd"
    numpy = "numpy"


class OutputChoice(StrEnum):
    """How a table is printed."""

    md = "md"
    json = "json"


_CLUSTER_HELP = "The file that describes the cluster; ./cluster.yaml if not given."
ClusterFile = Annotated[Path | None, Argument(metavar="FILE", help=_CLUSTER_HELP, show_default=False)]
ClusterOption = Annotated[Path | None, Option("--cluster", metavar="FILE", help=_CLUSTER_HELP, show_default=False)]
ClusterOptionToo = Annotated[
    Path | None, Option("--cluster", metavar="FILE", help="The same, spelt as every command takes it.")
]
Threads = Annotated[
    int | None,
    Option("--threads", "--nthreads", "-t", min=1, help="Compute threads of every node here, instead of the file's."),
]
Sync = Annotated[
    SyncChoice | None,
    Option(
        "--sync", "--buffer-float-type", case_sensitive=False, help="Type of activations on the bus, not the file's."
    ),
]
Kernels = Annotated[
    KernelsChoice | None,
    Option("--kernels", case_sensitive=False, help="Back end of the arithmetic, instead of the file's."),
]
Model = Annotated[
    str | None, Option("--model", "-m", metavar="PATH", help="A model to run instead of the file's: a path, or demo.")
]
Weights = Annotated[
    WeightsChoice | None,
    Option("--weights", case_sensitive=False, help="Type to read a folder's weights in, instead of the file's."),
]
Foreground = Annotated[bool, Option("--foreground", help="Stay here (or under a supervisor) until stopped.")]
Json = Annotated[bool, Option("--json", help="Print one JSON object instead of text.")]

LogNode = Annotated[str, Argument(metavar="NODE", help="root, or a worker of this host.")]
LogLines = Annotated[int, Option("--lines", "-n", min=1, help="How many of the last lines.")]
LogFollow = Annotated[bool, Option("--follow", "-f", help="Go on printing what is added.")]

RootAddress = Annotated[str, Option("--root", metavar="ADDRESS", help="The root's address, as tcp://HOST:5570.")]
WorkerName = Annotated[str, Option("--name", help="Which worker of the file to be; any free one if not given.")]
WorkerThreads = Annotated[
    int | None, Option("--threads", "--nthreads", "-t", min=1, help="Compute threads; all cores if not given.")
]
Crowded = Annotated[bool, Option("--crowded", hidden=True)]
LeaveWithStdin = Annotated[bool, Option("--leave-with-stdin", hidden=True)]

Prompt = Annotated[str | None, Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin.")]
PromptOption = Annotated[str | None, Option("--prompt", "-p", metavar="TEXT", help="The text to continue, as a flag.")]
Steps = Annotated[
    int,
    Option(
        "--steps",
        "-n",
        "--n-predict",
        "--predict",
        "--max-tokens",
        max=1 << 62,
        help="Most tokens to generate; -1: until it ends.",
    ),
]
Temperature = Annotated[float, Option("--temperature", "--temp", help="0 is greedy.")]
TopP = Annotated[float, Option("--top-p", "--topp", help="Sample from the fewest tokens that hold P; 1: off.")]
TopK = Annotated[int, Option("--top-k", "--topk", help="Sample from the K likeliest tokens; 0: off.")]
Seed = Annotated[
    int, Option("--seed", "-s", min=-1, max=1 << 62, help="Equal seeds give equal answers; -1: a new one each time.")
]
ShowStats = Annotated[
    bool,
    Option(
        "--stats", help="Per token, to stderr: ms in all (G), computing (I), waiting (T); kB sent (S), received (R)."
    ),
]
Echo = Annotated[
    bool, Option("--echo/--no-echo", " /--no-display-prompt", help="Print the prompt before its continuation.")
]
Source = Annotated[str, Argument(metavar="PATH", help="A model: a file or a folder of any format, or demo.")]
ListTensors = Annotated[bool, Option("--tensors", help="List every tensor too.")]
ReadWeights = Annotated[
    WeightsChoice | None,
    Option(
        "--weights", case_sensitive=False, help="As if the cluster file had these `weights`, for a folder of floats."
    ),
]
ConvertOut = Annotated[Path, Argument(metavar="OUT.m", help="The file to write.")]
ConvertWeights = Annotated[
    WeightsChoice | None,
    Option(
        "--weights",
        case_sensitive=False,
        help="Type of the weights; if not given, as they are where a .m file can have that, else (BF16, mixed) q40.",
    ),
]
ConvertTokenizer = Annotated[
    Path | None, Option("--tokenizer", metavar="OUT.t", help="Where the tokenizer goes; beside OUT.m if not given.")
]
Force = Annotated[bool, Option("--force", "-f", help="Replace what is there.")]
_SHAPE_PANEL = "Instead of the shape's own numbers"


def _shape_number(name: str) -> object:
    return Option(f"--{name}", min=0, max=1 << 24, metavar="N", rich_help_panel=_SHAPE_PANEL, show_default=False)


BenchModel = Annotated[
    str | None, Option("--model", "-m", metavar="PATH", help="A model file, or demo (which is taken without a flag).")
]
BenchShape = Annotated[
    str | None, Option("--shape", metavar="NAME", help="Random weights of a published shape, kept for the next time.")
]
BenchWeights = Annotated[
    WeightsChoice | None,
    Option("--weights", case_sensitive=False, help="Type of the random weights; q40 if not given."),
]
BenchPrompt = Annotated[
    str, Option("--n-prompt", "-p", metavar="N,...", help="Lengths of prompts to evaluate; 0: none.")
]
BenchGen = Annotated[str, Option("--n-gen", "-n", metavar="N,...", help="Numbers of tokens to generate; 0: none.")]
BenchDepth = Annotated[
    str, Option("--depth", "--n-depth", "-d", metavar="N,...", help="Positions that the cache holds before each.")
]
BenchRepetitions = Annotated[
    int, Option("--repetitions", "-r", min=1, max=1 << 20, help="Times that each is measured, after a warm-up.")
]
BenchNodes = Annotated[str, Option("--nodes", metavar="N,...", help="Numbers of nodes, all on this computer.")]
BenchThreads = Annotated[
    str, Option("--threads", "--nthreads", "-t", metavar="N,...", help="Compute threads of every node.")
]
BenchSync = Annotated[
    SyncChoice,
    Option("--sync", "--buffer-float-type", case_sensitive=False, help="Type of activations on the bus."),
]
BenchKernels = Annotated[str, Option("--kernels", metavar="NAME", help="Back end of the arithmetic.")]
BenchOutput = Annotated[OutputChoice, Option("--output", "-o", help="A Markdown table, or a JSON list of its rows.")]
BenchProfile = Annotated[
    bool, Option("--profile", help="Tell where the root's time for a token goes: each kernel, waiting, Python.")
]
BenchLayers = Annotated[int | None, _shape_number("layers")]
BenchDim = Annotated[int | None, _shape_number("dim")]
BenchHidden = Annotated[int | None, _shape_number("hidden")]
BenchHeads = Annotated[int | None, _shape_number("heads")]
BenchKvHeads = Annotated[int | None, _shape_number("kv-heads")]
BenchHeadDim = Annotated[int | None, _shape_number("head-dim")]
BenchVocab = Annotated[int | None, _shape_number("vocab")]
BenchSeqLen = Annotated[int | None, _shape_number("seq-len")]
Connect = Annotated[
    str | None, Option("--connect", metavar="ADDRESS", help="A running root's address for clients, as tcp://HOST:5572.")
]
Predict = Annotated[
    str | None,
    Option("--predict", metavar="MODEL", help="Predict, with no cluster, for demo, a .m file or a published shape."),
]
PredictNodes = Annotated[int | None, Option("--nodes", metavar="N", help="With --predict: the nodes; 4 if not given.")]
PredictSync = Annotated[
    SyncChoice | None,
    Option("--sync", case_sensitive=False, help="With --predict: type of activations on the bus; f32 if not given."),
]
Watch = Annotated[
    float | None,
    Option("--watch", metavar="[SECONDS]", help="Show it again every SECONDS (2 if not given) until Ctrl-C."),
]
PullModel = Annotated[
    str, Argument(metavar="REPO[:FILE]", help="USER/REPO; FILE is a file's name, a glob, or a quantization as Q4_K_M.")
]
PullRevision = Annotated[str, Option("--revision", metavar="NAME", help="A branch, tag or commit of the repository.")]
PullFolder = Annotated[
    Path | None,
    Option("--to", metavar="FOLDER", help="Put the files there, not into the cache that other tools share."),
]
PullOffline = Annotated[bool, Option("--offline", help="Ask no hub: only say where the cache has it.")]
Version = Annotated[bool, Option("--version", help="Print the version and exit.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Log the protocol too.")]
