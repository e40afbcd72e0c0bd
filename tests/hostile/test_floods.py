"""Floods from strangers on every port: the root's memory stays bounded, and others are served meanwhile and after."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hostile.flood import floods
from surroundings import free_ports
from tiny import tiny_spec, write_tiny_pair

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import FROM_CLIENT, TokenText
from dllama_zmq.bus.codec import decode
from dllama_zmq.bus.messages import PROTOCOL, TO_ROOT, Kinds
from dllama_zmq.errors import RootLost
from dllama_zmq.spec import FloatType

SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q40)
HERE = Path(__file__).parent
MAX_MORE_BYTES = 100 << 20
SLOWER = 2.0
AFTER_S = 2.0
NOISE_S = 0.3  # what a busy machine adds to any request
FLOOD_S = 1.5
TRIES = 6  # of a short flood: what else a busy machine does may begin with the flood, or go on after it

ON_ANY_PORT = [
    "frames of 60 MiB without end",
    "frames of 500 KiB without end",
    "empty frames without end",
    "messages of a million empty frames",
    "long headers",
]
OF_CLIENTS = [
    "status_request",
    "long prompts",
    "10,000 requests",
    "requests without end",
    "one id",
    "begun and cancelled",
    "biases of 100,000 tokens",
    "token ids",
    "chats of 100,000 messages",
    "16 answers each",
    "long texts to tokenize",
    "templates that hang",
]
PORTS = ["steps", "replies", "clients"]
OF_ONE_PORT = [
    *(("clients", kind) for kind in OF_CLIENTS),
    ("clients", "prompts of 1 MB"),
    ("clients", "status is asked and never read"),
    ("replies", "status_request"),
    ("replies", "joins"),
    ("replies", "joins at once"),
    ("replies", "joins over 32 connections"),
    ("steps", "subscriptions"),
    ("steps", "nothing is read"),
]


@pytest.mark.parametrize(
    ("kind", "kinds"),
    [*((kind, FROM_CLIENT) for kind in OF_CLIENTS), ("long headers", FROM_CLIENT), ("joins", TO_ROOT)],
)
def test_the_messages_of_a_flood_are_valid(kind: str, kinds: Kinds) -> None:
    body = floods(PROTOCOL)[kind]()
    size, begin = (body[1], 2) if body[0] == 0 else (int.from_bytes(body[1:9], "big"), 9)
    decode([body[begin : begin + size]], kinds)


@dataclass
class Flooded:
    """A cluster in two processes of its own: the root's, with a worker, and its front's."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    tokens: list[int]
    idle_bytes: int = 0  # before any flood: what one flood has taken, the C library may keep and give to the next

    @property
    def n_bytes(self) -> int:
        """Of both processes; what they share since the fork counts once."""
        root = psutil.Process(self.process.pid)
        return sum(process.memory_full_info().pss for process in [root, *root.children()])

    def request_s(self, client: Client) -> float:
        """How long one request takes, which must be answered rightly."""
        begun = time.monotonic()
        answers = client.generate("once upon a time", max_tokens=8, ignore_eos=True)
        found = [answer.token for answer in answers if isinstance(answer, TokenText)]
        self.tokens = self.tokens or found
        assert found == self.tokens
        return time.monotonic() - begun


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flooded]:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_pair(folder, SPEC).close()
    ports = dict(zip(("steps", "replies", "clients"), free_ports(3), strict=True))
    addresses = [f"tcp://127.0.0.1:{port}" for port in ports.values()]
    command = [sys.executable, str(HERE / "flooded.py"), str(folder / "tiny.m"), *addresses]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(HERE.parent)})
    assert process.stdin is not None
    try:
        cluster = Flooded(process, ports, [])
        until = time.monotonic() + 60
        while not cluster.tokens:
            assert time.monotonic() < until
            assert process.poll() is None
            with contextlib.suppress(RootLost), Client(addresses[2]) as client:
                cluster.request_s(client)
        cluster.idle_bytes = cluster.n_bytes
        yield cluster
        process.stdin.close()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def flood_for(seconds: float, flooded: Flooded, port: str, kind: str) -> str:
    """AssertionError where it fills the memory. How it slowed others down too much; empty where it did not."""
    with Client(f"tcp://127.0.0.1:{flooded.ports['clients']}") as client:
        before = statistics.median(flooded.request_s(client) for _ in range(5))
        command = [sys.executable, str(HERE / "flood.py"), str(flooded.ports[port]), kind, str(PROTOCOL)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as flooder:
            try:
                assert flooder.stdout is not None
                assert flooder.stdout.readline()
                meanwhile, most_bytes, end = [], 0, time.monotonic() + seconds
                while time.monotonic() < end:
                    meanwhile.append(flooded.request_s(client))
                    most_bytes = max(most_bytes, flooded.n_bytes)
                assert flooder.poll() is None
            finally:
                flooder.kill()
        ended = time.monotonic()
        after = flooded.request_s(client)
        while after > before + NOISE_S and time.monotonic() < ended + AFTER_S:
            after = flooded.request_s(client)
    said = (
        f"{port}, {kind}: {before * 1e3:.0f} ms, meanwhile {statistics.median(meanwhile) * 1e3:.0f} ms, "
        f"after {after * 1e3:.0f} ms; +{(most_bytes - flooded.idle_bytes) / 1e6:.0f} MB"
    )
    print(said)
    assert most_bytes < flooded.idle_bytes + MAX_MORE_BYTES
    slow = after > before + NOISE_S or statistics.median(meanwhile) > SLOWER * max(before, after) + NOISE_S
    return said if slow else ""


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("kind", ON_ANY_PORT)
def test_a_flood_of_frames_neither_fills_the_memory_nor_stops_others(port: str, kind: str, flooded: Flooded) -> None:
    some_flood_is_harmless(flooded, port, kind)


@pytest.mark.few(4)
@pytest.mark.parametrize(("port", "kind"), OF_ONE_PORT)
def test_a_flood_of_messages_neither_fills_the_memory_nor_stops_others(port: str, kind: str, flooded: Flooded) -> None:
    some_flood_is_harmless(flooded, port, kind)


def some_flood_is_harmless(flooded: Flooded, port: str, kind: str) -> None:
    tries = (flood_for(FLOOD_S, flooded, port, kind) for _ in range(TRIES))
    assert not all(tries), "one of them has to be as fast"


@pytest.mark.release
@pytest.mark.timeout(240)
@pytest.mark.parametrize("port", PORTS)
def test_a_minute_of_floods_on_a_port_neither_fills_the_memory_nor_stops_others(port: str, flooded: Flooded) -> None:
    kinds = [*ON_ANY_PORT, *(kind for on, kind in OF_ONE_PORT if on == port)]
    for kind in kinds:
        assert not flood_for(60 / len(kinds), flooded, port, kind)


FULL_AND_GONE = """
import contextlib, socket, struct, sys, time, zmq
from hostile.flood import connected, frame
from dllama_zmq.bus import sockets
context = zmq.Context()
port = int(sys.argv[1])
root = sockets.bounded(context, getattr(zmq, sys.argv[2]), getattr(sockets, sys.argv[3]))
sockets.bind(root, [f"tcp://127.0.0.1:{port}"])
peer = connected(port, b"SUB" if sys.argv[2] == "PUB" else b"DEALER")
time.sleep(0.3)
peer.settimeout(1)
with contextlib.suppress(TimeoutError, ConnectionError):
    while True:
        peer.sendall(frame(b"\\x01" + bytes(99)) * 1000)
peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
peer.close()
time.sleep(1.5)  # as a root that computes: longer than two heartbeats
root.close(0)
context.term()
"""


@pytest.mark.parametrize(("kind", "bounds"), [("ROUTER", "CLIENTS"), ("PUB", "STEPS")])
def test_a_peer_that_leaves_while_its_queue_is_full_does_not_end_the_process(kind: str, bounds: str) -> None:
    command = [sys.executable, "-c", FULL_AND_GONE, str(*free_ports(1)), kind, bounds]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(HERE.parent)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
