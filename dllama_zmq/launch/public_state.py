"""What a root says of its cluster without being asked: to its log, and in a file to other processes of this host."""

from __future__ import annotations

import logging
import time
from contextlib import suppress

import msgspec

from dllama_zmq.cluster import ClusterFile
from dllama_zmq.errors import ClusterError
from dllama_zmq.launch.lifecycle import commands_elsewhere
from dllama_zmq.launch.paths import Places
from dllama_zmq.launch.registry import record
from dllama_zmq.root.root import Root

logger = logging.getLogger(__name__)

_FIRST_S = 1.0
_MOST_PAUSE_S = 600.0


class PublicState:
    """Whether the cluster is ready or forming. `look` often; `remove` the file at the end.

    While it forms, the log says who is missing and what starts them: after 1 s, then after pauses that double.
    """

    def __init__(self, root: Root, file: ClusterFile, places: Places) -> None:
        self._root = root
        self._path = places.cluster_file
        self._commands = commands_elsewhere(file.cluster)
        cluster = file.cluster
        self._about = f"name={cluster.name} nodes={cluster.n_nodes} model={file.model_path()} sync={cluster.sync}"
        self._record = record(file, places.ipc_clients)
        self._is_up = False
        self._wait(_FIRST_S)
        self._write()

    def look(self) -> None:
        """Tell what has changed, or has lasted."""
        if self._root.ready == self._record.forming:
            self._wait(_FIRST_S)
            try:
                self._write()
            except ClusterError as error:  # no reason to end a cluster that is up
                logger.warning("%s", error)
        if self._root.ready or time.monotonic() < self._due:
            return
        self._wait(min(2 * self._pause_s, _MOST_PAUSE_S))
        absent = [row.name for row in self._root.progress() if row.state.value == "absent"]
        cures = [f"start {self._commands[name]}" for name in absent if name in self._commands]
        logger.info("forming: %s", "; ".join([self._root.missing_sentence(), *cures]))

    def remove(self) -> None:
        """The cluster goes down."""
        with suppress(FileNotFoundError):
            self._path.unlink()

    def _wait(self, pause_s: float) -> None:
        """Say who is missing in `pause_s`, not before."""
        self._pause_s, self._due = pause_s, time.monotonic() + pause_s

    def _write(self) -> None:
        self._record = msgspec.structs.replace(self._record, forming=not self._root.ready)
        self._record.write(self._path)
        if self._root.ready and not self._is_up:
            self._is_up = True
            logger.info("up %s", self._about)
