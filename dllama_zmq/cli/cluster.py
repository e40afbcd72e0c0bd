"""`up`, `down`, `status`, `logs`: a cluster's life, told to people."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from dllama_zmq.cli.overrides import Overrides
from dllama_zmq.cli.progress import Arrivals, Display, duration, note_on
from dllama_zmq.cli.show import note
from dllama_zmq.client import CONNECT_S
from dllama_zmq.cluster import ClusterFile, is_loopback, load_cluster
from dllama_zmq.errors import ClusterError
from dllama_zmq.launch.daemon import run_cluster, run_started
from dllama_zmq.launch.lifecycle import Listener, bring_up, commands_elsewhere, take_down
from dllama_zmq.launch.paths import Places
from dllama_zmq.launch.registry import Record, address_elsewhere, await_running, cluster_here, connect
from dllama_zmq.telling import human_bytes


def be_cluster(path: Path, overrides: Overrides) -> None:
    """Be the cluster's root, in the foreground."""
    with threadpool_limits(limits=1), Display() as display:
        run_cluster(overrides.apply(load_cluster(path)), display)


def be_started_cluster(name: str, lock: int) -> None:
    """Be the root of a cluster that another process is starting."""
    with threadpool_limits(limits=1), Display() as display:
        run_started(name, lock, display)


def up(path: Path, overrides: Overrides) -> None:
    """Bring the cluster up in the background."""
    file = overrides.apply(load_cluster(path))
    start = time.monotonic()
    try:
        with listening(file) as listener:
            status = bring_up(file, listener)
    except KeyboardInterrupt:
        note(f"stopped; {file.cluster.name} is down")
        raise
    nodes = "1 node" if len(status.nodes) == 1 else f"{len(status.nodes)} nodes"
    where = "" if path == Path("cluster.yaml") else f" --cluster {shlex.quote(str(path))}"
    note(
        f"{status.name} is up: {nodes} in {time.monotonic() - start:.1f} s. "
        f'Try: dllama-zmq generate "Once upon a time"{where}'
    )


@contextmanager
def listening(file: ClusterFile, for_this_call: bool = False) -> Iterator[Listener]:
    """Tells on stderr, in this block, what to start elsewhere and how far each worker is."""
    with Display() as display:

        def begin() -> None:
            if for_this_call:
                display.line(
                    f"{file.cluster.name} is not running: bringing up {file.path} for this call "
                    "(`dllama-zmq up` keeps it)"
                )
            for command in commands_elsewhere(file.cluster).values():
                display.line(f"start {command}")

        yield Listener(Arrivals(display).show, display, begin, patient=display.is_live)


def down(path: Path) -> None:
    """Take the cluster down."""
    file = cluster_here(path)
    start = time.monotonic()
    if take_down(file):
        note(f"{file.cluster.name} is down, in {time.monotonic() - start:.1f} s")
    else:
        note(f"{file.cluster.name} was not running")


def status(path: Path, as_json: bool) -> None:
    """Show the cluster's state; exit code 1 where it is not running."""
    file = cluster_here(path)
    if as_json and address_elsewhere(file.cluster) is None and await_running(file, CONNECT_S) is None:
        print('{"state":"down"}')  # noqa: T201
        raise SystemExit(1)
    with connect(file) as client:
        found = client.status(wait_s=10.0)
    if as_json:
        fields = {name: getattr(found, name) for name in found.__struct_fields__ if name != "id"}  # on the bus: a list
        sys.stdout.write(msgspec.json.encode(fields).decode() + "\n")
        return
    console = Console(highlight=False, markup=False)
    console.print(
        f"{found.name}: {found.state}, up {duration(found.uptime_s)}, {found.active} running, {found.queued} waiting"
    )
    console.print(f"model: {os.path.normpath(found.model)}", soft_wrap=True)
    console.print(f"sync {found.sync}, kernels {found.kernels}, {found.seq_len} positions")
    table = Table("node", "state", "process", "weights", "KV cache", "note", box=None, pad_edge=False)
    for node in found.nodes:
        table.add_row(
            node.name,
            node.state,
            str(node.pid or ""),
            human_bytes(node.weight_bytes),
            human_bytes(node.kv_bytes),
            note_on(node),
        )
    console.print(table)


def logs(path: Path, node: str, n_lines: int, follow: bool) -> None:
    """Print the last lines of a node's log, and with `follow` what comes after them."""
    file = cluster_here(path, even_down=True)
    cluster = file.cluster
    known = ["root", *(worker.name for worker in cluster.workers)]
    if node not in known:
        raise ClusterError(f"cluster {cluster.name!r} has no node {node!r}; its nodes are {', '.join(known)}")
    places = Places.of(cluster.name)
    started = Record.read(places.started_file)
    if started is not None and started.file.path != file.identity:
        raise ClusterError(
            f"the logs of {cluster.name!r} are those of {started.path}, which was up last under this name; the one of "
            f"{file.identity} has not been since. See those: dllama-zmq logs --cluster {shlex.quote(started.path)}"
        )
    log_path = places.log(node)
    if not log_path.exists():
        hosts = {worker.name: worker.host for worker in cluster.workers if not is_loopback(worker.host)}
        where = f"runs on {hosts[node]} and prints it there" if node in hosts else "has not run on this host"
        raise ClusterError(f"{log_path}: no log yet; {node} {where}")
    with log_path.open(errors="replace") as log:
        sys.stdout.writelines(deque(log, maxlen=n_lines))
        sys.stdout.flush()
        while follow:
            time.sleep(0.2)
            sys.stdout.write(log.read())
            sys.stdout.flush()
