"""This host's workers as child processes: started, restarted when they die, and ended with the root.

The root holds the write end of each child's stdin. However the root ends, that pipe closes and the child leaves; the
kernel kills a child that cannot (`own_code.signal_at_parents_end`).
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dllama_zmq.bus.roster import Roster
from dllama_zmq.errors import ClusterError
from dllama_zmq.host import is_stopped
from dllama_zmq.launch.paths import ClusterPaths, writing
from dllama_zmq.node_config import WorkerConfig
from dllama_zmq.own_code import own_code

logger = logging.getLogger(__name__)

_SOUND_AFTER_S = 60.0  # a worker that lived this long starts counting its deaths anew
_MAX_DEATHS = 3  # of one worker, before the cluster has ever been ready
_MAX_PAUSE_S = 30.0
_REJOIN_S = 10.0  # for a lost worker whose process lives; a sound one joins again within 2 s
_STOPPED_S = 5.0  # the same for one that a signal has stopped, which is not slow; it may be told to go on
MAX_LOG_BYTES = 8 << 20


@dataclass(slots=True)
class _Child:
    config: WorkerConfig
    process: subprocess.Popen[bytes]
    log_start: int  # length of its log when it started, in bytes
    started: float
    ending: str = ""  # how it ended last, and its last error
    deaths: int = 0  # in a row
    next_start: float | None = None  # None: it has not been seen to end
    has_joined: bool = False
    missing_since: float | None = None


class Fleet:
    """The local workers of one cluster. `watch` them often; `stop` them at the end.

    oversubscribed: this host has fewer cores than its nodes have threads.
    roster: has the workers' places.
    join_s: how long a started worker may take to join.
    """

    def __init__(
        self,
        workers: Sequence[WorkerConfig],
        paths: ClusterPaths,
        oversubscribed: bool,
        roster: Roster,
        join_s: float,
    ) -> None:
        self._paths = paths
        self._oversubscribed = oversubscribed
        self._roster = roster
        self._join_s = join_s
        self._has_been_ready = False
        self._children: list[_Child] = []
        for worker in workers:
            self._children.append(_Child(worker, *self._start(worker), time.monotonic()))

    def watch(self) -> None:
        """Restart dead workers, after a pause that doubles with each death in a row, and kill frozen ones.

        Raises ClusterError if a worker dies several times in a row before the cluster was first ready.
        """
        now = time.monotonic()
        self._has_been_ready = self._has_been_ready or self._roster.ready
        for child in self._children:
            if child.next_start is None:
                if child.process.poll() is not None:
                    self._note_death(child, now)
                elif self._is_frozen(child, now):
                    child.process.kill()
            if child.next_start is not None and now >= child.next_start:
                logger.warning("starting again %s: it ended with %s", child.config.name, child.ending)
                (child.process, child.log_start), child.started = self._start(child.config), now
                child.next_start, child.has_joined, child.missing_since = None, False, None
            elif child.next_start is not None:
                self._roster.explain_absence(
                    child.config.name,
                    f"ended {child.deaths} times in a row, last with {child.ending}, and starts again in "
                    f"{child.next_start - now:.0f} s; its log is {self._paths.log(child.config.name)}",
                )

    def _note_death(self, child: _Child, now: float) -> None:
        child.ending = self._ending(child)
        child.deaths = child.deaths + 1 if now - child.started < _SOUND_AFTER_S else 1
        if child.deaths >= _MAX_DEATHS and not self._has_been_ready:
            raise ClusterError(
                f"{child.config.name} ended {child.deaths} times before the cluster was ready, last with "
                f"{child.ending}; its log is {self._paths.log(child.config.name)}"
            )
        child.next_start = now + restart_pause_s(child.deaths)

    def _is_frozen(self, child: _Child, now: float) -> bool:
        """Whether a worker's process lives, but the worker has not joined in time."""
        if self._roster.has(child.config.name, child.process.pid):
            child.has_joined, child.missing_since = True, None
            return False
        child.missing_since = child.missing_since or now
        missing_s, allowed_s = now - child.missing_since, _REJOIN_S if child.has_joined else self._join_s
        if child.has_joined and missing_s >= _STOPPED_S and is_stopped(child.process.pid):
            logger.warning("killing %s: it is stopped and has not joined for %.0f s", child.config.name, _STOPPED_S)
            return True
        if missing_s < allowed_s:
            return False
        logger.warning("killing %s: it has not joined for %.0f s", child.config.name, allowed_s)
        return True

    def first_ended(self) -> str:
        """Which child has ended, and how; empty while all live."""
        for child in self._children:
            if child.process.poll() is not None:
                return f"{child.config.name} ended with {self._ending(child)}"
        return ""

    def _ending(self, child: _Child) -> str:
        return ending_of(child.process, self._paths.log(child.config.name), child.log_start)

    def stop(self, wait_s: float) -> None:
        """End every child; kill those that have not left after `wait_s`."""
        end_children({child.config.name: child.process for child in self._children}, wait_s)

    def _start(self, worker: WorkerConfig) -> tuple[subprocess.Popen[bytes], int]:
        """The process, and the length of its log when it began."""
        words = ["worker", "--root", self._paths.ipc_replies, "--name", worker.name, "--threads", str(worker.threads)]
        words += ["--leave-with-stdin", *(["--oversubscribed"] if self._oversubscribed else [])]
        with open_log(self._paths, worker.name) as log:
            log_start = log.tell()
            process = start_child(words, log)
        self._roster.reserve(worker.name, process.pid)
        return process, log_start


def start_child(words: Sequence[str], log: BinaryIO, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start `dllama-zmq WORDS`, which writes to `log` and gets no signal of this process's terminal."""
    command = [sys.executable, "-m", "dllama_zmq", *words]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=child_environment(), start_new_session=True,
        pass_fds=pass_fds,
    )  # fmt: skip


def restart_pause_s(deaths: int) -> float:
    """The pause before a child is started again that has died so many times in a row."""
    return 0.0 if deaths == 1 else min(_MAX_PAUSE_S, 2.0 ** (deaths - 2))


def ending_of(process: subprocess.Popen[bytes], log: Path, log_start: int) -> str:
    """How a child has ended, and what it said last in its log, from byte `log_start` on."""
    code, error = process.returncode, last_error(log, log_start)
    return (f"signal {-code}" if code < 0 else f"exit code {code}") + (f" ({error})" if error else "")


def end_children(children: Mapping[str, subprocess.Popen[bytes]], wait_s: float) -> list[str]:
    """Terminate every child and kill those that have not left after `wait_s`. Returns the names of the killed ones."""
    for process in children.values():
        process.terminate()
        if process.stdin is not None:
            process.stdin.close()
    deadline, killed = time.monotonic() + wait_s, []
    for name, process in children.items():
        try:
            process.wait(max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("killing %s: it did not leave within %.1f s", name, wait_s)
            process.kill()
            process.wait()
            killed.append(name)
    return killed


def last_error(log: Path, start: int = 0) -> str:
    """The last error in a node's log from byte `start` on; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read(MAX_LOG_BYTES).decode(errors="replace").splitlines()
    except FileNotFoundError:  # somebody has tidied up
        return ""
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else ""


def open_log(paths: ClusterPaths, node: str) -> BinaryIO:
    """The log of a node, open for appending; one that is too long is renamed first."""
    path = paths.log(node)
    with writing(path):
        paths.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")


def child_environment() -> dict[str, str]:
    """The environment of a node: one BLAS thread, since the node has its own threads."""
    return {**own_code(), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
