"""Tell the root how far a loading worker is, and that it lives: one that says nothing is taken to be frozen."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dllama_zmq.bus.links import WorkerLink
from dllama_zmq.bus.messages import Credit, Preparing
from dllama_zmq.kernels import Compiling

_ALIVE_EVERY_S = 1.0
_TELL_EVERY_S = 0.5


class Preparation:
    """What a loading worker does, told over its link."""

    def __init__(self, link: WorkerLink) -> None:
        self._link = link
        self._next_word = time.monotonic() + _ALIVE_EVERY_S
        self._now = Preparing("prepares its kernels", 0)

    def say_alive(self) -> None:
        """Say, at most once a second, that this worker waits for the weights that it has asked for."""
        if time.monotonic() >= self._next_word:
            self._next_word = time.monotonic() + _ALIVE_EVERY_S
            self._link.send(Credit(0))

    def compiling(self, now: Compiling) -> None:
        """Kernels are being compiled."""
        self._now = Preparing("compiles kernels, once on its computer", now.percent)

    def packing(self, done_bytes: int, total_bytes: int) -> None:
        """So many bytes of weights are laid out as the kernels have them."""
        self._now = Preparing("lays out its weights", 100 * done_bytes // max(1, total_bytes))

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell it every half second of the block, which must leave the link alone: a thread has it meanwhile."""
        ended = threading.Event()

        def talk() -> None:
            while not ended.wait(_TELL_EVERY_S):
                self._link.send(self._now)

        thread = threading.Thread(target=talk, name="preparation", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
