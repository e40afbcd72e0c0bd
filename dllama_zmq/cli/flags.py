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


ClusterFileArgument = Annotated[Path, Argument(metavar="FILE", help="The file that describes the cluster.")]
ClusterFile = Annotated[Path, Option("--cluster", metavar="FILE", help="The file that describes the cluster.")]
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
Foreground = Annotated[bool, Option("--foreground", help="Stay here (or under a supervisor) until stopped.")]
Json = Annotated[bool, Option("--json", help="Print one JSON object instead of text.")]

LogNode = Annotated[str, Argument(metavar="NODE", help="root, or a worker of this host.")]
LogLines = Annotated[int, Option("--lines", "-n", min=1, help="How many of the last lines.")]
LogFollow = Annotated[bool, Option("--follow", "-f", help="Go on printing what is added.")]

RootAddress = Annotated[str, Option("--root", metavar="ADDRESS", help="The root's address, as tcp://HOST:5570.")]
WorkerName = Annotated[str, Option("--name", help="Which worker of the file to be; any free one if not given.")]
WorkerThreads = Annotated[int, Option("--threads", "--nthreads", "-t", min=1, help="Compute threads.")]
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
Version = Annotated[bool, Option("--version", help="Print the version and exit.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Log the protocol too.")]
