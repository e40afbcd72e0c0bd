"""A cluster in this process and its children: the root, its sockets for clients, this host's workers; until stopped."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

import msgspec
import zmq

from dllama_zmq import __version__
from dllama_zmq.bus import sockets
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.cluster import Cluster, ClusterFile, WorkerConfig, is_loopback
from dllama_zmq.errors import ClusterError
from dllama_zmq.formats import open_model, read_tokenizer
from dllama_zmq.host import usable_cores
from dllama_zmq.launch.cores import shared
from dllama_zmq.launch.fleet import Fleet
from dllama_zmq.launch.owner import at_end_of_stdin
from dllama_zmq.launch.paths import Places
from dllama_zmq.root.report import ClusterFacts
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.service import Service

logger = logging.getLogger(__name__)

_LAST_WORD_MS = 200  # for what clients are told last
_LOCK_S = 1.0  # who looks whether the cluster runs holds its lock for an instant


def run_cluster(file: ClusterFile, leave_with_stdin: bool = False) -> None:
    """Run the cluster that `file` describes until a client or a signal stops it.

    With `leave_with_stdin` it also ends after the end of stdin, as soon as no request is open.

    Raises ConfigError, FormatError, PlanError, BusError (a port in use) before anything runs; ClusterError where it
    runs already or a worker cannot be kept alive. Whatever happens, no child and no socket is left behind.
    """
    cluster, places = file.cluster, Places.of(file.cluster.name)
    signals = _Signals()
    with suppress(_Stopped), signals.caught(), ExitStack() as cleanup:
        with signals.raised():
            cleanup.enter_context(_only_one(places, cluster.name))
            cleanup.callback(places.clear)  # libzmq leaves the files of its ipc sockets behind
            model = cleanup.enter_context(open_model(file.model_path(), cluster.weight_type))
            tokenizer = read_tokenizer(file.tokenizer_path())
            tokenizer.check_fits(model.spec, model.path)
            if doubt := tokenizer.doubt(model.spec, model.path):
                logger.warning("%s", doubt)
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            cleanup.callback(context.destroy)  # `term` would wait for ever for the sockets of half a root
            root = Root(context, model, root_settings(cluster), _endpoints(cluster, places))
            cleanup.callback(root.close, "the cluster went down", stay=True)
            clients = sockets.bind(
                context, zmq.ROUTER, [*_listen(cluster, cluster.root.ports.clients), places.ipc_clients]
            )
            cleanup.callback(clients.close, linger=_LAST_WORD_MS)
        _, workers, crowded = node_threads(cluster)
        fleet = Fleet(workers, places, crowded)
        cleanup.callback(fleet.stop, cluster.limits.stop_s)
        facts = ClusterFacts(cluster.name, __version__, str(model.path))
        service = Service(root, tokenizer, clients, facts, every_turn=fleet.watch)
        cleanup.enter_context(_announced(places, file))
        signals.then(service.stop)
        if leave_with_stdin:
            at_end_of_stdin(service.stop_when_idle)
        logger.info("up name=%s nodes=%d model=%s sync=%s", cluster.name, cluster.n_nodes, model.path, cluster.sync)
        service.run()
        logger.info("going down")


def local_workers(cluster: Cluster) -> list[WorkerConfig]:
    """The workers that run on the root's own host, as its children."""
    return [worker for worker in cluster.workers if is_loopback(worker.host)]


def node_threads(cluster: Cluster) -> tuple[int, list[WorkerConfig], bool]:
    """The root's threads, this host's workers with theirs as numbers, and whether cores are too few for them all."""
    workers = local_workers(cluster)
    (own, *others), crowded = shared([cluster.root.threads, *(worker.threads for worker in workers)], usable_cores())
    counted = [msgspec.structs.replace(worker, threads=n) for worker, n in zip(workers, others, strict=True)]
    return own, counted, crowded


def root_settings(cluster: Cluster) -> RootSettings:
    """What the root needs to know of a cluster."""
    threads, _, crowded = node_threads(cluster)
    return RootSettings(
        names=[worker.name for worker in cluster.workers],
        reserved=[worker.name for worker in local_workers(cluster)],
        sync=cluster.sync,
        kernels=cluster.kernels,
        kv_type=cluster.kv_cache,
        threads=threads,
        crowded=crowded,
        max_seq_len=cluster.max_seq_len,
        limits=cluster.limits,
    )


def _endpoints(cluster: Cluster, places: Places) -> Endpoints:
    ports = cluster.root.ports
    return Endpoints(
        _listen(cluster, ports.steps), _listen(cluster, ports.replies), places.ipc_steps, places.ipc_replies
    )


def _listen(cluster: Cluster, port: int) -> list[str]:
    return [cluster.root.endpoint(port)]


@contextmanager
def _only_one(places: Places, name: str) -> Iterator[None]:
    """Hold the cluster's lock; it falls with the process, however that ends."""
    with (places.run / "lock").open("w") as lock:
        deadline = time.monotonic() + _LOCK_S
        while not _lock(lock):
            if time.monotonic() > deadline:
                raise ClusterError(f"cluster {name!r} is running already; `dllama-zmq down` stops it")
            time.sleep(0.02)
        yield


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _announced(places: Places, file: ClusterFile) -> Iterator[None]:
    """Tell others of this host where the cluster is, by a file that appears whole and goes with it."""
    known = {"pid": os.getpid(), "clients": places.ipc_clients, "path": str(Path(file.path).absolute())}
    draft = places.cluster_file.with_suffix(".draft")
    draft.write_text(json.dumps(known))
    draft.replace(places.cluster_file)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            places.cluster_file.unlink()


class _Stopped(Exception):
    """A signal came before there was anything to stop."""


class _Signals:
    """SIGINT, SIGTERM and SIGHUP: what is being set up ends at once, what runs is told, what is ending is let be."""

    def __init__(self) -> None:
        self._came = False
        self._raise = False
        self._stop: Callable[[], None] = lambda: None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Until the end of the block none of these signals ends the process by itself; an ignored one stays ignored."""
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup, or `&`
        kept = {number: signal.signal(number, self._take) for number in heard}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """In this block the first signal raises _Stopped."""
        self._raise = True
        try:
            yield
        finally:
            self._raise = False

    def then(self, stop: Callable[[], None]) -> None:
        """From now on a signal calls `stop`, and so does one that has come already."""
        self._stop = stop
        if self._came:
            stop()

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        self._stop()
        if self._raise:
            self._raise = False  # what ends the block must not be broken off
            raise _Stopped
