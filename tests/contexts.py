"""ZeroMQ contexts of tests: what a failed test leaves open is closed and named, and hangs nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import zmq


class _Context(zmq.Context[zmq.Socket[bytes]]):
    """Keeps its sockets until it ends itself.

    pyzmq warns of a socket that is collected while it is open, and then closes it. Here the warning is an error, so the
    socket stays open where nobody can close it any more, and `term` and `destroy` wait for it without end.
    """

    _kept: list[zmq.Socket[bytes]]

    def __init__(self) -> None:
        super().__init__()
        self._kept = []

    def _add_socket(self, socket: zmq.Socket[bytes]) -> None:
        super()._add_socket(socket)
        self._kept.append(socket)

    def close_sockets(self) -> list[str]:
        """Close the sockets that are open, without lingering; which they were."""
        left = [socket for socket in self._kept if not socket.closed]
        names = [str(socket) for socket in left]
        for socket in left:
            socket.close(linger=0)
        return names


@contextmanager
def a_context(wait_s: float = 20.0) -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context whose sockets are closed when the block has ended. AssertionError where one had to be closed here.

    wait_s: for threads that are ending, each of which hears that its context ends and closes its own sockets.
    """
    context = _Context()
    try:
        yield context
    finally:
        term = threading.Thread(target=context.term, name="term", daemon=True)
        term.start()
        term.join(wait_s)
        left = context.close_sockets() if term.is_alive() else []
        term.join(wait_s)
    assert not left, f"left open: {', '.join(left)}"
    assert not term.is_alive(), "the context did not end: a message lingers, or a shadow of it has a socket"
