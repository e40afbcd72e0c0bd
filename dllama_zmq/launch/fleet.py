"""This host's workers as child processes: started, started again when they die, and gone when the root is gone.

A child holds the read end of a pipe whose other end is the root's: however the root ends, the pipe closes, and the
child leaves by itself.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from dllama_zmq.cluster import WorkerConfig
from dllama_zmq.errors import ClusterError
from dllama_zmq.launch.paths import Places

logger = logging.getLogger(__name__)

_SOUND_AFTER_S = 5.0
_MOST_EARLY_DEATHS = 3
MAX_LOG_BYTES = 8 << 20


@dataclass(slots=True)
class _Child:
    config: WorkerConfig
    process: subprocess.Popen[bytes]
    started: float
    early_deaths: int = 0


class Fleet:
    """The local workers of one cluster. `watch` them often; `stop` them at the end.

    crowded: this host has fewer cores than its nodes have threads.
    """

    def __init__(self, workers: Sequence[WorkerConfig], places: Places, crowded: bool = False) -> None:
        self._places = places
        self._crowded = crowded
        self._children = [self._start(worker) for worker in workers]

    def watch(self) -> None:
        """Start again whoever has died. Raises ClusterError where one dies over and over as soon as it starts."""
        for i, child in enumerate(self._children):
            code = child.process.poll()
            if code is None:
                continue
            early = time.monotonic() - child.started < _SOUND_AFTER_S
            deaths = child.early_deaths + 1 if early else 0
            if deaths >= _MOST_EARLY_DEATHS:
                raise ClusterError(
                    f"{child.config.name} ended {deaths} times within {_SOUND_AFTER_S:.0f} s of its start, "
                    f"last with {_ending(code)}; its log is {self._places.log(child.config.name)}"
                )
            logger.warning("starting again %s: it ended with %s", child.config.name, _ending(code))
            self._children[i] = self._start(child.config)
            self._children[i].early_deaths = deaths

    def first_ended(self) -> str:
        """Which child has ended, and how, in words that begin with its name; empty while all live."""
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                return f"{child.config.name} ended with {_ending(code)}"
        return ""

    def stop(self, wait_s: float) -> None:
        """End every child: asked first, killed where it does not leave within `wait_s`."""
        for child in self._children:
            child.process.terminate()
            if child.process.stdin is not None:
                child.process.stdin.close()
        deadline = time.monotonic() + wait_s
        for child in self._children:
            try:
                child.process.wait(max(0.01, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("killing %s: it did not leave within %.1f s", child.config.name, wait_s)
                child.process.kill()
                child.process.wait()

    def _start(self, worker: WorkerConfig) -> _Child:
        command = [sys.executable, "-m", "dllama_zmq", "worker", "--root", self._places.ipc_replies]
        command += ["--name", worker.name, "--threads", str(worker.threads), "--leave-with-stdin"]
        if self._crowded:
            command.append("--crowded")
        with open_log(self._places, worker.name) as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=child_environment(), start_new_session=True
            )
        return _Child(worker, process, time.monotonic())


def open_log(places: Places, node: str) -> BinaryIO:
    """The log of a node, open for appending; one that has grown too long is put aside first."""
    path = places.log(node)
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def child_environment() -> dict[str, str]:
    """The environment of a node: BLAS keeps to one thread, for the node has threads of its own."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
