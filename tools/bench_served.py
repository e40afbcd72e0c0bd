"""One client's tokens/s from a cluster, beside those of `dllama-zmq bench`, in turn: what being served costs.

    python tools/bench_served.py -m demo --nodes 1,2
    python tools/bench_served.py -m tiny.m --tokenizer tiny.t --threads 2

A round is a `bench` of as many tokens, then an answer of a cluster that is up meanwhile; the client counts its own
seconds from the first token to the last. Compare the medians: both share whatever the machine does. `--prefix 1000`
adds the time to the first token of a new prompt of 1000 tokens, and of the same prompt again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dllama_zmq.bus.client_messages import TokenText
from dllama_zmq.cli.chosen import client_of
from dllama_zmq.cli.flags import There
from dllama_zmq.client import Client

_LIMIT_S = 300.0
_WARM_UP = 8


def command(*words: str) -> str:
    """Run `dllama-zmq` in the folder of this process; returns its stdout, and ends the tool where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "dllama_zmq", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )
    if done.returncode:
        sys.exit(f"dllama-zmq {words[0]} failed with exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def benched(model: Sequence[str], nodes: int, threads: int, n_tokens: int) -> float:
    """tokens/s of `bench`, one repetition."""
    where = ["--nodes", str(nodes), "-t", str(threads)]
    rows = json.loads(command("bench", *model, "-p", "0", "-n", str(n_tokens), "-r", "1", *where, "--json"))
    speed: float = rows[-1]["tokens_per_s"]
    return speed


def served(client: Client, n_tokens: int) -> float:
    """tokens/s of an answer, as its client sees it."""
    answers = client.generate("Once upon a time", n_tokens + 1, ignore_eos=True)
    times = [time.perf_counter() for answer in answers if isinstance(answer, TokenText)]
    return n_tokens / (times[-1] - times[0])


def first_token_s(client: Client, prompt: Sequence[int]) -> float:
    """Seconds until the first token of an answer to `prompt`."""
    start = time.perf_counter()
    for answer in client.generate(prompt, 1, ignore_eos=True):
        if isinstance(answer, TokenText):
            return time.perf_counter() - start
    sys.exit("the cluster gave no token")


def compare(args: argparse.Namespace, nodes: int, threads: int) -> None:
    """Print one line."""
    model = ["-m", args.model]
    files = [*model, *(["--tokenizer", args.tokenizer] if args.tokenizer else [])]
    command("up", *files, "--nodes", str(nodes), "-t", str(threads))
    bench, serve, first, again = [], [], [], []
    try:
        with client_of(There(), None) as client:
            served(client, _WARM_UP)
            for _ in range(args.rounds):
                bench.append(benched(model, nodes, threads, args.tokens))
                serve.append(served(client, args.tokens))
                if args.prefix:
                    prompt = [random.randrange(3, client.model().vocab_size) for _ in range(args.prefix)]
                    first.append(first_token_s(client, prompt))
                    again.append(first_token_s(client, prompt))
    finally:
        command("down")
    of_bench, of_served = statistics.median(bench), statistics.median(serve)
    each = ", ".join(f"{b:.1f}/{s:.1f}" for b, s in zip(bench, serve, strict=True))
    print(
        f"{nodes}x{threads}: bench {of_bench:.2f}, served {of_served:.2f} tokens/s, {of_served / of_bench:.3f} ({each})"
    )

    if first:
        new_s, known_s = statistics.median(first), statistics.median(again)
        print(
            f"{nodes}x{threads}: {args.prefix} new tokens: first of the answer after {new_s:.3f} s, "
            f"again after {known_s:.4f} s, {100 * known_s / new_s:.1f}%"
        )


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description="One client's tokens/s beside those of bench.")
    parser.add_argument("-m", "--model", default="demo")
    parser.add_argument("--tokenizer", help="the model's, where it does not bring one")
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--prefix", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--nodes", default="1")
    parser.add_argument("-t", "--threads", default="1")
    args = parser.parse_args()
    for name in ("model", "tokenizer"):
        if (given := getattr(args, name)) and Path(given).exists():
            setattr(args, name, str(Path(given).resolve()))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DLLAMA_ZMQ_HOME"] = folder
        os.chdir(folder)
        for nodes in map(int, args.nodes.split(",")):
            for threads in map(int, args.threads.split(",")):
                compare(args, nodes, threads)


if __name__ == "__main__":
    main()
