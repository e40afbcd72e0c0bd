"""Prompts to tokens in a thread: the front may look at any moment, and may close at any moment."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from tiny import tiny_tokenizer_data
from tokenizers_of import of_t

from dllama_zmq.bus.client_messages import Generate
from dllama_zmq.bus.prompts import AnyPrompt
from dllama_zmq.front.encoding import Encoding
from dllama_zmq.front.request import Request
from dllama_zmq.front.texts import Encoded, Texts
from dllama_zmq.sampling import GREEDY

SOON_S = 20.0
TOKENIZER = of_t(tiny_tokenizer_data())


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A thread that is done with a prompt says so only when this is set; as one does whose core was taken away."""
    may_write, write = threading.Event(), os.eventfd_write

    def late(descriptor: int, value: int) -> None:
        assert may_write.wait(SOON_S)
        write(descriptor, value)

    monkeypatch.setattr(os, "eventfd_write", late)
    yield may_write
    may_write.set()


class Later(Texts):
    """Encodes only when this is set: who adds a callback to a future that is done runs it himself."""

    def __init__(self) -> None:
        self.now = threading.Event()

    def encode(self, prompt: AnyPrompt, max_tokens: int | None) -> Encoded:
        assert self.now.wait(SOON_S)
        return Encoded(TOKENIZER.encode(str(prompt)), "")


def begun() -> tuple[Encoding, Request]:
    """An encoding whose future is done."""
    texts = Later()
    encoding = Encoding(texts)
    request = Request(b"client", Generate(1, "the cat", None, GREEDY, True, []), 0, 0.0, 0.0)
    encoding.begin(request)
    texts.now.set()
    future = encoding._future
    assert future is not None
    future.result(SOON_S)
    return encoding, request


def test_a_prompt_is_there_once_its_thread_is_done_with_the_descriptor(written: threading.Event) -> None:
    encoding, request = begun()
    assert encoding.result() is None
    written.set()
    until = time.monotonic() + SOON_S
    while (result := encoding.result()) is None:
        assert time.monotonic() < until
    assert result == (request, Encoded(TOKENIZER.encode("the cat"), ""))
    encoding.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(encoding.wake)


def test_a_descriptor_that_will_be_written_to_is_not_closed(written: threading.Event) -> None:
    encoding, _ = begun()
    encoding.close()
    os.fstat(encoding.wake)  # raises where it is closed
    written.set()
    encoding._thread.shutdown()
    os.close(encoding.wake)
