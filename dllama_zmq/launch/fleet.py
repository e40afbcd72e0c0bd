"""The workers that the root starts: it restarts them when they die and ends them with itself. Knows no launcher."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from msgspec import Struct

from dllama_zmq.bus.roster import Roster
from dllama_zmq.errors import ClusterError
from dllama_zmq.launch.children import Restarts, await_ends
from dllama_zmq.launch.launchers import Launcher

logger = logging.getLogger(__name__)

_MAX_DEATHS = 3  # deaths of one worker in a row before the cluster was first ready
_STOPPED_S = 5.0  # grace for a lost worker that a signal has stopped: SIGCONT may follow


class _Worker(Struct):
    launcher: Launcher
    restarts: Restarts
    has_joined: bool = False
    missing_since: float | None = None

    @property
    def name(self) -> str:
        return self.launcher.name


class Fleet:
    """The workers of one cluster that its root starts. Call `watch` often, and `stop` at the end.

    roster: the places of the workers. join_s: seconds that a started worker may take to join.
    """

    def __init__(self, launchers: Sequence[Launcher], roster: Roster, join_s: float) -> None:
        self._roster = roster
        self._join_s = join_s
        self._has_been_ready = False
        self._workers: list[_Worker] = []
        for launcher in launchers:
            launcher.start()
            self._workers.append(_Worker(launcher, Restarts(time.monotonic())))

    def watch(self) -> None:
        """Restart dead workers, after a pause that doubles with each death in a row, and kill frozen ones.

        Raises ClusterError if a worker dies several times in a row before the cluster was first ready.
        """
        now = time.monotonic()
        self._has_been_ready = self._has_been_ready or self._roster.ready
        for worker in self._workers:
            restarts, launcher = worker.restarts, worker.launcher
            if restarts.next_start is None:
                if ending := launcher.ending():
                    restarts.note(ending, now)
                    self._check_deaths(worker)
                elif self._is_frozen(worker, now):
                    launcher.kill()
            if restarts.next_start is not None and now >= restarts.next_start:
                logger.warning("starting again %s: it ended with %s", worker.name, restarts.ending)
                launcher.start()
                restarts.note_start(now)
                worker.has_joined, worker.missing_since = False, None
            elif restarts.next_start is not None:
                self._roster.explain_absence(
                    worker.name,
                    f"ended {restarts.deaths} times in a row, last with {restarts.ending}, and starts again in "
                    f"{restarts.next_start - now:.0f} s; its log is {launcher.log}",
                )

    def _check_deaths(self, worker: _Worker) -> None:
        if worker.restarts.deaths >= _MAX_DEATHS and not self._has_been_ready:
            raise ClusterError(
                f"{worker.name} ended {worker.restarts.deaths} times before the cluster was ready, last with "
                f"{worker.restarts.ending}; its log is {worker.launcher.log}"
            )

    def _is_frozen(self, worker: _Worker, now: float) -> bool:
        """Whether a worker's process lives, but the worker has not joined in time."""
        launcher = worker.launcher
        if launcher.has_joined():
            worker.has_joined, worker.missing_since = True, None
            return False
        worker.missing_since = worker.missing_since or now
        missing_s, allowed_s = now - worker.missing_since, launcher.rejoin_s if worker.has_joined else self._join_s
        if worker.has_joined and missing_s >= _STOPPED_S and launcher.is_stopped():
            logger.warning("killing %s: it is stopped and has not joined for %.0f s", worker.name, _STOPPED_S)
            return True
        if missing_s < allowed_s:
            return False
        logger.warning("killing %s: it has not joined for %.0f s", worker.name, allowed_s)
        return True

    def first_ended(self) -> str:
        """The first worker that has ended, and how; empty while all run."""
        for worker in self._workers:
            if ending := worker.launcher.ending():
                return f"{worker.name} ended with {ending}"
        return ""

    def stop(self, wait_s: float) -> None:
        """End every worker; kill those that have not left after `wait_s`."""
        for worker in self._workers:
            worker.launcher.end()
        await_ends({worker.name: worker.launcher.child for worker in self._workers}, wait_s)
