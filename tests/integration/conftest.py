"""A context, and nodes in threads, that must have ended when the test has; no test leaves anything in its process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq
from leaks import nothing_left
from nodes import Context, Relay, Start, Thread
from stranger import Stranger

from dllama_zmq.worker import Worker


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    zmq.Context.instance()  # lives as long as the process
    with nothing_left():
        yield


@pytest.fixture
def context() -> Iterator[Context]:
    """A context whose sockets a test must have closed by its end: term would wait for them."""
    context: Context = zmq.Context()
    yield context
    context.term()


@pytest.fixture
def start(context: Context) -> Iterator[Start]:
    """Runs a node until the test is over; then its root has told it to leave, or it is stopped."""
    threads: list[Thread] = []

    def start(node: Stranger | Worker | Relay) -> Thread:
        threads.append(Thread(node.run, node.stop))
        return threads[-1]

    yield start
    for thread in threads:
        thread.stop()
    for thread in threads:
        thread.join()
    assert [thread.error for thread in threads if thread.error and not thread.expected] == []
