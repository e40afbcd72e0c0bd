"""Exchange messages with the root while a model is loaded: receive offers and pieces, report progress.

A thread uses the link meanwhile, because the worker must listen while it compiles or repacks: messages that it has not
read when the connection breaks are lost, a root that ends waits for one second, and a silent worker counts as frozen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dllama_zmq.bus.links import WorkerLink
from dllama_zmq.bus.messages import Credit, Message, Offer, Preparing, Weights
from dllama_zmq.errors import RootLost
from dllama_zmq.kernels import Compiling
from dllama_zmq.worker.loading import Loading

CREDIT_PIECES = 4
_REPORT_EVERY_S = 0.5
_LISTEN_S = 0.01  # the delay before the thread sees that a slice must be asked for after all, or that all is done


class Preparation:
    """The thread that uses the link of a loading worker.

    other: gets every other message, or None when there is none for a while; it raises what ends the loading.
    silence_s: seconds of silence after which the root counts as lost.
    """

    def __init__(
        self, link: WorkerLink, loading: Loading, other: Callable[[Message | None], None], silence_s: float
    ) -> None:
        self._link, self._loading, self._other, self._silence_s = link, loading, other, silence_s
        self._end: BaseException | None = None
        self._ended = threading.Event()
        self._doing, self._percent = "prepares its kernels", 0

    def compiling(self, now: Compiling) -> None:
        """Report that kernels are being compiled. Raises the error that ended the thread."""
        self._heed()
        self._doing, self._percent = "compiles kernels, once on its computer", now.percent

    def repacking(self, done_bytes: int, total_bytes: int) -> None:
        """Report repacked bytes of weights. Raises the error that ended the thread."""
        self._heed()
        self._doing, self._percent = "lays out its weights", 100 * done_bytes // max(1, total_bytes)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Run the thread during the block, which must not use the link. Raises the error that ended the thread."""
        thread = threading.Thread(target=self._run, name="preparation", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
        self._heed()

    def _run(self) -> None:
        try:
            self._hear()
        except BaseException as error:  # the thread that repacks raises it
            self._end = error
            self._loading.end(error)

    def _hear(self) -> None:
        self._link.send(Credit(CREDIT_PIECES))
        heard = reported = time.monotonic()
        while not self._ended.is_set():
            message, frames = self._link.receive(time.monotonic() + _LISTEN_S, spins=False) or (None, [])
            now = time.monotonic()
            if message is not None:
                heard = now
            elif now > heard + self._silence_s:
                raise RootLost(f"no word from the root for {self._silence_s:.0f} s while loading")
            if isinstance(message, Offer):
                self._loading.offered(message)
            elif isinstance(message, Weights):
                self._loading.take(message, frames)
                self._link.send(Credit(1))
            else:
                self._other(message)
            if (need := self._loading.to_ask()) is not None:
                self._link.send(need)
            if now > reported + _REPORT_EVERY_S:
                reported = now
                self._link.send(Preparing(self._doing, self._percent, self._loading.held_bytes))

    def _heed(self) -> None:
        if self._end is not None:
            raise self._end
