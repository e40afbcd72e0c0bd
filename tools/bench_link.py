"""Speed and bytes of prompts and decoding over slow links: each node is in its own network namespace on this computer.

    sudo .venv/bin/python tools/bench_link.py MODEL [--nodes 2,4] [--mbit 1000,100] [--sync f32,q80] [-p 128] [-n 16]
                                              [--security curve,none]

MODEL: a model file; `dllama-zmq bench --shape tinyllama` leaves one in ~/.cache/dllama-zmq/shapes. Each node has one
thread and a link to a bridge, which `tc tbf` limits to MBIT Mbit/s in each direction; the latency is this computer's.
Prints tokens/s and the share of the time that the root waited, and the same for one node. Of each decoded token it
prints the kB of all workers, both ways, as netstat counts them, and how much more the root's interface carried, without
and with the headers of Ethernet and TCP/IP. It says whether the decoded tokens are those of one node.
Needs Linux, root, iproute2.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
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
HEADER_BYTES = 66  # of each packet: Ethernet 14, IPv4 20, TCP with timestamps 32


class Figures(msgspec.Struct):
    """What the root of one cluster measured. Bytes are those of all decoded tokens, both ways.

    prompts_per_s: of each prompt. waits: the shares of a prompt's time and of a token's that the root waited.
    """

    prompts_per_s: list[float]
    tokens_per_s: float
    waits: tuple[float, float]
    tokens: list[int]
    wire_bytes: int
    interface_bytes: int
    packets: int


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--nodes", type=numbers, default=[2], help="comma-separated")
    parser.add_argument("--mbit", type=numbers, default=[1000, 100], help="comma-separated; 0: no limit")
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
    print("| Mbit/s | nodes | sync | security | prompt, tokens/s | waiting | decoding, tokens/s | waiting ", end="")
    print("| kB/token | TCP | all headers | tokens |")
    print("| ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |", flush=True)
    rest = ["-p", str(args.prompt), "-n", str(args.tokens), "-r", str(args.repetitions)]
    alone = measured([], [str(args.model), "--nodes", "1", "--sync", "f32", *rest])
    show(["", "1", "", ""], alone, alone)
    for mbit, nodes in itertools.product(args.mbit, args.nodes):
        with network(NAMES, nodes, mbit) as computers:
            for sync, security in itertools.product(args.sync, args.security):
                words = f"--nodes {nodes} --sync {sync} --security {security}".split()
                with a_home(), workers(computers[1:], security):
                    figures = measured(computers[0].prefix, [str(args.model), *words, *rest])
                show([str(mbit or "-"), str(nodes), sync, security], figures, alone)


def numbers(text: str) -> list[int]:
    """Parse numbers of 0 or more. argparse reports the errors."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 0:
        raise ValueError(text)
    return found


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


def measured(prefix: Sequence[str], arguments: Sequence[str]) -> Figures:
    """Measure in a child process."""
    command = [*prefix, sys.executable, __file__, "--inside", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=CHILD_S)
    if done.returncode:
        sys.exit(done.returncode)
    return msgspec.json.decode(done.stdout, type=Figures)


def show(first: Sequence[str], figures: Figures, alone: Figures) -> None:
    """Print a row of the table."""
    speeds, n_tokens, n_bytes = figures.prompts_per_s, len(figures.tokens), figures.wire_bytes
    deviation = statistics.stdev(speeds) if len(speeds) > 1 else 0.0
    cells = [*first, f"{statistics.mean(speeds):.1f} ± {deviation:.1f}", f"{figures.waits[0]:.1%}"]
    cells += [f"{figures.tokens_per_s:.1f}", f"{figures.waits[1]:.1%}"]
    of_bytes = ["", "", "", ""]
    if n_bytes:
        carried = figures.interface_bytes - HEADER_BYTES * figures.packets
        same = "equal" if figures.tokens == alone.tokens else "others"
        of_bytes = [f"{n_bytes / n_tokens / 1000:.1f}", f"{carried / n_bytes - 1:+.2%}"]
        of_bytes += [f"{figures.interface_bytes / n_bytes - 1:+.1%}", same]
    print(f"| {' | '.join([*cells, *of_bytes])} |", flush=True)


def measure(args: argparse.Namespace) -> None:
    """Be the root: measure and print the figures."""
    nodes, n_prompt, n_tokens = args.nodes[0], args.prompt, args.tokens
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    settings = RootSettings(
        names=[f"worker{i}" for i in range(1, nodes)],
        sync=args.sync[0],
        threads=1,
        max_seq_len=n_prompt + n_tokens + 2,
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
            decoded = [evaluate(root, n_prompt, [5])]
            before, interface_before = wire_bytes(root), interface()
            for i in range(n_tokens):
                decoded.append(evaluate(root, n_prompt + 1 + i, [decoded[-1][0]]))
            after, interface_after = wire_bytes(root), interface()
            root.close("measured")
    except DllamaError as error:
        sys.exit(str(error))
    context.term()
    of_prompts, of_tokens = [step for _, step in prompts], [step for _, step in decoded[1:]]
    figures = Figures(
        prompts_per_s=[n_prompt / step.wall_s for step in of_prompts],
        tokens_per_s=n_tokens / sum(step.wall_s for step in of_tokens),
        waits=(waiting(of_prompts), waiting(of_tokens)),
        tokens=[token for token, _ in decoded[1:]],
        wire_bytes=after - before,
        interface_bytes=interface_after[0] - interface_before[0],
        packets=interface_after[1] - interface_before[1],
    )
    print(msgspec.json.encode(figures).decode())


def evaluate(root: Root, start: int, tokens: list[int]) -> tuple[int, StepStats]:
    """Evaluate one step; returns the best token after its last row too."""
    (row,), step = root.evaluate(Batch.alone(start, len(tokens)), tokens, {len(tokens) - 1: Ask(1)})
    return int(row.ids[0]), step


def wire_bytes(root: Root) -> int:
    """What netstat has counted so far, both ways; 0 on one node."""
    return 0 if root.link is None else sum(tally.wire_bytes for tally in root.link.meter.tallies())


def interface() -> tuple[int, int]:
    """Bytes and packets over this namespace's interface so far, both ways; 0 on one node."""
    folder = Path("/sys/class/net/eth/statistics")
    if not folder.exists():
        return 0, 0
    n_bytes, packets = (
        sum(int((folder / f"{way}_{what}").read_text()) for way in ("rx", "tx")) for what in ("bytes", "packets")
    )
    return n_bytes, packets


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
