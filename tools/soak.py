"""A long run of a cluster with mixed requests over HTTP, in which every answer must be the undisturbed one.

    sudo .venv/bin/python tools/soak.py --minutes 30
    python tools/soak.py --url http://127.0.0.1:9990 --minutes 10 --clients 32
    python tools/soak.py --rounds 50 cluster.yaml

The first brings 4 nodes of the demo model up, each in a network namespace, under CURVE, kills a random worker every
60 s and cuts a random link every 90 s; without root and iproute2, on loopback and without cuts. The second has the same
clients for a cluster that runs, and disturbs nothing. The third brings a cluster up, generates and takes it down, again
and again. All print what they found, and end with exit code 1 where something was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import httpx
from namespaces import lacking, network
from soak_cluster import N_NODES, SoakCluster, up
from soak_crowd import Crowd, Found
from soak_usage import Usage

EVERY_S = {"sample": 5.0, "tell": 30.0, "kill": 60.0, "cut": 90.0}
CALM_S, NEAR_S, SILENT_S, POLL_S = 20.0, 15.0, 60.0, 0.1
LIMITS_S = {"up": 60.0, "generate": 120.0, "down": 15.0}
KILLED = {f"worker{node}" for node in range(1, N_NODES)}
PROMPT = "Once upon a time"


class Failed(Exception):
    """A phase of a round failed."""


# --- requests, and faults -------------------------------------------------------------------------------------------


def soak(
    crowd: Crowd,
    every_s: dict[str, float],
    cluster: SoakCluster | None,
    nodes: Callable[[], tuple[int, dict[int, str]]],
) -> bool:
    """Run the crowd, and faults where there is a cluster to disturb; print what was found. Whether all was well.

    every_s: how often what happens. nodes: the root's process, and by pid the names of the nodes that run here.
    """
    usage, draw, start = Usage(), random.Random(crowd.seed), time.monotonic()
    due = every_s | {"sample": 0.0}

    def is_due(what: str, now_s: float) -> bool:
        if now_s < due[what]:
            return False
        due[what] += every_s[what]
        return True

    def inside() -> None:
        try:
            if cluster is not None and cluster.computers:
                cluster.computers[0].enter()
            asyncio.run(crowd.run())
        except Exception as error:
            crowd.found.errors[f"{type(error).__name__}: {error}"] += 1

    running = threading.Thread(target=inside, daemon=True)  # as a namespace is a thread's
    running.start()
    while running.is_alive():
        time.sleep(POLL_S)
        if cluster is not None:
            cluster.look()
        if not crowd.found.begun.is_set():
            continue
        total_s = 60 * crowd.minutes
        now_s = time.monotonic() - crowd.until + total_s
        if is_due("sample", now_s):
            usage.sample(min(now_s / total_s, 1.0), *nodes())
        if is_due("tell", now_s):
            n_ended = crowd.found.ended.total()
            print(f"{now_s / 60:.1f} minutes: {n_ended} requests, {crowd.found.errors.total()} errors", flush=True)
        if cluster is None or now_s > total_s - CALM_S:
            continue
        if is_due("kill", now_s):
            cluster.kill(draw)
        if is_due("cut", now_s) and cluster.computers:
            cluster.cut(draw)
    print(f"all of it took {time.monotonic() - start:.0f} s")
    wrong = list(usage.wrong(KILLED if cluster is not None else set()))
    silences = silences_s(crowd.found, [] if cluster is None else cluster.faults)
    if (longest := max((max(times) for times in silences.values()), default=0.0)) > SILENT_S:
        wrong.append(f"no client got a token for {longest:.0f} s, more than {SILENT_S:.0f}")
    report(crowd, usage, silences)
    for words in wrong:
        print(f"error: {words}")
    return not wrong and not crowd.found.errors


def report(crowd: Crowd, usage: Usage, silences: dict[str, list[float]]) -> None:
    """Print what was found."""
    found, by_kind = crowd.found, Counter[str]()
    for (_, how), number in found.ended.items():
        by_kind[how] += number
    counts = ", ".join(f"{number} {how}" for how, number in by_kind.most_common())
    print(f"{crowd.n_clients} clients, {crowd.minutes:g} minutes: {found.ended.total()} requests: {counts}")
    for kind in dict.fromkeys(kind for kind, _ in sorted(found.ended)):
        counts = ", ".join(f"{n} {how}" for (of, how), n in sorted(found.ended.items()) if of == kind)
        print(f"  {kind}: {counts}")
    if len(found.health_s) > 1:
        p99, longest = statistics.quantiles(found.health_s, n=100)[-1], max(found.health_s)
        median = statistics.median(found.health_s)
        figures = f"median {1000 * median:.1f} ms, p99 {1000 * p99:.1f} ms, longest {1000 * longest:.1f} ms"
        print(f"/health: {figures}; {found.n_ill} of {len(found.health_s)} said that nodes are missing")
    for what, times in sorted(silences.items()):
        middle, longest = statistics.median(times), max(times)
        print(f"{what}: {len(times)} times; without tokens for a median of {middle:.1f} s, {longest:.1f} s at most")
    for line in usage.table(crowd.minutes):
        print(line)
    for words, number in found.errors.most_common():
        print(f"error, {number} times: {words}")


def silences_s(found: Found, faults: Sequence[tuple[float, str]]) -> dict[str, list[float]]:
    """By kind of fault: the longest time without tokens for any client that touches the `NEAR_S` after each."""
    silences: dict[str, list[float]] = {}
    gaps = list(pairwise(sorted(found.tokens)))
    for at, words in faults:
        what = re.sub(r"(worker|node) ?\d+", "a \\1", words)
        silences.setdefault(what, []).append(
            max((b - a for a, b in gaps if a < at + NEAR_S and b > at), default=math.inf)
        )
    return silences


def disturbed(args: argparse.Namespace) -> bool:
    """The whole soak, with a cluster of its own."""
    folder, is_well = Path(tempfile.mkdtemp(prefix="dzs-", dir="/tmp")), False  # short, for the paths of sockets
    try:
        with ExitStack() as stack:
            if sentence := lacking():
                print(f"{sentence}: all nodes are on loopback, without CURVE, and no link is cut", flush=True)
            computers = [] if sentence else stack.enter_context(network("dzs", N_NODES))
            cluster = stack.enter_context(up(folder, computers))
            crowd = Crowd(cluster.url, args.clients, args.minutes, args.seed, disturbed=True)

            def nodes() -> tuple[int, dict[int, str]]:
                return cluster.root_pid, {cluster.root_pid: "root"} | {p: n for n, p in cluster.worker_pids().items()}

            is_well = soak(crowd, EVERY_S | {"kill": args.kill, "cut": args.cut}, cluster, nodes)
    finally:
        if is_well:
            shutil.rmtree(folder)
        else:
            print(f"logs are in {folder}/node0/logs/soak, those of workers in {folder}")
    return is_well


def undisturbed(args: argparse.Namespace) -> bool:
    """Clients of a cluster that runs."""
    status = httpx.get(f"{args.url}/v1/cluster", timeout=10.0).raise_for_status().json()
    names = {node["pid"]: node["name"] for node in status["nodes"] if not node["address"]}
    crowd = Crowd(args.url, args.clients, args.minutes, args.seed, disturbed=False)
    return soak(crowd, EVERY_S, None, lambda: (status["pid"], names))


# --- rounds ---------------------------------------------------------------------------------------------------------


def run_phase(phase: str, words: Sequence[str]) -> tuple[float, str]:
    """Run a command; returns its seconds and its stdout. Raises Failed."""
    start = time.monotonic()
    try:
        # No stdin: the command must not ask anything.
        ended = subprocess.run(
            [sys.executable, "-m", "dllama_zmq", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMITS_S[phase],
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
        raise Failed(f"{phase} did not end within {LIMITS_S[phase]:.0f} s\n{said}") from None
    if ended.returncode != 0:
        raise Failed(f"{phase} failed with exit code {ended.returncode}\n{ended.stderr}")
    return time.monotonic() - start, ended.stdout


def run_round(cluster: Path, steps: int) -> tuple[dict[str, float], str]:
    """Run all phases; returns the seconds of each, and the answer. Raises Failed."""
    seconds = {}
    seconds["up"], _ = run_phase("up", ["up", str(cluster)])
    ask = ["generate", PROMPT, "--temp", "0", "--steps", str(steps), "--cluster", str(cluster)]
    seconds["generate"], answer = run_phase("generate", ask)
    seconds["down"], _ = run_phase("down", ["down", str(cluster)])
    return seconds, answer


def rounds(cluster: Path, n_rounds: int, steps: int) -> None:
    """Run all rounds; print a line for each, and a summary. Raises Failed."""
    first, taken = "", []
    print("round " + " ".join(f"{phase:>10}" for phase in LIMITS_S), flush=True)
    for number in range(1, n_rounds + 1):
        try:
            seconds, answer = run_round(cluster, steps)
        except Failed as error:
            raise Failed(f"round {number}: {error}") from None
        first = first or answer
        if answer != first:
            raise Failed(f"round {number}: another answer than in round 1\n{first!r}\n{answer!r}")
        taken.append(seconds)
        print(f"{number:5} " + " ".join(f"{seconds[phase]:8.2f} s" for phase in LIMITS_S), flush=True)
    spans = [[row[phase] for row in taken] for phase in LIMITS_S]
    words = [
        f"{phase} {min(span):.2f} / {statistics.median(span):.2f} / {max(span):.2f} s"
        for phase, span in zip(LIMITS_S, spans, strict=True)
    ]
    print(f"{n_rounds} rounds, no failure; min / median / max: {', '.join(words)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cluster", type=Path, nargs="?", default=Path("cluster.yaml"), metavar="FILE", help="of --rounds"
    )
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N")
    parser.add_argument("--clients", type=int, default=8, metavar="N")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(1 << 31), metavar="N", help="of all that is drawn"
    )
    parser.add_argument("--kill", type=float, default=EVERY_S["kill"], metavar="S", help="seconds from kill to kill")
    parser.add_argument("--cut", type=float, default=EVERY_S["cut"], metavar="S", help="seconds from cut to cut")
    parser.add_argument("--url", help="of the API of a cluster that runs, which is not disturbed")
    parser.add_argument("--rounds", type=int, metavar="N", help="of up, generate, down")
    parser.add_argument("--steps", type=int, default=32, metavar="N", help="tokens to generate in each round")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # nothing may be left
    try:
        if args.rounds is not None:
            rounds(args.cluster, args.rounds, args.steps)
            return 0
        print(f"seed {args.seed}", flush=True)
        if args.url is None:
            return 0 if disturbed(args) else 1
        return 0 if undisturbed(args) else 1
    except KeyboardInterrupt:
        return 130
    except httpx.HTTPError as error:
        print(f"error: {args.url}: {error}", file=sys.stderr)
        return 1
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "dllama_zmq", "down", str(args.cluster)], capture_output=True, timeout=30)
        return 1


if __name__ == "__main__":
    sys.exit(main())
