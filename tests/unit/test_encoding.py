"""Prompts to tokens in a thread: the front may look at any moment, and may close at any moment."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from dllama_zmq.bus.client_messages import Generate
from dllama_zmq.bus.prompts import AnyPrompt
from dllama_zmq.bus.text_messages import Tokenize, Tokens
from dllama_zmq.front.encoding import PLACES, Encoding, Result, Work
from dllama_zmq.front.request import Question, Request
from dllama_zmq.front.texts import Encoded, Texts
from dllama_zmq.sampling import GREEDY

SOON_S = 20.0
ENCODED = Encoded([1, 2], "the cat")


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
        return ENCODED

    def tokenize(self, asked: Tokenize) -> Tokens:
        assert self.now.wait(SOON_S)
        return Tokens(asked.id, [], [], "")


def request_of(client: bytes) -> Request:
    return Request(client, Generate(1, "the cat", None, GREEDY, True, []), 0, 0.0, 0.0)


def begun() -> tuple[Encoding, Request]:
    """An encoding whose thread has the tokens, and has not said so."""
    texts = Later()
    encoding, request = Encoding(texts), request_of(b"client")
    encoding.begin(request)
    texts.now.set()
    until = time.monotonic() + SOON_S
    while not encoding._done:
        assert time.monotonic() < until
    return encoding, request


def results(encoding: Encoding) -> list[tuple[Work, Result]]:
    until = time.monotonic() + SOON_S
    while not (found := encoding.results()):
        assert time.monotonic() < until
    return found


def test_a_prompt_is_there_once_its_thread_is_done_with_the_descriptor(written: threading.Event) -> None:
    encoding, request = begun()
    assert encoding.results() == []
    written.set()
    assert results(encoding) == [(request, ENCODED)]
    encoding.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(encoding.wake)


def test_a_descriptor_that_will_be_written_to_is_not_closed(written: threading.Event) -> None:
    encoding, _ = begun()
    encoding.close()
    os.fstat(encoding.wake)  # raises where it is closed
    written.set()
    encoding._threads.shutdown()
    os.close(encoding.wake)


def test_one_text_of_a_client_is_in_work_and_a_place_is_left_for_another_kind_of_work() -> None:
    texts = Later()
    encoding = Encoding(texts)
    for i in range(PLACES - 1):
        request = request_of(b"client %d" % i)
        assert encoding.may_begin(request)
        encoding.begin(request)
        assert not encoding.may_begin(Question(request.client, Tokenize(1, "the cat", None, False)))
    assert not encoding.may_begin(request_of(b"another"))
    question = Question(b"another", Tokenize(1, "the cat", None, False))
    assert encoding.may_begin(question)
    encoding.begin(question)
    assert not encoding.may_begin(Question(b"one more", Tokenize(1, "the cat", None, False)))
    texts.now.set()
    done = results(encoding)
    while len(done) < PLACES:
        done += results(encoding)
    assert encoding.may_begin(request)
    encoding.close()
