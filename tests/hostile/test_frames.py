"""Bytes meant to harm, to every socket of a living cluster: whatever they are, it goes on answering, and rightly."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import msgspec
import pytest
import zmq
from contexts import a_context
from hostile.flood import GREETING, SECURED
from hostile.living import (
    ANSWER_MS,
    ANSWER_S,
    HUGE_LENGTHS,
    KINDS,
    SPEC,
    VERSION,
    Context,
    Frames,
    Living,
    connected,
    few,
    fields,
    hostile,
    living,
    messages,
    understood,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from integration.nodes import pieces_of
from integration.raw_root import RawRoot
from integration.stranger import Stranger
from secured import Secured
from surroundings import free_ports
from tiny import write_tiny_pair

from dllama_zmq import Client
from dllama_zmq.bus import guard
from dllama_zmq.bus.client_messages import FROM_CLIENT
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.bus.messages import PROTOCOL, TO_ROOT, TO_WORKER
from dllama_zmq.errors import DllamaError, ProtocolError
from dllama_zmq.formats import ModelFile
from dllama_zmq.kernels import Batch
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.worker import Worker, WorkerSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_pair(tmp_path_factory.mktemp("model"), SPEC) as file:
        yield file


@pytest.fixture(scope="module", params=["open", "secured"])
def cluster(model: ModelFile, request: pytest.FixtureRequest) -> Iterator[Living]:
    secured = Secured() if request.param == "secured" else None
    keys = None if secured is None else secured.peer("worker1")

    def a_worker(context: Context, replies: str) -> Callable[[], None]:
        return Worker(context, WorkerSettings(replies, spin_s=0.0, security=keys)).run

    with pytest.MonkeyPatch.context() as limits, living(model, a_worker, secured) as cluster:
        limits.setattr(guard, "_MESSAGES", 1_000_000)  # all frames are to be read; `test_peers.py` tests the limit
        yield cluster


@pytest.fixture(scope="module")
def outside() -> Iterator[Context]:
    """A context that is not the cluster's."""
    with a_context() as context:
        yield context


# --- to the root ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("link", "kind"), [("replies", zmq.DEALER), ("clients", zmq.DEALER), ("steps", zmq.XSUB)])
def test_a_root_answers_rightly_after_any_frames_to_any_of_its_sockets(
    link: str, kind: int, cluster: Living, outside: Context
) -> None:
    kinds = FROM_CLIENT if link == "clients" else TO_ROOT
    n_understood = 0
    with connected(outside, kind, cluster.addresses[link], cluster.peer(link)) as peer:

        @settings(few, max_examples=20)
        @given(frames=hostile, message=messages(kinds))
        def send(frames: Frames, message: Frames) -> None:
            nonlocal n_understood
            n_understood += understood(message, kinds)
            peer.send_multipart(frames)
            peer.send_multipart(message)

        send()
        assert n_understood >= 5
        for header in HUGE_LENGTHS:
            peer.send_multipart([header])
        cluster.answers_as_before()
    cluster.answers_as_before()


def test_a_root_answers_rightly_while_frames_come_without_an_end(cluster: Living, outside: Context) -> None:
    links = ("replies", "clients")
    peers = [connected(outside, zmq.DEALER, cluster.addresses[link], cluster.peer(link)) for link in links]
    noise, stopped = random.Random(1), threading.Event()
    join = msgpack.packb([PROTOCOL, "join", "worker1", "host", 1, "0", "pi3", 1, None])

    def talk() -> None:
        while not stopped.wait(0.001):
            for peer in peers:
                peer.send_multipart([noise.randbytes(50)])
            peers[0].send_multipart([join])

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        cluster.answers_as_before()
    finally:
        stopped.set()
        thread.join(ANSWER_S)
        for peer in peers:
            peer.close(linger=0)


def test_a_frame_longer_than_any_message_costs_its_sender_the_connection(cluster: Living, outside: Context) -> None:
    for link in ("replies", "clients"):
        peer = outside.socket(zmq.DEALER)
        monitor = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        peer.set(zmq.LINGER, 0)
        if (security := cluster.peer(link)) is not None:
            security.apply(peer)
        peer.connect(cluster.addresses[link])
        peer.send(bytes((64 << 20) + 1), copy=False)
        assert monitor.poll(ANSWER_MS), f"{link} took it"
        peer.disable_monitor()
        monitor.close(linger=0)
        peer.close(linger=0)
    cluster.answers_as_before()


