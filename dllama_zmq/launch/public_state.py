"""The state that a root publishes: in its log, and in a file for other processes of this host."""

from __future__ import annotations

import logging
import time
from contextlib import suppress

import msgspec

from dllama_zmq.cluster import ClusterFile
from dllama_zmq.errors import ClusterError, TrustError
from dllama_zmq.launch.lifecycle import commands_elsewhere
from dllama_zmq.launch.paths import ClusterPaths
from dllama_zmq.launch.registry import Record
from dllama_zmq.reporting import Reporter, Unit
from dllama_zmq.root.root import Root

logger = logging.getLogger(__name__)

_WRITE_EVERY_S = 0.2
_FIRST_S = 1.0
_MAX_PAUSE_S = 600.0


class PublicState:
    """The progress of the start, then whether the cluster is ready or forming.

    Before `up` it is a `Reporter` that also passes everything on to `reporter`. After `up`, call `update` often and
    `remove` at the end. While the cluster forms, the log names the missing workers and the commands that start them:
    first after 1 s, then at intervals that double.
    """

    def __init__(self, file: ClusterFile, paths: ClusterPaths, reporter: Reporter) -> None:
        self._file, self._paths, self._reporter = file, paths, reporter
        self._record = Record.of(file)
        self._next_write = 0.0
        self._has_been_ready = False

    def line(self, text: str) -> None:
        """Pass it on."""
        self._reporter.line(text)

    def activity(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B") -> None:
        """Pass it on; write the file if `text` is new or some time has passed."""
        self._reporter.activity(text, done, total, unit)
        if text == self._record.doing[0] and time.monotonic() < self._next_write:
            return
        self._next_write = time.monotonic() + _WRITE_EVERY_S
        self._record = msgspec.structs.replace(self._record, doing=(text, done, total, unit))
        with suppress(ClusterError):  # on a full disk the start continues without it
            self._record.write(self._paths.started_file)

    def up(self, root: Root, api: str) -> None:
        """Publish that clients can reach the root, and the URL of its API server (empty: it has none)."""
        self._reporter.activity("")
        self._root = root
        self._wait(_FIRST_S)
        self._record = msgspec.structs.replace(self._record, clients=self._paths.ipc("clients"), api=api)
        self._write()

    def update(self) -> None:
        """Publish a change of the state; log the missing workers if it is time to."""
        if self._root.ready == self._record.forming:
            self._wait(_FIRST_S)
            try:
                self._write()
            except ClusterError as error:  # no reason to end a running cluster
                logger.warning("%s", error)
        if self._root.ready or time.monotonic() < self._due:
            return
        self._wait(min(2 * self._pause_s, _MAX_PAUSE_S))
        absent = [row.name for row in self._root.progress() if row.state.value == "absent"]
        commands: dict[str, str] = {}
        with suppress(TrustError):  # a damaged file of keys has its own line in the log
            commands = commands_elsewhere(self._file)
        cures = [f"start {commands[name]}" for name in absent if name in commands]
        logger.info("forming: %s", "; ".join([self._root.missing_sentence(), *cures]))

    def remove(self) -> None:
        """Remove the file, because the cluster goes down."""
        self._paths.cluster_file.unlink(missing_ok=True)

    def _wait(self, pause_s: float) -> None:
        """Log the missing workers next in `pause_s`, at the earliest."""
        self._pause_s, self._due = pause_s, time.monotonic() + pause_s

    def _write(self) -> None:
        self._record = msgspec.structs.replace(self._record, forming=not self._root.ready)
        self._record.write(self._paths.cluster_file)
        if self._root.ready and not self._has_been_ready:
            self._has_been_ready = True
            cluster = self._file.cluster
            about = (cluster.name, cluster.n_nodes, self._file.model_path(), cluster.sync, self._record.api or "off")
            logger.info("up name=%s nodes=%d model=%s sync=%s api=%s", *about)
