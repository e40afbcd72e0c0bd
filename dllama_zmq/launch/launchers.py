"""How workers are started, watched and ended: one Launcher class for each way.

The root holds the write end of each worker's stdin. However the root ends, that pipe closes and the worker leaves. A
worker that cannot react is killed by the kernel (`own_code.signal_at_parents_end`).
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
    """One worker. Call `start`; call it again after `ending` says that it has ended; call `end` at the end.

    rejoin_s: seconds that a lost worker whose process is alive may take to join again. child: the process here that is
    the worker, or that holds the ssh connection to it; only after `start`.
    """

    rejoin_s: float
    child: Child

    def __init__(self, name: str, paths: ClusterPaths) -> None:
        self.name = name
        self.paths = paths

    @property
    def log(self) -> Path:
        """The file of the worker's output."""
        return self.paths.log(self.name)

    @abstractmethod
    def start(self) -> None:
        """Start the worker; an earlier one must have ended. Returns at once."""

    @abstractmethod
    def has_joined(self) -> bool:
        """Whether the worker has its place in the roster."""

    @abstractmethod
    def is_stopped(self) -> bool:
        """Whether a signal (SIGSTOP) has stopped the worker, as far as this computer can tell."""

    @abstractmethod
    def end(self) -> None:
        """Ask the worker to leave. Returns at once."""

    def ending(self) -> str:
        """How the worker ended, with its last error; empty while it runs."""
        return self.child.ending()

    def kill(self) -> None:
        """Kill it; `ending` says when it has ended."""
        self.child.process.kill()


class LocalLauncher(Launcher):
    """A worker on this computer: a child process. No other process may take its place."""

    rejoin_s = 10.0  # a sound worker joins again within 2 s

    def __init__(
        self, worker: WorkerConfig, paths: ClusterPaths, weights: Sequence[str], oversubscribed: bool, roster: Roster
    ) -> None:
        """weights: the flags that say where its weights are. oversubscribed: the nodes of this host have more threads
        than it has cores.
        """
        super().__init__(worker.name, paths)
        self._roster = roster
        words = ["worker", "--root", paths.ipc("replies"), "--name", worker.name, "--threads", str(worker.threads)]
        words += [*weights, "--leave-with-stdin"]
        self._words = [*words, *(["--oversubscribed"] if oversubscribed else [])]

    def start(self) -> None:
        self.child = Child.start(self.name, self._words, self.paths)
        self._roster.reserve(self.name, self.child.process.pid)

    def has_joined(self) -> bool:
        return self._roster.has(self.name, self.child.process.pid)

    def is_stopped(self) -> bool:
        return is_stopped(self.child.process.pid)

    def end(self) -> None:
        self.child.terminate()


class SshLauncher(Launcher):
    """A worker on another computer. It ends when its ssh connection does.

    Its process id is not known here: any worker in its place counts as this one.
    """

    # ssh notices a dead connection within DEAD_S; a worker that kept its weights may be back
    rejoin_s = ssh.DEAD_S + 10.0

    def __init__(self, worker: WorkerConfig, paths: ClusterPaths, root: Sequence[str], roster: Roster) -> None:
        """root: the flags with which the worker finds the root and verifies it, and others."""
        super().__init__(worker.name, paths)
        self._destination, self._roster = worker.destination, roster
        words = ["worker", *root, "--name", worker.name, "--leave-with-stdin", "--beat"]
        self._words = words if worker.threads == "auto" else [*words, "--threads", str(worker.threads)]

    def start(self) -> None:
        command = ssh.command(self._destination, ssh.dllama_line(self._words))
        self.child = Child.start_quiet(self.name, command, self.paths)

    def has_joined(self) -> bool:
        return self._roster.has(self.name)

    def is_stopped(self) -> bool:
        return False

    def end(self) -> None:
        self.child.close_stdin()  # the worker there leaves, then ssh ends

    def ending(self) -> str:
        code = self.child.process.poll()
        if code == ssh.FAILED:
            return f"exit code {code} of ssh ({ssh.failure(self._destination, self.child.said())})"
        if code == ssh.NOT_FOUND:
            return f"exit code {code} (no dllama-zmq is installed at {self._destination}: `dllama-zmq up --install`)"
        return super().ending()
