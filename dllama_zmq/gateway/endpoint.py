"""One route of the API: reads and checks the request within limits, sends the answer, and gives errors their form.

A request ends when its client disconnects, streamed or not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from dllama_zmq.gateway.problems import ErrorReply, Problem
from dllama_zmq.gateway.service import Service

T = TypeVar("T")

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
_PING = b": waiting\n\n"
_PING_S = 15.0
_HOLD_S = 10.0  # an error within this time has its own status, even of a stream
_MIN_BYTES_PER_S = 16384  # the slowest upload of a body that is accepted


class Call(Struct, Generic[T], frozen=True):
    """A request that was read and checked: `body` has the route's type."""

    service: Service
    user: str
    body: T
    request: Request


class Reply(Response):
    """A complete answer: a struct, sent as JSON, or bytes of `media_type`."""

    media_type = JSON

    def render(self, content: object) -> bytes:
        return content if isinstance(content, bytes) else msgspec.json.encode(content)


class Stream(Struct, frozen=True):
    """An answer of server-sent events."""

    events: AsyncGenerator[bytes, None]


Handler = Callable[[Call[Any]], Awaitable[Reply | Stream]]


def event(body: object) -> bytes:
    """A server-sent event in OpenAI's form."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def named_event(kind: str, **fields: object) -> bytes:
    """A server-sent event of responses and messages: `kind` is its name, and the type in its data."""
    return b"event: " + kind.encode() + b"\n" + event({"type": kind, **fields})


class ErrorForm(Struct, frozen=True):
    """How an API reports errors: as a body, which has the type `gives`, and as an event of a stream."""

    body: Callable[[Problem], object] = Problem.reply
    event: Callable[[Problem], bytes] = lambda problem: event(problem.reply())
    gives: Any = ErrorReply


OPENAI = ErrorForm()


def error_reply(form: ErrorForm, problem: Problem, headers: Mapping[str, str] = MappingProxyType({})) -> Reply:
    """An error as a whole answer, with additional headers."""
    return Reply(form.body(problem), problem.status, {**problem.headers, **headers})


class Resource(Struct, frozen=True):
    """A route of the API. takes: the type of the body; None: a GET. gives: the type of the answer. streams: the type of
    an event's data.
    """

    paths: Sequence[str]
    handler: Handler
    takes: Any = None
    gives: Any = None
    streams: Any = None
    errors: ErrorForm = OPENAI

    @property
    def method(self) -> str:
        """Of HTTP."""
        return "GET" if self.takes is None else "POST"


class Endpoint:
    """The ASGI application of a resource."""

    def __init__(self, service: Service, resource: Resource) -> None:
        self._service, self._handler, self._errors = service, resource.handler, resource.errors
        self._decoder = None if resource.takes is None else msgspec.json.Decoder(resource.takes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["route"].path if "route" in scope else scope["path"]
        sending = _Sending(send, lambda status: self._service.metrics.response(path, status))
        try:
            data = await self._read(scope, receive)
            call = Call(self._service, scope["state"]["user"], self._decoded(data), Request(scope))
        except Problem as problem:
            await error_reply(self._errors, problem)(scope, receive, sending)
            return
        except _Gone:
            return
        work = asyncio.ensure_future(self._answer(call, sending))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.complete:
                work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        finally:
            gone.cancel()
            work.cancel()

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limits = self._service.settings.limits
        most, start, data = limits.body_mb * 10**6, time.monotonic(), bytearray()
        too_long = Problem(413, f"the body is longer than {limits.body_mb} MB (api.limits.body_mb)")
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(length) > most:
            raise too_long
        while True:
            allowed_s = limits.stalled_s + len(data) / _MIN_BYTES_PER_S
            try:
                async with asyncio.timeout(max(0.0, start + allowed_s - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise Problem(408, f"the body did not arrive within {allowed_s:.0f} s (api.limits.stalled_s)") from None
            if message["type"] == "http.disconnect":
                raise _Gone
            data += message.get("body", b"")
            if len(data) > most:
                raise too_long
            if not message.get("more_body", False):
                return bytes(data)

    def _decoded(self, data: bytes) -> object:
        if self._decoder is None:
            return None
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            words, _, where = str(error).replace("`", "").partition(" - at ")
            param = where.removeprefix("$").removeprefix(".") or None
            raise Problem(400, f"{param}: {words}" if param else words, param) from None
        except RecursionError:
            raise Problem(400, "the body is nested too deeply") from None
        except (msgspec.MsgspecError, ValueError) as error:  # ValueError: text that is not UTF-8
            raise Problem(400, f"the body is not JSON: {error}") from None

    async def _answer(self, call: Call[Any], sending: _Sending) -> None:
        try:
            answer = await self._handler(call)
            if isinstance(answer, Stream):
                await self._stream(answer, sending)
            else:
                await answer(call.request.scope, call.request.receive, sending)
        except Exception as error:  # any error goes to the client, and the server continues
            problem = Problem.of(error)
            if sending.started:
                await sending.more(self._errors.event(problem))
                await sending.end()
            else:
                await error_reply(self._errors, problem)(call.request.scope, call.request.receive, sending)

    async def _stream(self, stream: Stream, sending: _Sending) -> None:
        pings: asyncio.Task[None] | None = None
        async with aclosing(stream.events) as events:
            first = asyncio.ensure_future(anext(events, b""))
            try:
                await asyncio.wait({first}, timeout=_HOLD_S)
                if first.done():
                    first.result()
                headers = [(b"content-type", EVENT_STREAM.encode()), (b"cache-control", b"no-cache")]
                await sending({"type": "http.response.start", "status": 200, "headers": headers})
                pings = asyncio.ensure_future(sending.pings())
                await sending.more(await first)
                async for data in events:
                    await sending.more(data)
                    await asyncio.sleep(0)  # lets `_gone` notice a disconnect even if the next events are ready
            finally:
                for task in (first, pings):
                    if task is not None:
                        task.cancel()
                await asyncio.wait({task for task in (first, pings) if task is not None})
        await sending.end()


class _Gone(Exception):
    """The client disconnected before its request was complete."""


class _Sending:
    """The `send` of one request, which knows how far its answer is."""

    def __init__(self, send: Send, count: Callable[[int], None]) -> None:
        """count: called with the status."""
        self._send, self._count = send, count
        self.started = self.complete = False
        self._last = 0.0

    async def __call__(self, message: Message) -> None:
        self._last = time.monotonic()
        if message["type"] == "http.response.start":
            self.started = True
            self._count(message["status"])
        else:
            self.complete = not message.get("more_body", False)
        await self._send(message)

    async def more(self, data: bytes) -> None:
        await self({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self({"type": "http.response.body", "body": b"", "more_body": False})

    async def pings(self) -> None:
        """Send a comment whenever nothing was sent for a while, because proxies end silent connections."""
        while True:
            await asyncio.sleep(max(0.0, self._last + _PING_S - time.monotonic()))
            if time.monotonic() >= self._last + _PING_S:
                await self.more(_PING)


async def _gone(receive: Receive) -> None:
    """Return when the client has disconnected or its answer is complete."""
    while (await receive())["type"] != "http.disconnect":
        pass
