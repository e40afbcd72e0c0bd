"""Tell the root how far a loading worker is, and that it lives: one that says nothing is taken to be frozen.

A worker that compiles or lays out its weights listens meanwhile: a root that ends waits for a second, and what a worker
has not read when the connection breaks is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dllama_zmq.bus.links import WorkerLink
from dllama_zmq.bus.messages import Bye, Credit, Preparing
from dllama_zmq.errors import RootLost
from dllama_zmq.kernels import Compiling

_ALIVE_EVERY_S = 1.0
_TELL_EVERY_S = 0.5
_LISTEN_EVERY_S = 0.05  # less than a root that ends waits


class Preparation:
    """What a loading worker does, told over its link. leave: raises what a Bye means; RootLost is raised as it is."""

    def __init__(self, link: WorkerLink, leave: Callable[[Bye], None]) -> None:
        self._link, self._leave = link, leave
        self._end: Bye | RootLost | None = None
        self._next_word = time.monotonic() + _ALIVE_EVERY_S
        self._now = Preparing("prepares its kernels", 0)

    def say_alive(self) -> None:
        """Say, at most once a second, that this worker waits for the weights that it has asked for."""
        if time.monotonic() >= self._next_word:
            self._next_word = time.monotonic() + _ALIVE_EVERY_S
            self._link.send(Credit(0))

    def compiling(self, now: Compiling) -> None:
        """Kernels are being compiled. Raises what ends it."""
        self._heed()
        self._now = Preparing("compiles kernels, once on its computer", now.percent)

    def packing(self, done_bytes: int, total_bytes: int) -> None:
        """So many bytes of weights are laid out as the kernels have them. Raises what ends it."""
        self._heed()
        self._now = Preparing("lays out its weights", 100 * done_bytes // max(1, total_bytes))

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell it every half second of the block, which must leave the link alone: a thread has it meanwhile.

        Raises what ends it.
        """
        ended = threading.Event()

        def talk() -> None:
            next_word = time.monotonic() + _TELL_EVERY_S
            while self._end is None and not ended.wait(_LISTEN_EVERY_S):
                try:
                    self._end = self._link.bye()
                except RootLost as lost:
                    self._end = lost
                if time.monotonic() >= next_word:
                    next_word += _TELL_EVERY_S
                    self._link.send(self._now)

        thread = threading.Thread(target=talk, name="preparation", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        self._heed()

    def _heed(self) -> None:
        if isinstance(self._end, RootLost):
            raise self._end
        if self._end is not None:
            self._leave(self._end)
