"""Prompts to tokens in a thread: a long prompt, or a tokenizer that runs a program, must not hold up the others."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

from dllama_zmq.front.request import Request
from dllama_zmq.front.texts import Encoded, Texts


class Encoding:
    """One prompt at a time. `wake` is readable once `result` can be asked."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._thread = ThreadPoolExecutor(1, "encoding")
        self._future: Future[Encoded] | None = None
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.request: Request | None = None

    def begin(self, request: Request) -> None:
        """Encode the prompt of `request`, and read its grammar. Nothing may be open."""
        self.request = request
        self._future = self._thread.submit(self._encode, request)
        self._future.add_done_callback(lambda future: os.eventfd_write(self.wake, 1))

    def result(self) -> tuple[Request, Encoded | BaseException] | None:
        """The request whose prompt is encoded, and its tokens or what went wrong; None where none is."""
        future, request = self._future, self.request
        if future is None or request is None or not self._is_woken():
            return None
        self._future = self.request = None
        return request, future.exception() or future.result()

    def _encode(self, request: Request) -> Encoded:
        if request.asked.grammar is not None:
            request.grammar = self._texts.grammar(request.asked.grammar)
        return self._texts.encode(request.prompt, request.asked.max_tokens)

    def close(self) -> None:
        """Give up. A prompt that is being encoded is not waited for, and keeps `wake` open: it will be written to."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._future is None or self._is_woken():
            os.close(self.wake)

    def _is_woken(self) -> bool:
        """Whether the thread is done with `wake`, which is a moment after its future is done."""
        try:
            return os.eventfd_read(self.wake) > 0
        except BlockingIOError:
            return False
