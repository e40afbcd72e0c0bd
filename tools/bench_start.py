"""Time of a first and a second start over slow links: each node is in its own network namespace on this computer.

    sudo .venv/bin/python tools/bench_start.py MODEL [--nodes 4] [--mbit 1000,100] [-r 1]

MODEL and links are those of bench_link.py. Each worker has a cache of its own, empty at first, and waits for the root.
Prints the seconds from the start of the root's process until all nodes are ready, and the bytes of weights that it
sent; then the same for a root that is started again. Needs Linux, root, iproute2.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq
from bench_link import CHILD_S, FORM_S, numbers
from namespaces import Computer, address, network

from dllama_zmq.bus.links import Endpoints
from dllama_zmq.errors import DllamaError
from dllama_zmq.formats import open_model
from dllama_zmq.root.root import Root, RootSettings

NAMES = "dzstart"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--mbit", type=numbers, default=[1000, 100], help="comma-separated; 0: no limit")
    parser.add_argument("-r", "--repetitions", type=int, default=1, help="of the pair of starts, with empty caches")
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)  # this process is in the namespace of node 0
    parser.add_argument("--hashes", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.begun is not None:
        start(args.model, args.nodes, args.hashes, args.begun)
        return
    print("| Mbit/s | nodes | start | MB sent | seconds |\n| ---: | ---: | --- | ---: | ---: |", flush=True)
    for mbit in args.mbit:
        for _ in range(args.repetitions):
            with (
                network(NAMES, args.nodes, mbit) as computers,
                tempfile.TemporaryDirectory() as folder,
                workers(computers[1:], folder),
            ):
                for which in ("first", "second"):
                    inside = ["--nodes", str(args.nodes), "--hashes", f"{folder}/hashes", "--begun", str(time.time())]
                    row(computers[0], f"{mbit or '-'} | {args.nodes} | {which}", [str(args.model), *inside])


def row(computer: Computer, words: str, arguments: Sequence[str]) -> None:
    """Start a root in a child process, and print its row."""
    command = [*computer.prefix, sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=CHILD_S)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"| {words} | {done.stdout.strip()} |", flush=True)


def start(path: Path, nodes: int, hashes: Path, begun: float) -> None:
    """Be the root until all nodes are ready: print two columns."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    names = [f"worker{i}" for i in range(1, nodes)]
    places = Endpoints([f"tcp://{address(0)}:5571"], [f"tcp://{address(0)}:5570"])
    try:
        with open_model(path) as model:
            root = Root(context, model, RootSettings(names=names, threads=1, hashes=hashes), places)
            root.wait_ready(time.monotonic() + FORM_S)
            seconds = time.time() - begun
            assert root.link is not None
            sent = sum(tally.payload_bytes for tally in root.link.meter.tallies() if tally.kind == "weights")
            root.close("measured", stay=True)
    except DllamaError as error:
        sys.exit(str(error))
    context.term()
    print(f"{sent / 1e6:.1f} | {seconds:.2f}")


@contextmanager
def workers(computers: Sequence[Computer], folder: str) -> Iterator[None]:
    """A worker in each namespace, its cache in `folder`. They are ended after the block."""
    command = [sys.executable, "-m", "dllama_zmq", "worker", "--root", f"tcp://{address(0)}:5570"]
    command += ["--security", "none", "-t", "1"]
    with ExitStack() as stack:
        for computer in computers:
            environment = {**os.environ, "DLLAMA_ZMQ_HOME": f"{folder}/node{computer.node}"}
            worker = subprocess.Popen(
                [*computer.prefix, *command, "--name", f"worker{computer.node}"],
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            stack.callback(worker.wait, 10)
            stack.callback(worker.terminate)
        time.sleep(3.0)  # they have been imported, and ask for work
        yield


if __name__ == "__main__":
    main()
