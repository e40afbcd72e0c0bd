"""The bus's short way (bus/trade.py): it takes what is awaited to the byte, and hands back all else as it came."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import pytest
import zmq

from dllama_zmq.bus.trade import Trade, make_trade
from dllama_zmq.kernels import choose_kernels
from dllama_zmq.quants import U8

Socket: TypeAlias = zmq.Socket[Any]
HEADER, EXPECTED = b"\x96 a sum's header", b"\x96 a partial's header"
SHAPE = (2, 100)
PART = np.arange(200, dtype=np.uint8).reshape(SHAPE)
SOON_S, LONG_S = 0.05, 5.0


class Peers:
    """A ROUTER and a PUB in one place, and DEALERs with a SUB each at the other end."""

    def __init__(self, context: zmq.Context[Any], identities: list[bytes]) -> None:
        at = f"inproc://{secrets.token_hex(6)}"
        self.pub, self.router = self._bound(context, zmq.PUB, f"{at}-p"), self._bound(context, zmq.ROUTER, f"{at}-r")
        self.router.set(zmq.ROUTER_HANDOVER, 1)
        self.dealers, self.subs = [], []
        for identity in identities:
            dealer, sub = context.socket(zmq.DEALER), context.socket(zmq.SUB)
            dealer.set(zmq.IDENTITY, identity)
            sub.set(zmq.SUBSCRIBE, b"")
            dealer.connect(f"{at}-r")
            sub.connect(f"{at}-p")
            self.dealers.append(dealer)
            self.subs.append(sub)
            dealer.send(b"here")
            assert self.router.recv_multipart() == [identity, b"here"]
        while not all(sub.poll(20) for sub in self.subs):  # a SUB that is not connected yet loses what is published
            self.pub.send(b"hello")
        for sub in self.subs:
            while sub.poll(0):
                sub.recv()

    def _bound(self, context: zmq.Context[Any], kind: int, at: str) -> Socket:
        socket = context.socket(kind)
        socket.bind(at)
        return socket

    def close(self) -> None:
        for socket in (self.pub, self.router, *self.dealers, *self.subs):
            socket.close(linger=0)


Meet: TypeAlias = Callable[..., Peers]


@pytest.fixture
def meet() -> Iterator[Meet]:
    context: zmq.Context[Any] = zmq.Context()
    made: list[Peers] = []

    def meet(*identities: bytes) -> Peers:
        made.append(Peers(context, list(identities)))
        return made[-1]

    yield meet
    for peers in made:
        peers.close()
    context.term()


def trade_of(to: Socket, source: Socket, spin_s: float, *identities: bytes) -> Trade:
    made = make_trade(choose_kernels("simd", 1), to, source, spin_s, identities)
    assert made is not None
    return made


def test_a_body_is_sent_and_every_peers_part_comes_to_its_place(meet: Meet) -> None:
    peers = meet(b"one", b"other")
    root = trade_of(peers.pub, peers.router, LONG_S, b"one", b"other")
    peers.dealers[1].send_multipart([EXPECTED, (PART + 1).tobytes()])
    peers.dealers[0].send_multipart([EXPECTED, PART.tobytes()])
    parts, others = root(HEADER, PART * 3, EXPECTED, SHAPE)
    assert others is None
    np.testing.assert_array_equal(parts, [PART, PART + 1])
    assert 0 <= root.waited_s < LONG_S
    for sub in peers.subs:
        assert sub.recv_multipart() == [HEADER, (PART * 3).tobytes()]


def test_a_worker_has_one_peer_without_an_identity(meet: Meet) -> None:
    peers = meet(b"one")
    worker = trade_of(peers.dealers[0], peers.subs[0], LONG_S, b"")
    peers.pub.send_multipart([EXPECTED, PART.tobytes()])
    parts, others = worker(HEADER, PART[::-1].copy(), EXPECTED, SHAPE)
    assert others is None
    np.testing.assert_array_equal(parts, [PART])
    assert peers.router.recv_multipart() == [b"one", HEADER, PART[::-1].tobytes()]


def test_without_a_body_nothing_is_sent_and_a_body_can_go_alone(meet: Meet) -> None:
    peers = meet(b"one")
    root = trade_of(peers.pub, peers.router, 0.0, b"one")
    assert root(HEADER, None, EXPECTED, SHAPE) == ([None], None)
    assert not peers.subs[0].poll(0)
    root.send(HEADER, PART)
    assert peers.subs[0].recv_multipart() == [HEADER, PART.tobytes()]


def test_what_comes_late_is_not_waited_for_and_the_next_call_takes_it(meet: Meet) -> None:
    peers = meet(b"one", b"other")
    root = trade_of(peers.pub, peers.router, SOON_S, b"one", b"other")
    peers.dealers[1].send_multipart([EXPECTED, PART.tobytes()])
    (first, second), others = root(HEADER, None, EXPECTED, SHAPE)
    assert first is None
    assert others is None
    np.testing.assert_array_equal(second, PART)
    assert root.waited_s >= SOON_S
    peers.dealers[0].send_multipart([EXPECTED, (PART + 2).tobytes()])
    peers.dealers[1].send_multipart([EXPECTED, (PART + 3).tobytes()])
    parts, others = root(HEADER, None, EXPECTED, SHAPE)
    np.testing.assert_array_equal(parts, [PART + 2, PART + 3])


BODY = PART.tobytes()


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [EXPECTED],
        [BODY],
        [EXPECTED + b"!", BODY],
        [EXPECTED[:-1] + b"R", BODY],
        [b"", BODY],
        [EXPECTED, BODY[:-1]],
        [EXPECTED, BODY + b"!"],
        [EXPECTED, b""],
        [EXPECTED, BODY, b""],
        [EXPECTED, EXPECTED, BODY],
        [b"more", b"frames", b"than", b"are", b"taken", b"at", b"once"],
        [b"x" * 1_000_000, BODY],
    ],
    ids=lambda frames: f"{len(frames)} frames",
)
def test_another_message_is_handed_back_whole_and_the_rest_waits(meet: Meet, frames: list[bytes]) -> None:
    peers = meet(b"one", b"other")
    root = trade_of(peers.pub, peers.router, LONG_S, b"one", b"other")
    worker = trade_of(peers.dealers[0], peers.subs[0], LONG_S, b"")
    peers.dealers[1].send_multipart([EXPECTED, BODY])
    while not peers.router.poll(1000):
        pass
    peers.dealers[0].send_multipart(frames)
    peers.dealers[0].send_multipart([EXPECTED, BODY])
    (first, second), others = root(HEADER, None, EXPECTED, SHAPE)
    assert first is None
    assert others == [b"one", *frames]
    if second is None:  # inproc pipes are read by turns
        assert peers.router.recv_multipart() == [b"other", EXPECTED, BODY]
    assert peers.router.recv_multipart() == [b"one", EXPECTED, BODY]
    peers.pub.send_multipart(frames)
    peers.pub.send_multipart([EXPECTED, BODY])
    assert worker(HEADER, None, EXPECTED, SHAPE) == ([None], frames)
    (arrived,), others = worker(HEADER, None, EXPECTED, SHAPE)
    np.testing.assert_array_equal(arrived, PART)


def test_a_stranger_and_a_peer_that_repeats_itself_are_handed_back(meet: Meet) -> None:
    peers = meet(b"one", b"stranger")
    root = trade_of(peers.pub, peers.router, LONG_S, b"one", b"two")
    peers.dealers[1].send_multipart([EXPECTED, BODY])
    assert root(HEADER, None, EXPECTED, SHAPE) == ([None, None], [b"stranger", EXPECTED, BODY])
    peers.dealers[0].send_multipart([EXPECTED, BODY])
    peers.dealers[0].send_multipart([EXPECTED, (PART + 1).tobytes()])
    (first, second), others = root(HEADER, None, EXPECTED, SHAPE)
    np.testing.assert_array_equal(first, PART)
    assert second is None
    assert others == [b"one", EXPECTED, (PART + 1).tobytes()]


def test_shapes_may_change_from_call_to_call(meet: Meet) -> None:
    peers = meet(b"one")
    root = trade_of(peers.pub, peers.router, LONG_S, b"one")
    for shape in [(1, 8192), (64, 8192), (1, 1), (1, 8192)]:
        part: U8 = np.full(shape, shape[0], np.uint8)
        peers.dealers[0].send_multipart([EXPECTED, part.tobytes()])
        (arrived,), _ = root(HEADER, None, EXPECTED, shape)
        np.testing.assert_array_equal(arrived, part)


def test_a_connection_that_is_not_there_loses_what_is_sent_and_blocks_nobody() -> None:
    context: zmq.Context[Any] = zmq.Context()
    dealer, sub = context.socket(zmq.DEALER), context.socket(zmq.SUB)
    dealer.set(zmq.IMMEDIATE, 1)
    try:
        dealer.connect(f"ipc:///tmp/nobody-{secrets.token_hex(6)}")
        assert trade_of(dealer, sub, 0.0, b"")(HEADER, PART, EXPECTED, SHAPE) == ([None], None)
    finally:
        dealer.close(linger=0)
        sub.close(linger=0)
        context.term()


def test_the_numpy_back_end_has_no_short_way(meet: Meet) -> None:
    peers = meet(b"one")
    assert make_trade(choose_kernels("numpy", 1), peers.pub, peers.router, 0.0, [b"one"]) is None
