"""Speed of prompts and decoding over slow links: each node is in its own network namespace on this computer.

    sudo .venv/bin/python tools/bench_link.py MODEL [--nodes 2] [--mbit 1000,100] [--sync f32,q80] [-p 128] [-n 16]
                                              [--security curve,none]

MODEL: a model file; `dllama-zmq bench --shape tinyllama` leaves one in ~/.cache/dllama-zmq/shapes. Each node has one
thread and a link to a bridge, which `tc tbf` limits to MBIT Mbit/s in each direction; the latency is this computer's.
Prints tokens/s and the share of the time that the root waited, and the same for one node. Needs Linux, root, iproute2.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import zmq
from namespaces import Computer, address, check, network
from threadpoolctl import threadpool_limits

from dllama_zmq.bus.client_messages import StepStats
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.bus.security import Peer, Server
from dllama_zmq.bus.sockets import Context
from dllama_zmq.errors import DllamaError
from dllama_zmq.formats import open_model
from dllama_zmq.kernels import Batch
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sharding import Ask
from dllama_zmq.spec import SYNC_FLOAT, Sync
from dllama_zmq.trust import Entry, Ring, Role, own_key
from dllama_zmq.trust.files import HOME_VARIABLE
from dllama_zmq.worker import Worker, WorkerSettings

NAMES = "dzlink"
FORM_S, CHILD_S = 120.0, 600.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--mbit", type=speeds, default=[1000, 100], help="comma-separated; 0: no limit")
    parser.add_argument("--sync", type=syncs, default=["f32", "q80"], help="comma-separated")
    parser.add_argument("--security", type=securities, default=["curve"], help="comma-separated: curve, none")
    parser.add_argument("-p", "--prompt", type=int, default=128)
    parser.add_argument("-n", "--tokens", type=int, default=16)
    parser.add_argument("-r", "--repetitions", type=int, default=4)
    parser.add_argument(
        "--inside",
        action="store_true",
        help=argparse.SUPPRESS,  # this process is in the namespace of node 0
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        measure(args)
        return
    if args.worker:
        be_worker(args.security == ["curve"])
        return
    check()
    if not args.model.exists():
        sys.exit(f"{args.model}: no such file; `dllama-zmq bench --shape tinyllama` makes one and says where")
    print("| Mbit/s | nodes | sync | security | prompt, tokens/s | waiting | decoding, tokens/s | waiting |")
    print("| ---: | ---: | --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    rest = ["-p", str(args.prompt), "-n", str(args.tokens), "-r", str(args.repetitions)]
    row(["", "1", "", ""], [], [str(args.model), "--nodes", "1", "--sync", "f32", *rest])
    for mbit in args.mbit:
        with network(NAMES, args.nodes, mbit) as computers:
            for sync in args.sync:
                for security in args.security:
                    words = f"--nodes {args.nodes} --sync {sync} --security {security}".split()
                    inside = [str(args.model), *words, *rest]
                    with a_home(), workers(computers[1:], security):
                        row([str(mbit or "-"), str(args.nodes), sync, security], computers[0].prefix, inside)


def speeds(text: str) -> list[int]:
    """Parse rates in Mbit/s. argparse reports the errors."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise ValueError(text)
    return numbers


def syncs(text: str) -> list[Sync]:
    """Parse types of activations. argparse reports the errors."""
    by_name: dict[str, Sync] = {sync: sync for sync in SYNC_FLOAT}
    try:
        return [by_name[name] for name in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"{error} is none of {', '.join(by_name)}") from None


def securities(text: str) -> list[str]:
    """Parse kinds of security. argparse reports the errors."""
    if not set(text.split(",")) <= {"curve", "none"}:
        raise ValueError(text)
    return text.split(",")


def row(first: Sequence[str], prefix: Sequence[str], arguments: Sequence[str]) -> None:
    """Measure in a child process and print its row."""
    command = [*prefix, sys.executable, __file__, "--inside", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=CHILD_S)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"| {' | '.join(first)} | {done.stdout.strip()} |", flush=True)


def measure(args: argparse.Namespace) -> None:
    """Be the root: measure and print four columns."""
    nodes, n_prompt, n_tokens = args.nodes, args.prompt, args.tokens
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    settings = RootSettings(
        names=[f"worker{i}" for i in range(1, nodes)],
        sync=args.sync[0],
        threads=1,
        max_seq_len=n_prompt + n_tokens + 1,
    )
    security = None
    if args.security == ["curve"]:
        own = own_key()  # of this user, so of all nodes
        security = Server(own, Ring([Entry(Role.worker, name, own.public) for name in settings.names]), Role.worker)
    places = None
    if nodes > 1:
        places = Endpoints([f"tcp://{address(0)}:5571"], [f"tcp://{address(0)}:5570"], security=security)
    tokens = np.random.default_rng(0).integers(3, 1000, n_prompt).tolist()
    try:
        with open_model(args.model) as model:
            root = Root(context, model, settings, places)
            root.wait_ready(time.monotonic() + FORM_S)
            prompts = [evaluate(root, 0, tokens) for _ in range(args.repetitions + 1)][1:]  # the first one warms up
            decoded = [evaluate(root, n_prompt + i, [5]) for i in range(n_tokens + 1)][1:]
            root.close("measured")
    except DllamaError as error:
        sys.exit(str(error))
    context.term()
    speeds = [n_prompt / step.wall_s for step in prompts]
    deviation = statistics.stdev(speeds) if len(speeds) > 1 else 0.0
    print(
        f"{statistics.mean(speeds):.1f} ± {deviation:.1f} | {waiting(prompts):.1%} | "
        f"{n_tokens / sum(step.wall_s for step in decoded):.1f} | {waiting(decoded):.1%}"
    )


def evaluate(root: Root, start: int, tokens: list[int]) -> StepStats:
    """Evaluate one step, with the best candidate of its last row."""
    return root.evaluate(Batch.alone(start, len(tokens)), tokens, {len(tokens) - 1: Ask(1)})[1]


def waiting(steps: Sequence[StepStats]) -> float:
    """The share of the time that the root waited."""
    return sum(step.wait_s for step in steps) / sum(step.wall_s for step in steps)


def be_worker(secured: bool) -> None:
    """Be a worker of one thread."""
    own = own_key() if secured else None
    security = None if own is None else Peer(own, own.public)
    with threadpool_limits(limits=1), Context() as context:
        Worker(context, WorkerSettings(f"tcp://{address(0)}:5570", security=security)).run()


@contextmanager
def a_home() -> Iterator[None]:
    """A folder for the key of all processes."""
    with tempfile.TemporaryDirectory() as home:
        os.environ[HOME_VARIABLE] = home
        yield
        del os.environ[HOME_VARIABLE]


@contextmanager
def workers(computers: Sequence[Computer], security: str) -> Iterator[None]:
    """A worker in each namespace. Workers that are still there after the block are ended."""
    command = [sys.executable, __file__, "-", "--worker", "--security", security]
    with ExitStack() as stack:
        for computer in computers:
            worker = subprocess.Popen([*computer.prefix, *command], stderr=subprocess.DEVNULL)
            stack.callback(worker.wait, 10)
            stack.callback(worker.terminate)
        yield


if __name__ == "__main__":
    main()
