"""uvicorn's HTTP/1.1 with deadlines: a client that sends no request or reads no answer is disconnected."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from dllama_zmq.gateway.problems import Problem

_KERNEL_BYTES = 128 << 10
"""Bytes that the kernel holds for a client that does not read; its default would be 4 MB."""


class BoundedProtocol(H11Protocol):
    """One of at most `most` connections. A request must begin, and an answer be read on, within `stalled_s`."""

    stalled_s = 30.0
    most = 512
    _deadline: asyncio.TimerHandle | None = None
    _rest: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
        if len(self.connections) > self.most:
            self._refuse(Problem(503, f"{self.most} connections are open (api.limits.connections)", retry_s=1))
        else:
            self._begin()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is not h11.SEND_BODY:
            self._end_rest()
        if self.conn.their_state is h11.IDLE:
            if self._deadline is None and self.conn.trailing_data[0]:
                self._begin()  # part of the next request
        else:
            self._end()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._begin()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # closing now could reset the connection and lose the answer
            self._rest = self.loop.call_later(self.stalled_s, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._end_rest()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to an invalid request, in the form of the API's errors."""
        self._refuse(Problem(400, msg))

    def _refuse(self, problem: Problem) -> None:
        """Send the problem and close the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # in the middle of an answer
            return
        body = msgspec.json.encode(problem.reply())
        headers: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *((name.encode(), value.encode()) for name, value in problem.headers.items()),
        ]
        events: list[Any] = [
            h11.Response(status_code=problem.status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _begin(self) -> None:
        self._end()
        self._deadline = self.loop.call_later(self.stalled_s, self.transport.abort)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end_rest(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
