"""The queue of requests: turns, bounds, and who loses a place."""

from __future__ import annotations

from dataclasses import dataclass

from dllama_zmq.front.fair_queue import FairQueue


@dataclass(eq=False)
class Request:
    client: bytes
    id: int
    size: int = 0


def filled(waiting: FairQueue[Request], *clients: bytes) -> list[Request]:
    requests = [Request(client, i) for i, client in enumerate(clients)]
    for request in requests:
        assert waiting.add(request) == []
    return requests


def test_clients_take_turns_however_many_requests_one_has() -> None:
    waiting: FairQueue[Request] = FairQueue()
    a1, a2, a3, b1 = filled(waiting, b"a", b"a", b"a", b"b")
    assert list(waiting) == [a1, b1, a2, a3]
    assert waiting.take() is a1
    (c1,) = [Request(b"c", 9)]
    waiting.add(c1)
    assert [waiting.take() for _ in range(5)] == [b1, a2, c1, a3, None]
    assert len(waiting) == 0


def test_where_it_is_full_the_last_request_of_who_has_most_loses_its_place() -> None:
    waiting: FairQueue[Request] = FairQueue(max_requests=3)
    _, _, a3 = filled(waiting, b"a", b"a", b"a")
    newcomer = Request(b"b", 1)
    assert waiting.add(newcomer) == [a3]
    a4 = Request(b"a", 4)
    assert waiting.add(a4) == [a4]
    assert waiting.find(b"b", 1) is newcomer


def test_sizes_have_a_bound_together() -> None:
    waiting: FairQueue[Request] = FairQueue(max_size=100)
    small, large = Request(b"a", 1, 40), Request(b"b", 1, 61)
    assert waiting.add(small) == []
    assert waiting.add(large) == [large]
    assert waiting.add(Request(b"b", 2, 60)) == []
    waiting.leave(b"b")
    assert list(waiting) == [small]
    assert waiting.add(Request(b"c", 2, 60)) == []


def test_a_request_that_is_forgotten_twice_counts_once() -> None:
    waiting: FairQueue[Request] = FairQueue()
    first, second, other = filled(waiting, b"a", b"a", b"b")
    waiting.leave(b"a")
    waiting.remove(first)
    waiting.remove(second)
    assert list(waiting) == [other]
    assert len(waiting) == 1


def test_a_client_whose_turn_it_is_not_keeps_its_place() -> None:
    waiting: FairQueue[Request] = FairQueue()
    a1, a2, b1 = filled(waiting, b"a", b"a", b"b")
    assert waiting.take(lambda request: request.client != b"a") is b1
    assert waiting.take(lambda request: request.client != b"a") is None
    assert [waiting.take(), waiting.take()] == [a1, a2]


def test_a_request_that_is_put_back_is_its_clients_next_and_its_turn_comes_after_the_others() -> None:
    waiting: FairQueue[Request] = FairQueue(max_requests=3)
    a1, a2, b1 = filled(waiting, b"a", b"a", b"b")
    assert waiting.take() is a1
    waiting.put_back(a1)
    assert [waiting.take(), waiting.take()] == [b1, a1]
    waiting.put_back(a1)
    assert list(waiting) == [a1, a2]
    assert len(waiting) == 2
