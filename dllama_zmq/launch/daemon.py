"""A cluster in this process and its children: the root, its sockets for clients, this host's workers; until stopped."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

import zmq

from dllama_zmq import __version__
from dllama_zmq.bus import sockets
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.cluster import Cluster, ClusterFile, WorkerConfig, is_loopback
from dllama_zmq.errors import ClusterError
from dllama_zmq.formats import open_model, read_tokenizer
from dllama_zmq.launch.fleet import Fleet
from dllama_zmq.launch.paths import Places
from dllama_zmq.root.report import ClusterFacts
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.service import Service

logger = logging.getLogger(__name__)

_LOCK_S = 1.0  # who looks whether the cluster runs holds its lock for an instant


def run_cluster(file: ClusterFile) -> None:
    """Run the cluster that `file` describes until a client or a signal stops it.

    Raises ConfigError, FormatError, PlanError, BusError (a port in use) before anything runs; ClusterError where it
    runs already or a worker cannot be kept alive. Whatever happens, no child and no socket is left behind.
    """
    cluster, places = file.cluster, Places.of(file.cluster.name)
    with ExitStack() as cleanup:
        cleanup.enter_context(_only_one(places, cluster.name))
        model = cleanup.enter_context(open_model(file.model_path()))
        tokenizer = read_tokenizer(file.tokenizer_path())
        tokenizer.check_fits(model.spec, model.path)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        cleanup.callback(context.term)
        root = Root(context, model, root_settings(cluster), _endpoints(cluster, places))
        cleanup.callback(root.close, "the cluster went down", stay=True)
        clients = sockets.bind(context, zmq.ROUTER, [*_listen(cluster, cluster.root.ports.clients), places.ipc_clients])
        cleanup.callback(clients.close)
        fleet = Fleet(local_workers(cluster), places)
        cleanup.callback(fleet.stop, cluster.limits.stop_s)
        facts = ClusterFacts(cluster.name, __version__, str(model.path))
        service = Service(root, tokenizer, clients, facts, every_turn=fleet.watch)
        cleanup.enter_context(_announced(places, file))
        cleanup.enter_context(_stopped_by_signals(service))
        logger.info("up name=%s nodes=%d model=%s sync=%s", cluster.name, cluster.n_nodes, model.path, cluster.sync)
        service.run()
        logger.info("going down")


def local_workers(cluster: Cluster) -> list[WorkerConfig]:
    """The workers that run on the root's own host, as its children."""
    return [worker for worker in cluster.workers if is_loopback(worker.host)]


def root_settings(cluster: Cluster) -> RootSettings:
    """What the root needs to know of a cluster."""
    return RootSettings(
        names=[worker.name for worker in cluster.workers],
        reserved=[worker.name for worker in local_workers(cluster)],
        sync=cluster.sync,
        kernels=cluster.kernels,
        threads=cluster.root.threads,
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


@contextmanager
def _stopped_by_signals(service: Service) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        service.stop()

    kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
