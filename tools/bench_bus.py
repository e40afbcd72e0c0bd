"""Time one exchange of the bus: each node's partial sum to the root, the sum to each node. No model, no compute.

    python tools/bench_bus.py [--nodes 2] [--dim 2048] [--sync f32] [--rounds 2000] [--kernels auto]

Prints the median and the 90th percentile in microseconds, over ipc, loopback TCP and the same with CURVE, with and
without spinning before a wait blocks. Workers are child processes, as in a cluster. `--kernels numpy` takes only the
bus's slow path (bus/star.py), `simd` its fast path (bus/native/) first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time

import numpy as np
import zmq

from dllama_zmq.bus.links import Endpoints, RootLink, WorkerLink
from dllama_zmq.bus.messages import Beacon, BeaconAck, Bye, Join, Loaded, Step
from dllama_zmq.bus.roster import Roster
from dllama_zmq.bus.security import Peer, Server
from dllama_zmq.bus.sockets import SPIN_S
from dllama_zmq.bus.star import StarRoot
from dllama_zmq.bus.star_worker import StarWorker
from dllama_zmq.bus.worker_steps import StepVoid
from dllama_zmq.errors import RootLost
from dllama_zmq.kernels import Batch, KernelChoice, choose_kernels
from dllama_zmq.spec import Sync
from dllama_zmq.trust import Entry, KeyPair, Ring, Role

WAIT_S = 20.0


def be_worker(
    replies: str,
    steps: str,
    nodes: int,
    kernels: KernelChoice,
    sync: Sync,
    dim: int,
    spin_s: float,
    security: Peer | None,
) -> None:
    """Be a worker: answer the exchanges of one step until it ends."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    identity = f"bench-{multiprocessing.current_process().name}".encode()
    link = WorkerLink(context, replies, identity, spin_s, security=security)
    link.subscribe(steps)
    while not link.send(Join("", "", 0, "", "", 1, None)):
        time.sleep(0.01)
    link.send(Loaded(0))
    comm = StarWorker(link, choose_kernels(kernels, 1, oversubscribed=True), sync, dim, nodes, WAIT_S)
    partial = np.random.default_rng(1).standard_normal((1, dim)).astype(np.float32)
    try:
        while True:
            arrived = link.receive(time.monotonic() + WAIT_S)
            if arrived is None:
                return
            message, frames = arrived
            if isinstance(message, Beacon) and message.epoch != comm.steps.epoch:
                comm.steps.epoch = message.epoch
                link.send(BeaconAck(message.epoch))
            elif isinstance(message, Step):
                comm.begin(message, frames)
                while True:
                    comm.all_reduce(partial)
            elif isinstance(message, Bye):
                return
    except (StepVoid, RootLost):
        return
    finally:
        link.close()
        context.term()


def measure(
    transport: str, nodes: int, kernels: KernelChoice, dim: int, sync: Sync, rounds: int, spin_s: float
) -> list[float]:
    """Seconds of each of `rounds` exchanges."""
    names = [f"worker{i}" for i in range(1, nodes)]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        if transport == "ipc":
            steps, replies = f"ipc://{folder}/s", f"ipc://{folder}/r"
        else:
            steps, replies = "tcp://127.0.0.1:5671", "tcp://127.0.0.1:5670"
        roster = Roster(names, 1)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        keys = KeyPair.new()
        ring, peer = Ring([Entry(Role.worker, "", keys.public)], workers=names), Peer(keys, keys.public)
        server = Server(keys, ring, Role.worker, everywhere=True) if transport == "curve" else None

        link = RootLink(context, Endpoints([steps], [replies], security=server), spin_s, roster)
        spawn = multiprocessing.get_context("spawn")
        workers = [
            spawn.Process(
                target=be_worker,
                args=(replies, steps, nodes, kernels, sync, dim, spin_s, peer if transport == "curve" else None),
            )
            for _ in names
        ]
        for worker in workers:
            worker.start()
        try:
            _gather_workers(link, roster)
            return _exchange(link, roster, kernels, sync, dim, rounds)
        finally:
            for member in roster.members:
                link.send(member.identity, member.name, Bye(False, "done"))
            link.close()
            for worker in workers:
                worker.join(5.0)
                worker.kill()
            context.term()


def _gather_workers(link: RootLink, roster: Roster) -> None:
    deadline = time.monotonic() + WAIT_S
    while not roster.ready:
        if time.monotonic() > deadline:
            raise SystemExit("the workers did not come")
        link.publish(Beacon(roster.epoch))
        while (arrived := link.receive(time.monotonic() + 0.05)) is not None:
            identity, message, _ = arrived
            if isinstance(message, Join):
                roster.join(identity, message)
            elif (member := roster.find(identity)) is not None:
                if isinstance(message, Loaded):
                    roster.set_loaded(member)
                elif isinstance(message, BeaconAck):
                    roster.set_ready(member, message.epoch)


def _exchange(link: RootLink, roster: Roster, kernels: KernelChoice, sync: Sync, dim: int, rounds: int) -> list[float]:
    star = StarRoot(link, roster, choose_kernels(kernels, 1, oversubscribed=True), sync, WAIT_S)
    partial = np.random.default_rng(0).standard_normal((1, dim)).astype(np.float32)
    star.begin(Batch.alone(0, 1), partial, [], [])
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        star.all_reduce(partial)
        seconds.append(time.perf_counter() - start)
    return seconds[rounds // 10 :]  # the first ones warm caches and branch predictors


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--sync", choices=["f32", "f16", "q80"], default="f32")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--kernels", choices=["auto", "simd", "numpy"], default="auto")
    args = parser.parse_args()
    print(f"{args.nodes} nodes, {args.dim} values in {args.sync}, {args.rounds} exchanges", file=sys.stderr)
    print("| transport | spin us | median us | 90% us |\n| --- | --- | --- | --- |")
    for transport in ("ipc", "tcp", "curve"):
        for spin_s in (SPIN_S, 0.0):
            seconds = measure(transport, args.nodes, args.kernels, args.dim, args.sync, args.rounds, spin_s)
            us = sorted(s * 1e6 for s in seconds)
            median, late = statistics.median(us), us[int(len(us) * 0.9)]
            print(f"| {transport} | {spin_s * 1e6:.0f} | {median:.0f} | {late:.0f} |", flush=True)


if __name__ == "__main__":
    main()
