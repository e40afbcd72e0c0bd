"""The root's two sockets for tests that say themselves what a root says: nothing here imports the package."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from typing import Any

import msgpack
import zmq
from integration.stranger import PROTOCOL


class RawRoot:
    """The root's two sockets; a test says what they say. Close it, or use it in a `with` block."""

    def __init__(self, context: zmq.Context[Any], replies: str, steps: str) -> None:
        self.addresses = replies, steps
        self.stays = False
        self._heard: set[bytes] = set()
        self.router, self.pub = context.socket(zmq.ROUTER), context.socket(zmq.PUB)
        self.router.set(zmq.ROUTER_HANDOVER, 1)  # or one that joins again while its old connection lives is not heard
        for socket, address in zip((self.router, self.pub), self.addresses, strict=True):
            socket.set(zmq.LINGER, 0)
            socket.bind(address)

    def say(self, identity: bytes, kind: str, *fields: Any, arrays: tuple[bytes, ...] = ()) -> None:
        self.router.send_multipart([identity, msgpack.packb([PROTOCOL, kind, *fields]), *arrays])

    def publish(self, kind: str, *fields: Any, arrays: tuple[bytes, ...] = ()) -> None:
        self.pub.send_multipart([msgpack.packb([PROTOCOL, kind, *fields]), *arrays])

    def hear(self, kind: str, wait_s: float = 20.0, of: bytes | None = None) -> tuple[bytes, list[Any], list[bytes]]:
        """The next message of this kind (of this identity): who sent it, its fields, its arrays."""
        until = time.monotonic() + wait_s
        while self.router.poll(max(0, math.ceil((until - time.monotonic()) * 1000))):
            identity, header, *arrays = self.router.recv_multipart()
            self._heard.add(identity)
            fields = msgpack.unpackb(header)
            if fields[1] == kind and of in (None, identity):
                return identity, fields[2:], arrays
        raise AssertionError(f"no {kind} within {wait_s} s")

    def hear_last(self, kind: str, fields: list[Any]) -> None:
        """The message of this kind with these fields; whatever comes before it is dropped."""
        while self.hear(kind)[1] != fields:
            pass

    def take_in(self, plan: list[Any], pieces: list[tuple[list[Any], bytes]], node: int = 1) -> bytes:
        """Bring one worker to having heard a beacon of epoch 1; returns its identity."""
        identity, _, _ = self.hear("join")
        self.say(identity, "welcome", node, f"worker{node}", self.addresses[1], self.addresses[0])
        self.say(identity, "plan", *plan)
        self.hear("credit")
        self.deliver(identity, pieces)
        self.hear("loaded", wait_s=120.0)  # its kernels may have to be compiled
        for _ in range(100):
            self.publish("beacon", 1)
            with contextlib.suppress(AssertionError):
                self.hear("beacon_ack", 0.05)
                return identity
        raise AssertionError("no beacon was heard")

    def offer(self, identity: bytes, pieces: list[tuple[list[Any], bytes]]) -> None:
        """Offer the slices that are cut into `pieces` to a worker that has none of them, and hear that it needs all."""
        slices: dict[str, list[bytes]] = {}
        for fields, data in pieces:
            slices.setdefault(fields[0], []).append(data)
        offered = [[tensor, hashlib.sha256(b"".join(parts)).hexdigest()] for tensor, parts in slices.items()]
        self.say(identity, "offer", offered)
        assert self.hear("need")[1] == [[[tensor, 0] for tensor in slices]]

    def deliver(self, identity: bytes, pieces: list[tuple[list[Any], bytes]]) -> None:
        """Offer the slices that are cut into `pieces`, and send them."""
        self.offer(identity, pieces)
        for fields, data in pieces:
            self.say(identity, "weights", *fields, arrays=(data,))

    def __enter__(self) -> RawRoot:
        return self

    def __exit__(self, *_: object) -> None:
        for identity in self._heard:
            self.say(identity, "bye", self.stays, "the test is over")
        self.router.close(linger=200)
        self.pub.close()
