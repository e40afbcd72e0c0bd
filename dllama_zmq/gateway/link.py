"""Connections to the front: one for each user, so that the front's fairness holds, with many requests on each.

One event loop, no thread. Messages of the front are read at once, even if a user's client reads slowly: a mailbox holds
at most the rest of its request's answer.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec
import zmq
from msgspec import structs

from dllama_zmq.bus import sockets
from dllama_zmq.bus.client_messages import FROM_CLIENT, TO_CLIENT, Cancel, Error
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.messages import Frame, Message
from dllama_zmq.errors import ProtocolError, RequestError, RootLost, as_error

_CONNECT_S = 3.0
_MAX_USERS = 64  # connections; users beyond that share them
_MESSAGES_PER_TURN = 64  # messages read before other tasks have their turn


class Mailbox:
    """The front's messages about one request. open: it has not ended, so it is cancelled if its client leaves."""

    def __init__(self, is_open: bool) -> None:
        self.open = is_open
        self._messages: asyncio.Queue[Message] = asyncio.Queue()

    def put(self, message: Message) -> None:
        self._messages.put_nowait(message)

    async def get(self, wait_s: float) -> Message:
        """The next message. Raises RootLost if none arrives within `wait_s`, or the error that the front reports."""
        try:
            async with asyncio.timeout(wait_s):
                message = await self._messages.get()
        except TimeoutError:
            raise RootLost(f"no message from the root for {wait_s:.0f} s: it is in a long step, or stuck") from None
        if isinstance(message, Error):
            self.open = False
            raise as_error(message.kind, message.text)
        return message


class Link:
    """One connection to the front. When the front is lost, it ends with all its requests."""

    def __init__(self, context: sockets.Context, front: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._front = front
        self._connection = sockets.Connection(context, front)
        self._ids = itertools.count(1)
        self._open: dict[int, Mailbox] = {}
        self._changed = asyncio.Event()
        self.lost = False
        for descriptor in self._connection.descriptors:
            self._loop.add_reader(descriptor, self._read)

    @property
    def idle(self) -> bool:
        """Whether no request is open."""
        return not self._open

    @asynccontextmanager
    async def request(self, message: Message, cancels: bool = False) -> AsyncIterator[Mailbox]:
        """Send `message`, whose id is set here. Its answers arrive in the mailbox until the block ends.

        cancels: the request is cancelled if the block ends while the mailbox is open. Raises RootLost if the front
        cannot be reached.
        """
        request_id = next(self._ids)
        frames = _checked(structs.replace(message, id=request_id))
        await self._up()
        mailbox = self._open[request_id] = Mailbox(cancels)
        try:
            self._send(frames)
            yield mailbox
        finally:
            del self._open[request_id]
            if mailbox.open and not self.lost:
                self._send(encode(Cancel(request_id)))

    def close(self) -> None:
        """End the connection; open requests fail."""
        if not self._connection.socket.closed:
            for descriptor in self._connection.descriptors:
                self._loop.remove_reader(descriptor)
            self._connection.close()
        self._lose()

    async def _up(self) -> None:
        until = time.monotonic() + _CONNECT_S
        while not self.lost and not self._connection.up(0.0):
            self._changed.clear()
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                raise RootLost("the cluster is not ready: its root loads, or goes down") from None
        if self.lost:
            raise RootLost(f"the root at {self._front} went away")

    def _send(self, frames: Sequence[Frame]) -> None:
        with suppress(zmq.Again):  # the front has just gone; `_read` will notice
            self._connection.socket.send_multipart(frames, zmq.NOBLOCK)
        self._loop.call_soon(self._read)  # the descriptor signals changes only, and sending may have consumed one

    def _read(self) -> None:
        if self.lost or self._connection.socket.closed:
            return
        self._changed.set()
        for _ in range(_MESSAGES_PER_TURN):
            frames = sockets.receive_now(self._connection.socket)
            if frames is None:
                if self._connection.lost():
                    self.close()
                return
            message, _ = decode(frames, TO_CLIENT)
            mailbox = self._open.get(getattr(message, "id", 0))
            if mailbox is not None:
                mailbox.put(message)
        self._loop.call_soon(self._read)

    def _lose(self) -> None:
        self.lost = True
        self._changed.set()
        for mailbox in self._open.values():
            mailbox.put(Error(0, RootLost.__name__, "the root went away in mid-answer"))


class Links:
    """One connection for each user, made on demand. The least recently used idle one makes room for a new one."""

    def __init__(self, front: str) -> None:
        self._front = front
        self._context = sockets.Context()
        self._links: dict[str, Link] = {}

    def of(self, user: str) -> Link:
        """The user's connection."""
        link = self._links.pop(user, None)
        if link is None or link.lost:
            link = self._room() or Link(self._context, self._front)
        self._links[user] = link  # as the last: the first is the least recently used one
        return link

    def close(self) -> None:
        """End all connections."""
        for link in self._links.values():
            link.close()
        self._context.destroy()

    def _room(self) -> Link | None:
        """None if there is room for another connection; else the connection to share."""
        if len(self._links) < _MAX_USERS:
            return None
        for user, link in list(self._links.items()):
            if link.idle:
                del self._links[user]
                if link not in self._links.values():
                    link.close()
                return None
        return next(iter(self._links.values()))


def _checked(message: Message) -> list[Frame]:
    """The frames of a message that the front will accept. Raises RequestError."""
    try:
        frames = encode(message)
        decode(frames, FROM_CLIENT)
    except (ProtocolError, OverflowError, msgspec.MsgspecError, UnicodeEncodeError) as error:
        raise RequestError(f"the request cannot be answered: {error}") from None
    return frames
