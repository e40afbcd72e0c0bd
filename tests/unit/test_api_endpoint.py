"""How a route sends its answer: headers held for an error, comments while nothing comes. ASGI without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dllama_zmq.api_config import ApiLimits
from dllama_zmq.gateway import endpoint
from dllama_zmq.gateway.endpoint import Call, Endpoint, Resource, Stream
from dllama_zmq.gateway.problems import Problem

PATH = {"type": "http", "path": "/x", "method": "GET", "headers": [], "state": {"user": "me"}}
WAIT_S = 20.0


Sent = list[dict[str, Any]]


def sent_by(events: Callable[[Sent], AsyncGenerator[bytes, None]], n_read: int | None = None) -> Sent:
    """The messages that a route of these events sends. The events see what was sent before.

    n_read: the client leaves when it has got this many messages; None: it stays.
    """
    sent: Sent = []
    asked = [{"type": "http.request", "body": b"", "more_body": False}]
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if asked:
            return asked.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == n_read:
            left.set()

    async def handler(call: Call[None]) -> Stream:
        return Stream(events(sent))

    async def run() -> None:
        service: Any = SimpleNamespace(
            settings=SimpleNamespace(limits=ApiLimits()), metrics=SimpleNamespace(response=lambda route, status: None)
        )
        task = asyncio.ensure_future(Endpoint(service, Resource(["/x"], handler))(dict(PATH), receive, send))
        async with asyncio.timeout(WAIT_S):
            await task

    asyncio.run(run())
    return sent


def _after(n_sent: int, error: bool = False) -> Callable[[Sent], AsyncGenerator[bytes, None]]:
    """An event, or an error in its place, that is so late that `n_sent` messages are sent before."""

    async def events(sent: Sent) -> AsyncGenerator[bytes, None]:
        while len(sent) < n_sent:
            await asyncio.sleep(0.01)  # between two looks
        if error:
            raise Problem(400, "too long")
        yield b"data: 1\n\n"

    return events


def test_an_error_before_the_first_event_has_a_status_of_its_own() -> None:
    start, body = sent_by(_after(0, error=True))
    assert start["status"] == 400
    assert b"too long" in body["body"]


def test_headers_are_sent_while_the_first_event_is_late_and_an_error_is_an_event_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint, "_HOLD_S", 0.01)
    start, *bodies = sent_by(_after(1, error=True))
    assert start["status"] == 200
    assert bodies[-2]["body"].startswith(b'data: {"error":{"message":"too long"')
    assert bodies[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_a_comment_is_sent_whenever_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_HOLD_S", 0.01)
    monkeypatch.setattr(endpoint, "_PING_S", 0.05)
    _, *bodies = sent_by(_after(3))
    texts = [body["body"] for body in bodies]
    assert texts[-2:] == [b"data: 1\n\n", b""]
    assert texts[:2] == [b": waiting\n\n"] * 2


def test_an_event_may_come_at_once() -> None:
    start, first, end = sent_by(_after(0))
    assert start["status"] == 200
    assert (first["body"], end["more_body"]) == (b"data: 1\n\n", False)


def test_a_stream_whose_client_has_left_ends_although_its_other_events_are_there() -> None:
    async def events(sent: Sent) -> AsyncGenerator[bytes, None]:
        for number in range(100):
            yield b"data: %d\n\n" % number

    assert len(sent_by(events)) == 102  # with the start and the end
    assert len(sent_by(events, n_read=3)) < 20
