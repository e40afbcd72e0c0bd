"""Bring a cluster up in the background, find it again, take it down. Every wait ends, and says whom it waited for."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dllama_zmq.bus.client_messages import NodeStatus, Status
from dllama_zmq.client import Client
from dllama_zmq.cluster import Cluster, ClusterFile, is_loopback
from dllama_zmq.errors import ClusterError, RootLost
from dllama_zmq.formats import open_model, read_tokenizer
from dllama_zmq.kernels import prepare_kernels
from dllama_zmq.launch.fleet import child_environment, open_log
from dllama_zmq.launch.paths import Places
from dllama_zmq.launch.telling import telling
from dllama_zmq.sharding import Plan

_LOOK_S = 0.05
_SAY_EVERY_S = 1.5
_CHECK_SAY_EVERY_S = 1.0  # Python's start came before
_ANNOUNCED_S = 5.0


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster of this host that is up: its process and where its clients go."""

    name: str
    pid: int
    clients: str
    path: Path


def find_running(name: str) -> Running | None:
    """The running cluster called `name`, or None. Whether it runs is asked of its lock, not of a file left behind."""
    places = Places.of(name)
    if not _is_locked(places):
        return None
    try:
        known = json.loads(places.cluster_file.read_text())
        return Running(name, int(known["pid"]), str(known["clients"]), Path(known["path"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it holds the lock and has not said yet where it is


def is_running(name: str) -> bool:
    """Whether a cluster called `name` runs, or is about to."""
    return _is_locked(Places.of(name))


def connect(name: str) -> Client:
    """A client of the running cluster called `name`. Raises ClusterError where there is none."""
    running = _announced(name)
    if running is None:
        raise ClusterError(f"cluster {name!r} is not running; `dllama-zmq up` starts it")
    return Client(running.clients)


def bring_up(
    file: ClusterFile,
    on_status: Callable[[Status], None],
    on_word: Callable[[str], None],
    flags: Sequence[str] = (),
    for_this_process: bool = False,
    on_sound: Callable[[], None] = lambda: None,
) -> Status:
    """Start the cluster in the background and return when every node is ready; report on the way.

    `for_this_process`: the cluster ends when this process has ended, however that happens, and nobody else uses it.

    `flags` are those that the command line gave instead of what the file says; `file` has them in it.

    `on_sound` is called when its files have been found sound, before anything is started.

    Raises what `run_cluster` raises, and ClusterError, with the cluster down again, where a node does not get ready
    within its limits.
    """
    name, places = file.cluster.name, Places.of(file.cluster.name)
    if _is_locked(places):
        raise ClusterError(f"cluster {name!r} is running already; `dllama-zmq down` stops it")
    _check_files(file, on_word)
    on_sound()
    prepare_kernels(file.cluster.kernels, on_word)
    with open_log(places, "root") as log:
        log_start = log.seek(0, os.SEEK_END)
        command = [sys.executable, "-m", "dllama_zmq", "up", str(file.path.absolute()), "--foreground", *flags]
        command += ["--leave-with-stdin"] if for_this_process else []
        stdin = subprocess.PIPE if for_this_process else subprocess.DEVNULL
        process = subprocess.Popen(
            command, stdin=stdin, stdout=log, stderr=log, env=child_environment(), start_new_session=True
        )
    try:
        return _await_ready(file, places, process, log_start, on_status, on_word)
    except BaseException:
        _end(process, file.cluster.limits.stop_s)
        raise


def take_down(name: str, stop_s: float) -> bool:
    """Stop the cluster called `name`: asked, then told, then killed. False where none was running."""
    places = Places.of(name)
    if _cleared(places):
        return False
    running = _announced(name)
    if running is None:
        if not is_running(name):
            return True
        raise ClusterError(f"cluster {name!r} has been starting or stopping for {_ANNOUNCED_S:.0f} s; try again")
    with Client(running.clients) as client:
        try:
            client.stop(wait_s=stop_s)
        except RootLost:
            _signal(running.pid, signal.SIGTERM)
    if _await_unlocked(places, 2 * stop_s):
        _await_end(running.pid, stop_s)
        return True
    _signal(running.pid, signal.SIGKILL)  # its workers see their pipe close and leave by themselves
    if not _await_unlocked(places, stop_s):
        raise ClusterError(f"process {running.pid} of cluster {name!r} cannot be ended; look at it with `ps`")
    _cleared(places)
    return True


def _check_files(file: ClusterFile, on_word: Callable[[str], None]) -> None:
    """Find in the foreground, where people look, what would stop the root in the background."""
    path = file.model_path()
    with (
        telling(on_word, f"reading {path.name} and its tokenizer", _CHECK_SAY_EVERY_S),
        open_model(path, file.cluster.weight_type) as model,
    ):
        Plan.make(model.spec, file.cluster.n_nodes, str(model.path))
        tokenizer = read_tokenizer(file.tokenizer_path())
        tokenizer.check_fits(model.spec, model.path)
        if doubt := tokenizer.doubt(model.spec, model.path):
            on_word(f"warning: {doubt}")


def _await_ready(
    file: ClusterFile,
    places: Places,
    process: subprocess.Popen[bytes],
    log_start: int,
    on_status: Callable[[Status], None],
    on_word: Callable[[str], None],
) -> Status:
    limits = file.cluster.limits
    start = time.monotonic()
    next_word = start + _SAY_EVERY_S
    client: Client | None = None
    try:
        while True:
            if process.poll() is not None:
                raise ClusterError(_last_error(places, log_start))
            if client is None:
                running = find_running(file.cluster.name)
                if running is not None:
                    client = Client(running.clients)
                elif time.monotonic() > start + limits.load_s:
                    raise ClusterError(f"the root did not start within {limits.load_s:.0f} s; see {places.log('root')}")
                elif time.monotonic() > next_word:
                    on_word(f"the root reads its part of the model ({time.monotonic() - start:.0f} s)")
                    next_word += _SAY_EVERY_S
            else:
                try:
                    status = client.status(wait_s=limits.step_s)
                except RootLost:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(limits.stop_s)  # it is ending, and will have said why
                        continue
                    raise
                on_status(status)
                if status.state == "ready":
                    return status
                absent = [node for node in status.nodes if node.state == "absent"]
                if absent and time.monotonic() > start + limits.join_s:
                    raise ClusterError(_nobody_came(file, absent))
            time.sleep(_LOOK_S)
    finally:
        if client is not None:
            client.close()


def commands_elsewhere(cluster: Cluster) -> dict[str, str]:
    """What to run where, for each worker that is not this host's: by the worker's name."""
    host = cluster.root.host
    if host in ("0.0.0.0", "::"):  # it listens everywhere; the others need a name for it
        host = socket.gethostname()
    address = msgspec.structs.replace(cluster.root, host=host).endpoint(cluster.root.ports.replies)
    return {
        worker.name: f"on {worker.host}: dllama-zmq worker --root {address} --name {worker.name}"
        for worker in cluster.workers
        if not is_loopback(worker.host)
    }


def _nobody_came(file: ClusterFile, absent: list[NodeStatus]) -> str:
    cluster = file.cluster
    elsewhere = commands_elsewhere(cluster)
    cures = {node.name: elsewhere.get(node.name, f"see its log: dllama-zmq logs {node.name}") for node in absent}
    told = "; ".join(f"{node.name} {node.reason}: {cures[node.name]}" for node in absent)
    return f"not every worker is there after {cluster.limits.join_s:.0f} s (limits.join_s): {told}"


def _last_error(places: Places, log_start: int) -> str:
    """What the root said last before it ended."""
    with places.log("root").open("rb") as log:
        log.seek(log_start)
        lines = log.read().decode(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"the root ended without a word; see {places.log('root')}"


def _end(process: subprocess.Popen[bytes], stop_s: float) -> None:
    """End a root that this process started."""
    process.terminate()
    try:
        process.wait(2 * stop_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it may have ended since it was last seen
        os.kill(pid, number)


def _await_end(pid: int, wait_s: float) -> None:
    """Wait for a process that has let go of its lock: its interpreter takes a moment more to end."""
    with suppress(OSError):  # it has ended, or this kernel cannot watch it
        descriptor = os.pidfd_open(pid)
        try:
            select.select([descriptor], [], [], wait_s)
        finally:
            os.close(descriptor)


def _announced(name: str) -> Running | None:
    """The running cluster called `name`; where it is just starting, when it has said where it is."""
    deadline = time.monotonic() + _ANNOUNCED_S
    while (running := find_running(name)) is None and is_running(name) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    return running


def _is_locked(places: Places) -> bool:
    with _lock(places, fcntl.LOCK_SH) as held:  # shared: two who look must not take each other for a root
        return not held


def _cleared(places: Places) -> bool:
    """Remove what a root that was killed left behind; False, and nothing done, where one is running."""
    with _lock(places, fcntl.LOCK_EX) as held:
        if held:
            places.clear()
        return held


@contextmanager
def _lock(places: Places, kind: int) -> Iterator[bool]:
    """Hold the cluster's lock, where no root holds it: whether it is held."""
    with (places.run / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _await_unlocked(places: Places, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while _is_locked(places):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True
