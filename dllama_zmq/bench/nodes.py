"""The nodes of one measurement: the root in this process, its workers in child processes, connected over ipc."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from dllama_zmq.bench.cases import BenchSettings
from dllama_zmq.bus import sockets
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.cluster import Limits
from dllama_zmq.errors import ClusterError, WorkerLost
from dllama_zmq.formats import ModelFile
from dllama_zmq.host import usable_cores
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.launch.fleet import Fleet
from dllama_zmq.launch.launchers import LocalLauncher
from dllama_zmq.launch.paths import ClusterPaths
from dllama_zmq.node_config import WorkerConfig
from dllama_zmq.reporting import Reporter
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sharding import DEFAULT_SEQ_LEN

_LIMITS = Limits(step_s=600.0)  # long, because a slow worker is being measured; a dead one is noticed within seconds


@contextmanager
def running_nodes(
    settings: BenchSettings, model: ModelFile, reporter: Reporter, interrupts: Interrupts
) -> Iterator[Root]:
    """The root of `settings.nodes[0]`, ready. Its workers, sockets and folders are gone after the block.

    Raises ClusterError if a worker ends or does not join. WorkerLost from the block also says how the worker ended.
    """
    nodes = settings.nodes[0]
    workers = [WorkerConfig(name=f"worker{i}", threads=nodes.threads) for i in range(1, nodes.n_nodes)]
    names = [worker.name for worker in workers]
    root_settings = RootSettings(
        names=names,
        reserved=names,
        sync=settings.sync,
        kernels=settings.kernels,
        threads=nodes.threads,
        oversubscribed=nodes.all_threads > usable_cores(),
        max_seq_len=max(DEFAULT_SEQ_LEN, *(case.n_positions for case in settings.cases)),
        max_sequences=1 + max(case.parallel for case in settings.cases),
        limits=_LIMITS,
        profile=settings.profile,
    )

    def reading(done: int, total: int) -> None:
        reporter.activity(f"{nodes}: the root reads its part of the model", done, total)

    with ExitStack() as cleanup:
        paths = ClusterPaths.of(f"bench-{os.getpid()}-{secrets.token_hex(4)}") if workers else None
        if paths is not None:
            cleanup.callback(paths.remove)
        context = sockets.Context()
        cleanup.callback(context.destroy)  # `term` would wait forever for the sockets of a root that is half made
        endpoints = None if paths is None else Endpoints([paths.ipc_steps], [paths.ipc_replies])
        with interrupts.raised():
            root = Root(context, model, root_settings, endpoints, reading)
        cleanup.callback(root.close, "the bench is over")
        if paths is None:
            yield root
            return
        launchers = [
            LocalLauncher(worker, paths, model.path, root_settings.oversubscribed, root.roster) for worker in workers
        ]
        fleet = Fleet(launchers, root.roster, _LIMITS.join_s)
        cleanup.callback(fleet.stop, _LIMITS.stop_s)
        join_until = time.monotonic() + _LIMITS.join_s

        def watch() -> None:
            if ended := fleet.first_ended():
                raise ClusterError(f"{ended} before it was ready")
            if root.any_worker_absent() and time.monotonic() > join_until:
                raise ClusterError(f"{root.missing_sentence()} after {_LIMITS.join_s:.0f} s")
            rows = root.progress()
            n_ready = sum(row.state.value == "ready" for row in rows)
            have, total = sum(row.sent_bytes + row.kept_bytes for row in rows), sum(row.total_bytes for row in rows)
            reporter.activity(f"{nodes}: {n_ready} of {len(rows)} workers ready", have, total)

        with interrupts.raised():
            root.wait_ready(join_until + _LIMITS.load_s, watch)
        try:
            yield root
        except WorkerLost as error:
            ended = fleet.first_ended()
            raise WorkerLost(f"{error}; {ended}" if ended else str(error)) from None
