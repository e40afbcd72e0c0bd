"""Encodes texts in threads, so that a long prompt, a slow template or a slow tokenizer delays no other client."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeAlias

from dllama_zmq.bus.messages import Message
from dllama_zmq.front.request import Question, Request
from dllama_zmq.front.texts import Encoded, Texts

PLACES = 3
Work: TypeAlias = Request | Question
Result: TypeAlias = Encoded | Message | BaseException


class Encoding:
    """Encodes PLACES texts at a time: at most one per client, and at most PLACES - 1 of the same kind of work.

    So neither a client with slow texts nor a flood of questions delays others. `wake` is readable when `results` has
    some.
    """

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._threads = ThreadPoolExecutor(PLACES, "texts")
        self._in_work: list[Work] = []
        self._done: deque[tuple[Work, Future[Encoded | Message]]] = deque()
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def may_begin(self, work: Work) -> bool:
        """Whether a place is free for this work."""
        in_work = self._in_work
        n_same = sum(isinstance(other, type(work)) for other in in_work)
        has_place = len(in_work) < PLACES and n_same < PLACES - 1
        return has_place and all(other.client != work.client for other in in_work)

    @property
    def requests(self) -> list[Request]:
        """The requests whose prompts are being encoded and have not been cancelled."""
        return [work for work in self._in_work if isinstance(work, Request) and not work.cancelled]

    def begin(self, work: Work) -> None:
        """Start encoding the prompt of a request or answering a question. `may_begin` must be true."""
        self._in_work.append(work)
        self._threads.submit(work.work, self._texts).add_done_callback(partial(self._is_done, work))

    def results(self) -> list[tuple[Work, Result]]:
        """The work finished since the last call, each with its result or error."""
        try:
            n_done = os.eventfd_read(self.wake)
        except BlockingIOError:
            return []
        done = [self._done.popleft() for _ in range(n_done)]
        for work, _ in done:
            self._in_work.remove(work)
        return [(work, future.exception() or future.result()) for work, future in done]

    def close(self) -> None:
        """Stop without waiting for running work, which keeps `wake` open because it still writes to it."""
        self._threads.shutdown(wait=False)
        self.results()
        if not self._in_work:
            os.close(self.wake)

    def _is_done(self, work: Work, future: Future[Encoded | Message]) -> None:
        """Runs in the thread, last of all, so that a reader of `wake` may then close it."""
        self._done.append((work, future))
        os.eventfd_write(self.wake, 1)
