"""The clusters of this user on this computer: which are up, with their files and addresses for clients.

A cluster is identified by its file, not by its name. It is up while its lock is held; the system releases the lock when
the root ends. So a record without a locked lock means that the root was killed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from dllama_zmq.client import Client
from dllama_zmq.cluster import FILE_NAME, Cluster, ClusterFile, default_name, is_loopback, load_cluster
from dllama_zmq.errors import ClusterError, ConfigError, UsageError
from dllama_zmq.launch.locks import POLL_S, is_up, take
from dllama_zmq.launch.paths import ClusterPaths, all_cluster_paths, as_text, writing
from dllama_zmq.node_config import WorkerConfig
from dllama_zmq.reporting import Reporter, Unit
from dllama_zmq.threads import converted_by_threads

PRIVATE = "call-"
"""Prefix of the name of a cluster without a file that lives for one command; process and a random number follow."""

_LOCK_S = 1.0  # a process that tests whether a cluster is up holds its lock for an instant
_KEEP_S = 86400.0
_SETTLE_S = 1.0  # from taking the lock to writing the record


@converted_by_threads
class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster as its processes describe it in a JSON file.

    pid: the process to end. since: seconds since 1970. clients: the address for clients of this computer; empty while
    the cluster is starting or stopping. api: the URL of its API server; empty if it has none. doing: during the start,
    the arguments for `Reporter.activity`. forming: some worker is not ready.
    """

    path_text: str = msgspec.field(name="path")  # UTF-8, because the next command may run in another locale
    cluster: Cluster
    private: bool = False
    pid: int
    since: float
    clients: str = ""
    api: str = ""
    doing: tuple[str, int, int, Unit] = ("", 0, 0, "B")
    forming: bool = False

    @classmethod
    def of(cls, file: ClusterFile) -> Record:
        """The record of the cluster of `file`, which this process starts or runs."""
        path = os.fsencode(file.identity).decode("utf-8", "surrogateescape")
        return cls(path_text=path, cluster=file.cluster, private=file.private, pid=os.getpid(), since=time.time())

    def write(self, to: Path) -> None:
        """Write the file `to`; readers see either the old content or the new."""
        draft = to.with_suffix(".draft")
        with writing(to):
            draft.touch(mode=0o600)  # it may contain the API's keys
            draft.write_text(json.dumps(msgspec.to_builtins(self)))  # ASCII, because a path need not be UTF-8
            draft.replace(to)

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in `path`; None if there is none."""
        try:
            return msgspec.convert(json.loads(path.read_text()), cls)
        except (OSError, ValueError, RecursionError):
            return None

    @property
    def name(self) -> str:
        return self.cluster.name

    @property
    def path(self) -> Path:
        """The cluster's file with links resolved; it need not exist."""
        return Path(os.fsdecode(self.path_text.encode("utf-8", "surrogateescape")))

    @property
    def file(self) -> ClusterFile:
        """The cluster and its file as they were at its start."""
        return ClusterFile(self.path, self.cluster, self.private)

    @property
    def model(self) -> str:
        """The model's path."""
        try:
            return as_text(self.file.unchecked_model_path())
        except ConfigError:  # a model of a hub that has left the cache since
            return self.cluster.model

    def down_command(self) -> str:
        """The command that takes it down, valid in any folder."""
        return self.file.command("down")


def without_file(
    model: str, n_nodes: int = 1, folder: str | os.PathLike[str] = ".", private: bool = False
) -> ClusterFile:
    """A cluster of `n_nodes` on this computer without a file: that of `folder`, or (private) of one command.

    Raises UsageError if `n_nodes` is not 2^n.
    """
    if n_nodes < 1 or n_nodes & (n_nodes - 1):
        raise UsageError(f"{n_nodes} nodes; use 1, 2, 4, 8, ... (2^n)")
    path = Path(folder) / FILE_NAME
    name = f"{PRIVATE}{os.getpid()}-{secrets.token_hex(3)}" if private else default_name(path)
    workers = [WorkerConfig(name=f"worker{i}") for i in range(1, n_nodes)]
    return ClusterFile(path, Cluster(name=name, model=model, workers=workers), private)


def running_clusters() -> list[Record]:
    """Every cluster of this user on this computer that is up, starting or stopping, sorted by name."""
    found = map(_running, all_cluster_paths())
    return sorted((one for one in found if one is not None), key=lambda one: one.name)


def remove_left_by_calls() -> None:
    """Remove the folders of one-command clusters that failed or were killed at least a day ago."""
    for paths in all_cluster_paths():
        with suppress(OSError):
            is_old = time.time() > paths.run.stat().st_mtime + _KEEP_S
            if paths.run.name.startswith(PRIVATE) and is_old and not is_up(paths):
                paths.remove()


def find_running(file: ClusterFile) -> Record | None:
    """The cluster of `file` if it is up, starting or stopping. Raises ClusterError if its name is another file's."""
    same_name = None
    for one in running_clusters():
        if one.path == file.identity and one.private == file.private and not one.private:
            return one
        if one.name == file.cluster.name:
            same_name = one
    if same_name is not None and same_name.private and file.private:
        return same_name
    if same_name is not None:
        raise ClusterError(
            f"{same_name.name!r} is up from {same_name.path} with {Path(same_name.model).name}, and {file.identity} is "
            f"another file: write another `name:` in it, or take the other cluster down: {same_name.down_command()}"
        )
    return None


