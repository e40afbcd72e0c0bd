"""The requests that the engine has. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from dllama_zmq.front.request import Request


class Running:
    """Requests by the engine's number of them, in the order in which it got them.

    One that is withdrawn keeps its place until the engine lets go of it: a step may take seconds, and who begins and
    cancels in a loop must not fill the queue to the engine.
    """

    def __init__(self) -> None:
        self._of: dict[int, Request] = {}
        self._leaving: set[int] = set()
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._of)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._of.values()))

    def add(self, request: Request) -> None:
        """The engine gets a request, and it a number."""
        self._last_id += 1
        request.engine_id = self._last_id
        self._of[self._last_id] = request

    def get(self, engine_id: int) -> Request | None:
        """The request with that number."""
        return self._of.get(engine_id)

    def end(self, engine_id: int) -> Request | None:
        """The engine has ended a request; its place is free."""
        return self._of.pop(engine_id, None)

    def withdraw(self, request: Request) -> bool:
        """Forget a request; whether it was here, so that the engine is to be told."""
        if self._of.pop(request.engine_id, None) is None:
            return False
        self._leaving.add(request.engine_id)
        return True

    def left(self, engine_id: int) -> None:
        """The engine has let go of a request that was withdrawn."""
        self._leaving.discard(engine_id)

    @property
    def n_places(self) -> int:
        """Places that are taken."""
        return len(self._of) + len(self._leaving)

    def clients(self) -> set[bytes]:
        """Who has a request here."""
        return {request.client for request in self._of.values()}
