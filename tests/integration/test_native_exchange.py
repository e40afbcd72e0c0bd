"""The fast path (bus/native/exchange.py): it takes what is awaited to the byte, and hands back all else as it came."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any, TypeAlias

import numpy as np
import pytest
import zmq
from contexts import a_context

from dllama_zmq.bus.native.exchange import NativeExchange, Wiring, make_native_exchange
from dllama_zmq.kernels import Reference, choose_kernels
from dllama_zmq.kernels.profiled import Profiled
from dllama_zmq.quants import F32, U8
from dllama_zmq.spec import Sync

Socket: TypeAlias = zmq.Socket[Any]
HEADER, EXPECTED = b"\x96 a sum's header", b"\x96 a partial's header"
OWN = np.arange(64, dtype=np.float32).reshape(2, 32)
PART = OWN * np.float32(100)
BODY = PART.tobytes()
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
    with a_context() as context, ExitStack() as cleanup:

        def meet(*identities: bytes) -> Peers:
            return cleanup.enter_context(closing(Peers(context, list(identities))))

        yield meet


def exchange_of(
    to: Socket,
    source: Socket,
    spin_s: float,
    order: Sequence[int],
    *identities: bytes,
    publish_sum: bool = False,
    sync: Sync = "f32",
) -> NativeExchange:
    wiring = Wiring(to, source, spin_s, order, identities or (b"",), publish_sum)
    made = make_native_exchange(choose_kernels("simd", 1), sync, wiring)
    assert made is not None
    return made


def raw(values: F32) -> U8:
    """Values as they cross the bus in f32."""
    return np.ascontiguousarray(values).view(np.uint8)


def test_one_of_a_pair_sends_its_part_and_adds_the_others(meet: Meet) -> None:
    peers = meet(b"one")
    root = exchange_of(peers.pub, peers.router, LONG_S, (0, 1), b"one")
    worker = exchange_of(peers.dealers[0], peers.subs[0], LONG_S, (1, 0))
    peers.dealers[0].send_multipart([EXPECTED, BODY])
    np.testing.assert_array_equal(root(HEADER, raw(OWN), EXPECTED), OWN + PART)
    assert 0 <= root.waited_s < LONG_S
    assert root.unexpected() is None
    np.testing.assert_array_equal(worker(EXPECTED, raw(OWN), HEADER), OWN + OWN)
    assert peers.router.recv_multipart() == [b"one", EXPECTED, OWN.tobytes()]


def test_the_root_of_a_star_adds_in_node_order_whatever_order_parts_come_in_and_sends_the_sum(meet: Meet) -> None:
    peers = meet(b"one", b"two", b"three")
    root = exchange_of(peers.pub, peers.router, LONG_S, range(4), b"one", b"two", b"three", publish_sum=True)
    parts = [np.full((1, 32), value, np.float32) for value in (1e8, -1e8, 3.0, 0.1)]
    for i in (2, 0, 1):
        peers.dealers[i].send_multipart([EXPECTED, parts[i + 1].tobytes()])
    total = root(HEADER, raw(parts[0]), EXPECTED)
    np.testing.assert_array_equal(total, (parts[0] + parts[1]) + (parts[2] + parts[3]))
    assert total[0, 0] == np.float32(3.1), "one after another gives 3.1 only by luck, and another order 0 or 8"
    for sub in peers.subs:
        assert sub.recv_multipart() == [HEADER, total.tobytes()]
    assert root.published is not None
    assert root.published.tobytes() == total.tobytes()
    assert root.last == 1, "the second peer's part was sent last"


def test_a_worker_of_a_star_takes_the_sum_as_it_is(meet: Meet) -> None:
    peers = meet(b"one")
    worker = exchange_of(peers.dealers[0], peers.subs[0], LONG_S, (1,))
    peers.pub.send_multipart([HEADER, BODY])
    np.testing.assert_array_equal(worker(EXPECTED, raw(OWN), HEADER), PART)


@pytest.mark.parametrize("sync", ["f16", "q80"])
def test_a_sender_continues_with_the_rounded_values_that_it_sent(meet: Meet, sync: Sync) -> None:
    peers = meet(b"one", b"two")
    kernels = choose_kernels("simd", 1)
    root = exchange_of(peers.pub, peers.router, LONG_S, range(3), b"one", b"two", publish_sum=True, sync=sync)
    values = [np.random.default_rng(i).standard_normal((3, 96), np.float32) for i in range(3)]
    parts = [kernels.encode(value, sync) for value in values]
    for dealer, part in zip(peers.dealers, parts[1:], strict=True):
        dealer.send_multipart([EXPECTED, part.tobytes()])
    total = root(HEADER, parts[0], EXPECTED)
    wire, decoded = Reference().add_up(parts, sync, encoded=True)
    assert wire is not None
    assert peers.subs[0].recv_multipart() == [HEADER, wire.tobytes()]
    np.testing.assert_array_equal(total, decoded)


def test_many_values_are_left_to_all_threads(meet: Meet) -> None:
    peers = meet(b"one", b"two")
    root = exchange_of(peers.pub, peers.router, LONG_S, range(3), b"one", b"two", publish_sum=True)
    own = np.ones((64, 512), np.float32)
    for i, dealer in enumerate(peers.dealers):
        dealer.send_multipart([EXPECTED, (own * (i + 2)).tobytes()])
    assert root(HEADER, raw(own), EXPECTED) is None
    np.testing.assert_array_equal(
        [part.view(np.float32) for part in root.parts if part is not None], [own * 2, own * 3]
    )
    assert not peers.subs[0].poll(0)
    root.send(HEADER, raw(own * 6))
    assert peers.subs[0].recv_multipart() == [HEADER, (own * 6).tobytes()]
    for dealer in peers.dealers:
        dealer.send_multipart([EXPECTED, OWN.tobytes()])
    np.testing.assert_array_equal(root(HEADER, raw(OWN), EXPECTED), OWN * 3)


def test_a_late_part_is_not_waited_for_and_the_next_call_takes_it(meet: Meet) -> None:
    peers = meet(b"one", b"other")
    root = exchange_of(peers.pub, peers.router, SOON_S, range(3), b"one", b"other", publish_sum=True)
    peers.dealers[1].send_multipart([EXPECTED, BODY])
    assert root(HEADER, raw(OWN), EXPECTED) is None
    first, second = root.parts
    assert first is None
    assert second is not None
    assert second.tobytes() == BODY
    assert root.unexpected() is None
    assert root.waited_s >= SOON_S
    assert not peers.subs[0].poll(0), "a sum without one of its parts"
    for dealer in peers.dealers:
        dealer.send_multipart([EXPECTED, BODY])
    np.testing.assert_array_equal(root(HEADER, raw(OWN), EXPECTED), OWN + PART + PART)


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
    peers = meet(b"one")
    root = exchange_of(peers.pub, peers.router, LONG_S, (0, 1), b"one")
    worker = exchange_of(peers.dealers[0], peers.subs[0], LONG_S, (1, 0))
    peers.dealers[0].send_multipart(frames)
    peers.dealers[0].send_multipart([EXPECTED, BODY])
    assert root(HEADER, raw(OWN), EXPECTED) is None
    assert root.parts == [None]
    assert root.unexpected() == [b"one", *frames]
    np.testing.assert_array_equal(root(HEADER, raw(OWN), EXPECTED), OWN + PART)
    peers.pub.send_multipart(frames)
    for _ in range(2):
        np.testing.assert_array_equal(worker(EXPECTED, raw(OWN), HEADER), OWN + OWN)
    assert worker(EXPECTED, raw(OWN), HEADER) is None
    assert worker.unexpected() == frames


def test_a_stranger_and_a_peer_that_repeats_itself_are_handed_back(meet: Meet) -> None:
    peers = meet(b"one", b"stranger")
    root = exchange_of(peers.pub, peers.router, LONG_S, range(3), b"one", b"two", publish_sum=True)
    peers.dealers[1].send_multipart([EXPECTED, BODY])
    assert root(HEADER, raw(OWN), EXPECTED) is None
    assert root.unexpected() == [b"stranger", EXPECTED, BODY]
    peers.dealers[0].send_multipart([EXPECTED, BODY])
    peers.dealers[0].send_multipart([EXPECTED, OWN.tobytes()])
    assert root(HEADER, raw(OWN), EXPECTED) is None
    first, second = root.parts
    assert first is not None
    assert first.tobytes() == BODY
    assert second is None
    assert root.unexpected() == [b"one", EXPECTED, OWN.tobytes()]


def test_a_connection_that_is_not_there_loses_what_is_sent_and_blocks_nobody() -> None:
    with a_context() as context:
        dealer, sub = context.socket(zmq.DEALER), context.socket(zmq.SUB)
        dealer.set(zmq.IMMEDIATE, 1)
        try:
            dealer.connect(f"ipc:///tmp/nobody-{secrets.token_hex(6)}")
            exchange = exchange_of(dealer, sub, 0.0, (1, 0))
            assert exchange(HEADER, raw(OWN), EXPECTED) is None
            assert (exchange.parts, exchange.unexpected()) == ([None], None)
        finally:
            dealer.close(linger=0)
            sub.close(linger=0)


def test_the_numpy_back_end_has_no_fast_path(meet: Meet) -> None:
    peers = meet(b"one")
    numpy_kernels = choose_kernels("numpy", 1)
    wiring = Wiring(peers.pub, peers.router, 0.0, (0, 1), [b"one"])
    assert make_native_exchange(numpy_kernels, "f32", wiring) is None
    timed = Profiled(choose_kernels("simd", 1))
    assert make_native_exchange(timed, "f32", wiring) is not None
