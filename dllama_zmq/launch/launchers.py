"""How a worker is started, looked at and ended: a launcher for each worker, one form for each way.

The root holds the write end of each worker's stdin. However the root ends, that pipe closes and the worker leaves; the
kernel kills a worker that cannot (`own_code.signal_at_parents_end`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from dllama_zmq.bus.roster import Roster
from dllama_zmq.host import is_stopped
from dllama_zmq.launch import ssh
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

    def __init__(
        self, worker: WorkerConfig, paths: ClusterPaths, model: Path, oversubscribed: bool, roster: Roster
    ) -> None:
        """model: the root's, from which it reads its weights. oversubscribed: this host has fewer cores than its nodes
        have threads."""
        super().__init__(worker.name, paths)
        self._roster = roster
        words = ["worker", "--root", paths.ipc_replies, "--name", worker.name, "--threads", str(worker.threads)]
        words += ["--model", str(model), "--leave-with-stdin"]
        self._words = [*words, *(["--oversubscribed"] if oversubscribed else [])]

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


class SshLauncher(Launcher):
    """A worker of another computer, at the end of a connection of ssh: it ends there with the connection.

    Its process there is not known here; whatever worker is in its place counts as this one.
    """

    rejoin_s = ssh.DEAD_S + 10.0  # a dead connection is for ssh to notice: a worker that keeps its weights may be back

    def __init__(self, worker: WorkerConfig, paths: ClusterPaths, root: Sequence[str], roster: Roster) -> None:
        """`root`: the flags by which the worker finds the root and knows it."""
        super().__init__(worker.name, paths)
        self._destination, self._roster = worker.destination, roster
        words = ["worker", *root, "--name", worker.name, "--leave-with-stdin", "--beat"]
        self._words = words if worker.threads == "auto" else [*words, "--threads", str(worker.threads)]

    @property
    def child(self) -> Child:
        return self._child

    def start(self) -> None:
        command = ssh.command(self._destination, ssh.dllama_line(self._words))
        self._child = Child.start_quiet(self.name, command, self.paths)

    def has_joined(self) -> bool:
        return self._roster.has(self.name)

    def is_stopped(self) -> bool:
        return False

    def end(self) -> None:
        self._child.close_stdin()  # the worker there leaves, then ssh ends

    def ending(self) -> str:
        code = self._child.process.poll()
        if code == ssh.FAILED:
            return f"exit code {code} of ssh ({ssh.failure(self._destination, self._child.said())})"
        if code == ssh.NOT_FOUND:
            return f"exit code {code} (no dllama-zmq is installed at {self._destination}: `dllama-zmq up --install`)"
        return super().ending()