STREAMS = {
    "nothing": b"",
    "a web request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": bytes(100_000),
    "ones": b"\xff" * 100_000,
    "a greeting and no more": GREETING,
    "a greeting and a frame of 2^63 bytes": GREETING + b"\x02" + (1 << 63).to_bytes(8, "big"),
    "a greeting and a command of 2^40 bytes": GREETING + b"\x06" + (1 << 40).to_bytes(8, "big") + b"\x05READY",
    "an old protocol": b"\x01\x00\x05\x00hello",
    "half a greeting": GREETING[:20],
    "a greeting with keys and no more": SECURED,
    "a greeting with keys and a HELLO of zeros": SECURED + b"\x04\xc8\x05HELLO\x01\x00" + bytes(192),
    "a greeting with keys and a HELLO of ones": SECURED + b"\x04\xc8\x05HELLO\x01\x00" + b"\xff" * 192,
    "a greeting with keys and an INITIATE before all else": SECURED + b"\x06" + (500).to_bytes(8, "big") + bytes(500),
    "a greeting with keys and a MESSAGE before all else": SECURED + b"\x00\x40\x07MESSAGE" + bytes(56),
    "a greeting with keys and a command of 2^40 bytes": SECURED + b"\x06" + (1 << 40).to_bytes(8, "big") + b"\x05HELLO",
    "a greeting with keys and a READY": SECURED + b"\x04\x06\x05READY",
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_root_answers_rightly_after_any_bytes_to_any_of_its_ports(stream: bytes, cluster: Living) -> None:
    with contextlib.ExitStack() as open_until_answered:
        for address in cluster.addresses.values():
            with contextlib.suppress(ConnectionError):  # the other end may have had enough, of the one before too
                open_until_answered.enter_context(stream_to(address)).sendall(stream)
        cluster.answers_as_before()


@few
@given(stream=st.binary(min_size=1, max_size=300), greeting=st.sampled_from([b"", GREETING, SECURED]))
def test_any_bytes_to_a_port_leave_no_trace(stream: bytes, greeting: bytes, cluster: Living) -> None:
    for address in cluster.addresses.values():
        # Connecting too: a port that has just been flooded may refuse it.
        with contextlib.suppress(ConnectionError), stream_to(address) as peer:
            peer.sendall(greeting + stream)


def stream_to(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), ANSWER_S)


def test_the_cluster_still_answers_rightly_after_all_of_this(cluster: Living) -> None:
    cluster.answers_as_before()


class Noisy(Stranger):
    """A good worker that says nonsense before every part."""

    def __init__(self, context: Context, root: str) -> None:
        super().__init__(context, root)
        self._noise = random.Random(2)

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        noise = self._noise
        kinds = [kind for kind in KINDS if kind not in ("join", "fault")]  # these rightly end the step
        for _ in range(5):
            values = [noise.choice([0, 1, -1, 1 << 40, "", None, [], {}, 0.5, [["f32", 1, 1]]]) for _ in range(6)]
            header = msgpack.packb([PROTOCOL, noise.choice(kinds), *values[: noise.randrange(7)]])
            self.dealer.send_multipart([header, *(noise.randbytes(4) for _ in range(noise.randrange(3)))])
            self.dealer.send_multipart([noise.randbytes(noise.randrange(1, 60))])
        for header in HUGE_LENGTHS:
            self.dealer.send_multipart([header])
        if kind == "partial":
            self.send(kind, *fields[:3], [["f32", 1 << 31, 1 << 31]], arrays=(b"",))
        super().send_part(kind, *fields, arrays=arrays)


def test_a_joined_worker_that_talks_nonsense_between_its_parts_is_understood_all_the_same(
    model: ModelFile, cluster: Living
) -> None:
    with living(model, lambda context, replies: Noisy(context, replies).run) as noisy:
        assert noisy.answer == cluster.answer
        noisy.answers_as_before()


# --- to a worker ------------------------------------------------------------------------------------------------------


