"""A fair queue of requests: clients take turns, and a client that fills the queue loses only its own requests.

Pure: knows no socket and no clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Generic, Protocol, TypeVar

MAX_REQUESTS = 512
MAX_SIZE = 8 << 20


class QueueItem(Protocol):
    """The interface of a queued request."""

    client: bytes

    @property
    def id(self) -> int: ...

    @property
    def size(self) -> int: ...


R = TypeVar("R", bound=QueueItem)


class FairQueue(Generic[R]):
    """At most `max_requests` requests, with sizes of at most `max_size` in all."""

    def __init__(self, max_requests: int = MAX_REQUESTS, max_size: int = MAX_SIZE) -> None:
        self._max_requests, self._max_size = max_requests, max_size
        self._of: OrderedDict[bytes, deque[R]] = OrderedDict()
        self._n_requests = self._size = 0

    def __len__(self) -> int:
        return self._n_requests

    def __iter__(self) -> Iterator[R]:
        """The requests in the order in which they will run if no others arrive."""
        rounds = zip_longest(*(list(queue) for queue in self._of.values()))
        return iter([request for turn in rounds for request in turn if request is not None])

    def find(self, client: bytes, request_id: int) -> R | None:
        """The client's request with this id."""
        return next((request for request in self._of.get(client, ()) if request.id == request_id), None)

    def add(self, request: R) -> list[R]:
        """Queue a request. Returns the requests dropped for lack of room: the newest of the client with the most."""
        self._of.setdefault(request.client, deque()).append(request)
        self._count(request, 1)
        dropped = []
        while self._n_requests > self._max_requests or self._size > self._max_size:
            by_size = self._size > self._max_size
            most = max(self._of, key=lambda client: self._has(client, by_size))
            dropped.append(self._of[most][-1])
            self.remove(dropped[-1])
        return dropped

    def put_back(self, request: R) -> None:
        """Put back the request that was taken last; it is its client's next one again."""
        self._of.setdefault(request.client, deque()).appendleft(request)
        self._count(request, 1)

    def take(self, may: Callable[[R], bool] = lambda request: True) -> R | None:
        """The next request in turn; None if no client has one. Its client's next turn comes after the others'.

        may: whether a client's next request may run now.
        """
        request = next((queue[0] for queue in self._of.values() if may(queue[0])), None)
        if request is not None:
            self._of.move_to_end(request.client)
            self.remove(request)
        return request

    def remove(self, request: R) -> None:
        """Remove a request, if it is queued."""
        queue = self._of.get(request.client, deque())
        if request not in queue:
            return
        queue.remove(request)
        self._count(request, -1)
        if not queue:
            del self._of[request.client]

    def leave(self, client: bytes) -> None:
        """Remove all requests of a client."""
        for request in list(self._of.get(client, ())):
            self.remove(request)

    def _has(self, client: bytes, by_size: bool) -> int:
        queue = self._of[client]
        return sum(request.size for request in queue) if by_size else len(queue)

    def _count(self, request: R, sign: int) -> None:
        self._n_requests += sign
        self._size += sign * request.size