def await_running(file: ClusterFile, wait_s: float, reporter: Reporter | None = None) -> Record | None:
    """The cluster of `file` once clients can reach it; None if it is not running or ends meanwhile.

    Raises ClusterError as `find_running` does, and if it is neither up nor down after `wait_s`.
    """
    start = time.monotonic()
    while (running := find_running(file)) is not None and not running.clients:
        now = time.monotonic()
        if now > start + wait_s:
            raise ClusterError(
                f"cluster {running.name!r} has been starting or stopping for {wait_s:.0f} s (process {running.pid}); "
                "try again"
            )
        if reporter is not None:
            reporter.activity(f"waiting for {running.name}, which is starting or stopping")
        time.sleep(POLL_S)
    return running


def cluster_here(path: Path, even_down: bool = False) -> ClusterFile:
    """The cluster of the file `path`; if that file does not exist, the running cluster of its folder.

    even_down: else the last cluster that ran for the folder. Raises ConfigError.
    """
    try:
        return load_cluster(path)
    except ConfigError:
        if os.path.lexists(path):
            raise
        wanted = path.resolve()
        for one in running_clusters():
            if one.path == wanted and not one.private:
                return ClusterFile(path, one.cluster)
        if even_down:
            for paths in all_cluster_paths():
                last = Record.read(paths.started_file)
                if last is not None and last.path == wanted and not last.private:
                    return ClusterFile(path, last.cluster)
        raise


def ended_unexpectedly(path: Path) -> ClusterFile | None:
    """The cluster of the file `path` (which need not exist) if its root was killed."""
    wanted = path.resolve()
    for paths in all_cluster_paths():
        found = Record.read(paths.cluster_file)
        if found is None or found.private or found.path != wanted:
            continue
        if not is_up(paths):  # a root that ends normally removes its record
            return ClusterFile(path, found.cluster)
    return None


def connect(cluster: ClusterFile | str | os.PathLike[str] = FILE_NAME, wait_s: float = 5.0) -> Client:
    """A client of the running cluster of a file. Raises ConfigError, and ClusterError if it is not running."""
    file = cluster if isinstance(cluster, ClusterFile) else cluster_here(Path(cluster))
    if (address := address_elsewhere(file.cluster)) is not None:
        return Client(address, file.cluster.security)
    running = await_running(file, wait_s)
    if running is None:
        ended = ended_unexpectedly(file.path) is not None
        what = f"ended unexpectedly (`{file.command('logs root')}` shows its log)" if ended else "is not running"
        raise ClusterError(f"cluster {file.cluster.name!r} {what}; `{file.command('up')}` starts it")
    return Client(running.clients)


def address_elsewhere(cluster: Cluster) -> str | None:
    """The root's address for clients if `root.host` is another computer; else None."""
    host, ports = cluster.root.host, cluster.tcp_ports
    if ports is None or is_loopback(host):
        return None
    return cluster.root.endpoint(ports.clients) if bind_error(host, 0) == errno.EADDRNOTAVAIL else None


def bind_error(host: str, port: int) -> int | None:
    """The errno of binding a TCP socket there; None if that works."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as probe:
            # as libzmq does: a port that was just closed is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno
    return None


@contextmanager
def only_one(file: ClusterFile, paths: ClusterPaths, held: int | None = None) -> Iterator[int]:
    """Hold the lock of the cluster of `file`, so that it is started once. Yields a descriptor that a child may inherit.

    held: the descriptor, if the lock is held already. Raises ClusterError if the cluster, or another of its name, is
    up.
    """
    with writing(paths.lock_file):
        lock = os.open(paths.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if held is None else held
    try:
        os.set_inheritable(lock, False)
        deadline = time.monotonic() + _LOCK_S
        while True:
            running = find_running(file) if held is None else None
            if running is None and take(lock, fcntl.LOCK_EX):
                break
            if running is not None or time.monotonic() > deadline:
                name = file.cluster.name if running is None else running.name
                raise AlreadyRunning(f"cluster {name!r} is running already; `{file.command('down')}` stops it")
            time.sleep(0.02)
        last = Record.read(paths.started_file)
        if last is None or last.path != file.identity:
            paths.begin_logs()  # the logs there are of another cluster that had the name
        Record.of(file).write(paths.started_file)
        yield lock
    finally:
        os.close(lock)


class AlreadyRunning(ClusterError):
    """The cluster to start is up, or another process is starting it."""


def _running(paths: ClusterPaths) -> Record | None:
    deadline = time.monotonic() + _SETTLE_S
    while is_up(paths):
        for path in (paths.cluster_file, paths.started_file):
            found = Record.read(path)
            if found is not None and _lives(found.pid):
                return found
        if time.monotonic() > deadline:
            return None  # another version started it, or it was just killed
        time.sleep(POLL_S)
    return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
