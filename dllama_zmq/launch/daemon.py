"""The root's process: the root, the sockets for clients, and this host's workers as children, until it is stopped."""

from __future__ import annotations

import logging
import os
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from dllama_zmq import __version__
from dllama_zmq.bus import sockets
from dllama_zmq.bus.addresses import ip_addresses, listening
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.bus.security import Server
from dllama_zmq.cluster import Cluster, ClusterFile, is_loopback
from dllama_zmq.constraint.matching import Vocabulary
from dllama_zmq.errors import ClusterError, DllamaError
from dllama_zmq.front.process import FrontProcess
from dllama_zmq.host import require_open_files
from dllama_zmq.hub import HUB_PREFIX
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.launch.fleet import Fleet
from dllama_zmq.launch.gateway import Gateway, address_of, inherited, listen
from dllama_zmq.launch.invitations import root_for
from dllama_zmq.launch.launchers import Launcher, LocalLauncher, SshLauncher
from dllama_zmq.launch.local_nodes import local_workers, node_threads, open_checked
from dllama_zmq.launch.locks import await_last_user
from dllama_zmq.launch.parent_watch import at_end_of_stdin
from dllama_zmq.launch.paths import ClusterPaths, as_text, cache_folder
from dllama_zmq.launch.ports import check_ports
from dllama_zmq.launch.public_state import PublicState
from dllama_zmq.launch.registry import Record, only_one
from dllama_zmq.launch.remote import check_computers
from dllama_zmq.node_config import WorkerConfig
from dllama_zmq.reporting import Reporter
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.report import ClusterFacts
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.serving import Serving
from dllama_zmq.sources import DEMO
from dllama_zmq.trust import KeyPair, Ring, Role, own_key

logger = logging.getLogger(__name__)

_FILES_OF_ROOT, _FILES_OF_PEER = 20, 3  # files opened by libzmq, the kernels' threads and pipes, as counted in /proc
_FRONT_END_S = 1.0  # for the front to close its connections, when everything else has ended
_STEP_SHARE = 0.25  # of limits.stop_s: for the current step to end; then it is interrupted
_FLEET_SHARE = 0.5  # of limits.stop_s: for the workers to leave; then they are killed


def run_started(name: str, lock: int, api: int | None, reporter: Reporter) -> None:
    """Run the root of the cluster that another process starts under `name`; the descriptor `lock` holds its lock.

    api: the descriptor on which its API server will listen; None: the cluster has none.

    The root ends when stdin is closed and no other command uses the cluster. If STAY was written to stdin, it stays.
    Raises as `run_cluster` does.
    """
    started = Record.read(ClusterPaths.of(name).started_file)
    if started is None:
        raise ClusterError(f"{ClusterPaths.of(name).started_file}: it records no start of a cluster")
    run_cluster(started.file, reporter, lock, None if api is None else inherited(api))


def run_cluster(
    file: ClusterFile, reporter: Reporter, lock: int | None = None, api: socket.socket | None = None
) -> None:
    """Run the cluster of `file` until a client or a signal stops it. `reporter` shows its start.

    lock: the descriptor of the cluster's lock, if the process that started this one holds it. The cluster then ends
    with that process, and `api` is the port of its API server (None: it has none).

    Raises ConfigError, FormatError, PlanError or BusError (a port in use) before anything runs; ClusterError if the
    cluster runs already or a worker keeps dying. No child and no socket is left behind.
    """
    cluster, paths = file.cluster, ClusterPaths.of(file.cluster.name)
    interrupts = Interrupts()
    with suppress(KeyboardInterrupt, SystemExit), interrupts.caught(), ExitStack() as cleanup:
        with interrupts.raised():
            own_lock = cleanup.enter_context(only_one(file, paths, lock))
            if lock is None:
                paths.begin_logs()
            else:
                at_end_of_stdin(lambda: _leave(paths))
            cleanup.callback(paths.clear)  # libzmq leaves the files of its ipc sockets behind
            check_ports(cluster)
            keys = own_key() if cluster.secured else None
            if cluster.warning:
                logger.warning("%s", cluster.warning)
            if lock is None:
                check_computers(file, reporter)
                api = listen(file)
            if api is not None:
                cleanup.callback(api.close)
            public = PublicState(file, paths, reporter)
            public.activity(f"the root opens {as_text(Path(file.model_path().name))} and its tokenizer")
            model, tokenizer = open_checked(file, lambda sentence: reporter.line(f"warning: {sentence}"))
            cleanup.enter_context(model)
            require_open_files(_FILES_OF_ROOT + _FILES_OF_PEER * len(cluster.workers))
        # a thread that shows progress during the fork could leave a lock taken in the child forever
        reporter.activity("")
        front = FrontProcess(
            paths.ipc("front"),
            tokenizer,
            [own_lock, *([] if api is None else [api.fileno()])],
            _security(file, Role.client, keys),
        )  # a signal waits: a child must not be unknown
        cleanup.callback(front.end, _FRONT_END_S)
        gateway = None if api is None else Gateway(file, paths, api, __version__)
        if gateway is not None:
            cleanup.callback(gateway.stop, cluster.limits.stop_s * _FLEET_SHARE)
        context = sockets.Context()
        cleanup.callback(context.destroy)  # `term` would wait forever for the sockets of a root that is half made
        with interrupts.raised():
            root = Root(
                context,
                model,
                root_settings(cluster),
                replace(_endpoints(cluster, paths), security=_security(file, Role.worker, keys)),
                lambda done, total: public.activity("the root reads its part of the model", done, total),
            )
            cleanup.push(lambda kind, error, traceback: root.close(_why_down(root, error), stay=True))
            url = "" if api is None else address_of(api)
            created = int(model.path.stat().st_mtime) if model.path.exists() else 0
            path, name = as_text(model.path), _name_of(cluster.model)
            facts = ClusterFacts(cluster.name, __version__, path, name, url, created, cluster.reached_by)
            link = sockets.pair(context, paths.ipc("front"), bind=True)
            serving = Serving(
                Engine(root, cluster.max_sequences, Vocabulary(tokenizer, root.spec.vocab_size)), link, facts
            )
            serving.open([*_listen(cluster, "clients"), paths.ipc("clients")])
        _, workers, oversubscribed = node_threads(cluster)
        launchers: list[Launcher] = [
            LocalLauncher(
                worker, paths, [*_cache_words(cluster), "--model", str(model.path)], oversubscribed, root.roster
            )
            for worker in workers
        ]
        launchers += [
            SshLauncher(worker, paths, [*_root_words(cluster, worker, keys), *_cache_words(cluster)], root.roster)
            for worker in cluster.workers
            if worker.ssh
        ]
        fleet = Fleet(launchers, root.roster, cluster.limits.join_s)
        cleanup.callback(fleet.stop, cluster.limits.stop_s * _FLEET_SHARE)
        cleanup.callback(public.remove)
        public.up(root, facts.api)

        def every_turn() -> None:
            fleet.watch()
            if gateway is not None:
                gateway.watch()
            public.update()
            front.check()

        with interrupts.then(serving.stop, cluster.limits.stop_s * _STEP_SHARE):
            serving.run(every_turn)
        logger.info("going down")