def test_a_worker_serves_a_real_root_after_any_frames_to_any_of_its_sockets(model: ModelFile, outside: Context) -> None:
    addresses = [f"tcp://127.0.0.1:{port}" for port in free_ports(2)]
    with a_context() as context:
        thread = threading.Thread(target=Worker(context, WorkerSettings(addresses[0], spin_s=0.0)).run, daemon=True)
        thread.start()
        with a_context() as roots_context, RawRoot(roots_context, *addresses) as raw:
            raw.stays = True
            identity = raw.take_in(plan(), pieces_of(model))

            n_understood = 0

            @settings(few, max_examples=20)
            @given(frames=hostile, message=messages(TO_WORKER))
            def send(frames: Frames, message: Frames) -> None:
                nonlocal n_understood
                n_understood += understood(message, TO_WORKER)
                for sent in (frames, message):
                    raw.router.send_multipart([identity, *sent])
                    raw.pub.send_multipart(sent)

            @few
            @given(
                epoch=st.sampled_from([0, 1, 1, 1, 2]),
                values=fields,
                frames=st.lists(st.binary(max_size=64), max_size=2),
            )
            def send_steps(epoch: int, values: list[Any], frames: Frames) -> None:
                for kind in ("step", "sum", "more_candidates", "ping", "weights"):
                    raw.publish(kind, epoch, *values, arrays=tuple(frames))
                    raw.say(identity, kind, epoch, 1 << 20, *values, arrays=tuple(frames))

            send()
            send_steps()
            assert n_understood >= 5
            for header in HUGE_LENGTHS:
                raw.router.send_multipart([identity, header])
                raw.pub.send_multipart([header])
            raw.publish("beacon", 99)  # it reads on: this is heard, after all of the above
            raw.hear_last("beacon_ack", [99])
        with a_context() as roots_context:
            root = Root(
                roots_context,
                model,
                RootSettings(names=["worker1"], kernels="numpy", spin_s=0.0),
                Endpoints([addresses[1]], [addresses[0]]),
            )
            try:
                root.wait_ready(time.monotonic() + ANSWER_S)
                alone = Root(roots_context, model, RootSettings(kernels="numpy"))
                assert (root.logits(Batch.alone(0, 3), [1, 2, 3]) == alone.logits(Batch.alone(0, 3), [1, 2, 3])).all()
            finally:
                root.close("the test is over")
        thread.join(ANSWER_S)
    assert not thread.is_alive()


def plan() -> list[Any]:
    return [msgspec.to_builtins(SPEC), 2, "f32", "auto", "f32", 64, 1, 5.0]


# --- to a client ------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(frames=hostile)
def test_a_client_meets_any_frames_with_an_error_of_ours(frames: Frames, outside: Context) -> None:
    false_root = outside.socket(zmq.ROUTER)
    false_root.set(zmq.LINGER, 1000)
    address = f"tcp://127.0.0.1:{false_root.bind_to_random_port('tcp://127.0.0.1')}"

    def answer() -> None:
        assert false_root.poll(ANSWER_MS)
        client = false_root.recv_multipart()[0]
        false_root.send_multipart([client, *frames])
        false_root.send_multipart([client, msgpack.packb([PROTOCOL, "error", 0, "RequestError", "the end"])])

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with Client(address) as client, pytest.raises(DllamaError):
        list(client.generate("hello"))
    thread.join(ANSWER_S)
    false_root.close(linger=0)


@pytest.mark.parametrize(
    "frame",
    [b"", b"garbage", b"\x93" + VERSION + b"\xa6queued\x01", b"\x93" + VERSION + b"\xa4step\x01", *HUGE_LENGTHS],
)
def test_garbage_from_a_root_is_a_protocol_error_on_the_client(frame: bytes, outside: Context) -> None:
    false_root = outside.socket(zmq.ROUTER)
    address = f"tcp://127.0.0.1:{false_root.bind_to_random_port('tcp://127.0.0.1')}"

    def answer() -> None:
        assert false_root.poll(ANSWER_MS)
        false_root.send_multipart([false_root.recv_multipart()[0], frame])

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with Client(address) as client, pytest.raises(ProtocolError):
        client.status()
    thread.join(ANSWER_S)
    false_root.close(linger=0)
