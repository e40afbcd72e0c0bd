"""The nodes of one measurement: the root in this process, its workers as child processes over ipc, none left behind."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import zmq

from dllama_zmq.bus.links import Endpoints
from dllama_zmq.cluster import Limits, WorkerConfig
from dllama_zmq.errors import ClusterError, WorkerLost
from dllama_zmq.formats import ModelFile
from dllama_zmq.host import usable_cores
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.kernels import KernelChoice
from dllama_zmq.launch.fleet import Fleet
from dllama_zmq.launch.paths import Places
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.spec import Sync
from dllama_zmq.telling import Tells

_LIMITS = Limits(step_s=600.0)  # a dead worker is known within seconds whatever this is; a slow one is being measured


@dataclass(frozen=True, slots=True)
class Nodes:
    """How many nodes, and with how many compute threads each."""

    n_nodes: int
    threads: int

    @property
    def all_threads(self) -> int:
        return self.n_nodes * self.threads

    def __str__(self) -> str:
        nodes, threads = (
            f"{n} {what}" if n == 1 else f"{n} {what}s"
            for n, what in ((self.n_nodes, "node"), (self.threads, "thread"))
        )
        return f"{nodes} of {threads}"


@contextmanager
def running(
    nodes: Nodes,
    model: ModelFile,
    sync: Sync,
    kernels: KernelChoice,
    seq_len: int,
    profile: bool,
    tells: Tells,
    interrupts: Interrupts,
) -> Iterator[Root]:
    """A root whose nodes are ready; they, their sockets and their folders are gone at the end of the block.

    profile: the root's kernels are timed (`Root.kernels`).

    Raises ClusterError where a worker ends or does not come; WorkerLost from the block says how the worker ended.
    """
    workers = [WorkerConfig(name=f"worker{i}", threads=nodes.threads) for i in range(1, nodes.n_nodes)]
    settings = RootSettings(
        names=[worker.name for worker in workers],
        reserved=[worker.name for worker in workers],
        sync=sync,
        kernels=kernels,
        threads=nodes.threads,
        crowded=nodes.all_threads > usable_cores(),
        max_seq_len=seq_len,
        limits=_LIMITS,
        profile=profile,
    )
    with ExitStack() as cleanup:
        places = cleanup.enter_context(_own_places()) if workers else None
        endpoints = Endpoints([places.ipc_steps], [places.ipc_replies]) if places else None
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        cleanup.callback(context.destroy)  # `term` would wait for ever for the sockets of half a root
        reading = f"{nodes}: the root reads its part of the model"
        with interrupts.raised():
            root = Root(context, model, settings, endpoints, lambda done, total: tells.now(reading, done, total))
        cleanup.callback(root.close, "the bench is over")
        if places is None:
            yield root
            return
        fleet = Fleet(workers, places, settings.crowded)
        cleanup.callback(fleet.stop, _LIMITS.stop_s)
        with interrupts.raised():
            _form(root, fleet, places, nodes, tells)
        try:
            yield root
        except WorkerLost as error:
            ended = fleet.first_ended()
            raise WorkerLost(f"{error}; {ended}" if ended else str(error)) from None


def _form(root: Root, fleet: Fleet, places: Places, nodes: Nodes, tells: Tells) -> None:
    join_until = time.monotonic() + _LIMITS.join_s

    def watch() -> None:
        ended = fleet.first_ended()
        if ended:
            raise ClusterError(f"{ended} before it was ready: {_last_words(places, ended.split()[0])}")
        if root.anybody_absent() and time.monotonic() > join_until:
            raise ClusterError(f"{root.missing_sentence()} after {_LIMITS.join_s:.0f} s")
        rows = root.progress()
        sent, total = sum(row.sent_bytes for row in rows), sum(row.total_bytes for row in rows)
        n_ready = sum(row.state.value == "ready" for row in rows)
        tells.now(f"{nodes}: {n_ready} of {len(rows)} workers ready", sent, total)

    root.form(join_until + _LIMITS.load_s, watch)


@contextmanager
def _own_places() -> Iterator[Places]:
    """Folders that no cluster and no other bench has, removed at the end."""
    places = Places.of(f"bench-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield places
    finally:
        for folder in (places.run, places.logs):
            shutil.rmtree(folder, ignore_errors=True)


def _last_words(places: Places, worker: str) -> str:
    """The last line of a worker's log, which goes with the bench."""
    try:
        lines = places.log(worker).read_text(errors="replace").split("\n")
    except OSError:
        return "it left no log"
    said = [line.removeprefix("error: ") for line in lines if line.strip()]
    return said[-1] if said else "it said nothing"