def root_settings(cluster: Cluster) -> RootSettings:
    """The root's settings for `cluster`."""
    threads, _, oversubscribed = node_threads(cluster)
    return RootSettings(
        names=[worker.name for worker in cluster.workers],
        reserved=[worker.name for worker in local_workers(cluster)],
        addresses={
            worker.name: ip_addresses(worker.host) for worker in cluster.workers if not is_loopback(worker.host)
        },
        sync=cluster.sync,
        kernels=cluster.kernels,
        kv_type=cluster.kv_cache,
        threads=threads,
        oversubscribed=oversubscribed,
        max_seq_len=cluster.max_seq_len,
        max_sequences=cluster.max_sequences,
        kv_bytes=cluster.kv_bytes,
        check_memory=cluster.check_memory,
        limits=cluster.limits,
        hashes=cache_folder("hashes"),
        tiles=cache_folder("slices"),
        cache_bytes=cluster.cache_bytes,
    )


def _root_words(cluster: Cluster, worker: WorkerConfig, keys: KeyPair | None) -> list[str]:
    """The flags with which a worker over ssh finds the root and verifies it."""
    security = [f"--root-key={keys.public}"] if keys is not None else ["--security", "none"]
    return ["--root", root_for(cluster, worker.host), *security]


def _cache_words(cluster: Cluster) -> list[str]:
    """The flag with which a worker has the bound of the file for kept weights."""
    return [] if cluster.cache_bytes is None else ["--cache", f"{cluster.cache_bytes // 10**6}MB"]


def _endpoints(cluster: Cluster, paths: ClusterPaths) -> Endpoints:
    steps, replies = _listen(cluster, "steps"), _listen(cluster, "replies")
    if not steps:
        return Endpoints([paths.ipc("steps")], [paths.ipc("replies")])
    return Endpoints(steps, replies, paths.ipc("steps"), paths.ipc("replies"))


def _security(file: ClusterFile, role: Role, keys: KeyPair | None) -> Server | None:
    """The keys that may connect from other computers; None if no computer can, or any may.

    Each process has a ring of its own: it reads the files again when they change.
    """
    return None if keys is None else Server(keys, Ring.of(file), role)


def _listen(cluster: Cluster, port: Literal["steps", "replies", "clients"]) -> list[str]:
    """The TCP addresses of `port`; none if all nodes and clients are on this computer and use ipc."""
    return [] if cluster.tcp_ports is None else listening(cluster.root.endpoint(getattr(cluster.tcp_ports, port)))


def _name_of(model: str) -> str:
    """The name of a model of a hub, as the cluster's file gives it; "" for a path."""
    return model.removeprefix(HUB_PREFIX) if model.startswith(HUB_PREFIX) or model == DEMO else ""


def _why_down(root: Root, error: BaseException | None) -> str:
    """The reason that workers get when the cluster goes down: its error, or who was missing."""
    if isinstance(error, DllamaError):
        return f"the cluster went down: {error}"
    missing = root.missing_sentence()
    return f"the cluster went down before it was ready: {missing}" if missing else "the cluster went down"


def _leave(paths: ClusterPaths) -> None:
    """End this process, as a signal would, once no command uses its cluster."""
    await_last_user(paths)
    os.kill(os.getpid(), signal.SIGTERM)
