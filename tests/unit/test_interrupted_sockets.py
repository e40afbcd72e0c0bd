"""A signal may raise at any call while sockets are made; what clears them away must end all the same."""

from __future__ import annotations

import secrets
import sys
import threading
from collections.abc import Callable
from types import FrameType

import pytest
from surroundings import free_ports

from dllama_zmq import Client
from dllama_zmq.bus import sockets
from dllama_zmq.bus.links import Endpoints, RootLink
from dllama_zmq.bus.roster import Roster

SOON_S = 20.0


class Interrupted(BaseException):
    """What a signal raises."""


class Attempt:
    """One call of `make` in a thread, in which the `at`-th call raises."""

    def __init__(self, make: Callable[[], None], at: int) -> None:
        self._make, self._left = make, at
        self.where = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._thread.join(SOON_S)
        self.ended = not self._thread.is_alive()

    def _run(self) -> None:
        sys.setprofile(self._trace)
        try:
            self._make()
        except Interrupted:
            pass
        finally:
            sys.setprofile(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> None:
        # Where Python looks for signals. What Python itself does, with its own locks, is its own matter.
        self._left -= event in ("call", "c_return") and "zmq" in frame.f_code.co_filename
        if not self._left:
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            sys.setprofile(None)
            raise Interrupted


def a_client() -> None:
    Client(f"ipc:///tmp/dz-{secrets.token_hex(6)}").close()


def a_root_over(scheme: str) -> Callable[[], None]:
    """Makes the sockets of a root as it does, and clears them away as it does."""

    def make() -> None:
        names = [f"{scheme}://{secrets.token_hex(6)}" for _ in range(2)] if scheme == "inproc" else local_ports()
        context = sockets.Context()
        try:
            link = RootLink(context, Endpoints(names[:1], names[1:]), 0.0, Roster([], 1))
            sys.setprofile(None)  # a root that clears away is not broken off
            link.close()
        finally:
            context.destroy()

    return make


def local_ports() -> list[str]:
    return [f"tcp://127.0.0.1:{port}" for port in free_ports(2)]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("make", "every"),
    [(a_client, 1), (a_root_over("inproc"), 1), (a_root_over("tcp"), 3)],
    ids=["client", "ipc", "tcp"],
)
def test_a_socket_that_a_signal_breaks_off_can_be_closed(make: Callable[[], None], every: int) -> None:
    at = 1
    while True:
        attempt = Attempt(make, at)
        assert attempt.ended, f"interrupted at {attempt.where}, call {at}, it hangs"
        if not attempt.where:
            return
        at += every
