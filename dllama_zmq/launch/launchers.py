"""How a worker is started, looked at and ended: a launcher for each worker, one form for each way.

The root holds the write end of each worker's stdin. However the root ends, that pipe closes and the worker leaves; the
kernel kills a worker that cannot (`own_code.signal_at_parents_end`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from dllama_zmq.bus.roster import Roster
from dllama_zmq.host import is_stopped
from dllama_zmq.launch.children import Child
from dllama_zmq.launch.paths import ClusterPaths
from dllama_zmq.node_config import WorkerConfig


class Launcher(ABC):
    """One worker: `start` it, and again when `ending` says that it has ended; `end` it at last.

    rejoin_s: how long a worker that was lost, and whose process lives, may take to join again.
    """

    rejoin_s: float

    def __init__(self, name: str, paths: ClusterPaths) -> None:
        self.name = name
        self.paths = paths

    @property
    def log(self) -> Path:
        """What the worker writes."""
        return self.paths.log(self.name)

    @property
    @abstractmethod
    def child(self) -> Child:
        """The process here that is the worker, or that holds the connection to it. Only after `start`."""

    @abstractmethod
    def start(self) -> None:
        """Start the worker; a former one has ended. Returns at once."""

    @abstractmethod
    def has_joined(self) -> bool:
        """Whether the worker is in its place."""

    @abstractmethod
    def is_stopped(self) -> bool:
        """Whether a signal has stopped it, as far as that is known here; it does nothing then."""

    @abstractmethod
    def end(self) -> None:
        """Ask the worker to leave. Returns at once."""

    def ending(self) -> str:
        """How the worker has ended, and its last error; empty while it runs."""
        return self.child.ending()

    def kill(self) -> None:
        """End it at once; `ending` tells when it has."""
        self.child.process.kill()


class LocalLauncher(Launcher):
    """A worker of this computer: a child process, which alone may have the worker's place."""

    rejoin_s = 10.0  # a sound worker joins again within 2 s

    def __init__(self, worker: WorkerConfig, paths: ClusterPaths, oversubscribed: bool, roster: Roster) -> None:
        """`oversubscribed`: this host has fewer cores than its nodes have threads."""
        super().__init__(worker.name, paths)
        self._roster = roster
        words = ["worker", "--root", paths.ipc_replies, "--name", worker.name, "--threads", str(worker.threads)]
        self._words = [*words, "--leave-with-stdin", *(["--oversubscribed"] if oversubscribed else [])]

    @property
    def child(self) -> Child:
        return self._child

    def start(self) -> None:
        self._child = Child.start(self.name, self._words, self.paths)
        self._roster.reserve(self.name, self._child.process.pid)

    def has_joined(self) -> bool:
        return self._roster.has(self.name, self._child.process.pid)

    def is_stopped(self) -> bool:
        return is_stopped(self._child.process.pid)

    def end(self) -> None:
        self._child.terminate()
