"""The meter's wire bytes against the bytes that really pass between the root and a worker, counted on TCP.

Both of a worker's connections go through forwarders that keep every byte. What they kept is read here with nothing but
ZMTP (rfc.zeromq.org/spec/23): a greeting of 64 bytes, then frames of flags, length and body.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgpack
import pytest
from contexts import a_context
from generating import tokens_of
from surroundings import free_ports
from tiny import tiny_spec, tiny_tokenizer_data, write_tiny_model
from tokenizers_of import of_t

from dllama_zmq.bus.links import Endpoints
from dllama_zmq.bus.meter import wire_bytes
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sampling import Sampling
from dllama_zmq.spec import Sync
from dllama_zmq.worker import Worker, WorkerSettings

GREETING_BYTES = 64
MORE, LONG, COMMAND = 1, 2, 4
STEP_KINDS = {"step", "sum", "partial", "candidates", "more_candidates"}
SETUP_KINDS = {"welcome", "plan", "offer", "weights", "credit", "need", "loaded"}


class Forwarder:
    """Passes TCP connections on to a port and keeps what went through, each direction of each connection apart."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.to_root: list[bytearray] = []
        self.to_worker: list[bytearray] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        for s in [self._listener, *self._sockets]:
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5.0)
        for s in [self._listener, *self._sockets]:
            s.close()

    def _start(self, run: object, *args: object) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                worker, _ = self._listener.accept()
                root = socket.create_connection(("127.0.0.1", self._to_port))
            except OSError:
                return
            self._sockets += [worker, root]
            for kept, source, sink in ((self.to_root, worker, root), (self.to_worker, root, worker)):
                kept.append(bytearray())
                self._start(self._pass_on, source, sink, kept[-1])

    def _pass_on(self, source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                kept += data
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class Forwarded(Endpoints, frozen=True):
    """Sends every worker, of this host or not, to the forwarders."""

    public_steps: str = ""
    public_replies: str = ""

    def for_worker(self, same_host: bool) -> tuple[str, str]:
        return self.public_steps, self.public_replies


def messages_of(stream: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Every message in one direction of a ZMTP connection: all its bytes, and its frames. Commands are skipped."""
    at, n_bytes, frames = GREETING_BYTES, 0, []
    while at < len(stream):
        flags = stream[at]
        length_bytes = 8 if flags & LONG else 1
        start = at + 1 + length_bytes
        end = start + int.from_bytes(stream[at + 1 : start], "big")
        assert end <= len(stream), "the stream ends within a frame"
        if not flags & COMMAND:
            n_bytes += end - at
            frames.append(bytes(stream[start:end]))
            if not flags & MORE:
                yield n_bytes, frames
                n_bytes, frames = 0, []
        at = end


def counted(streams: Sequence[bytearray]) -> Counter[str]:
    """Bytes on TCP by kind of message, and the number of them under `kind #`."""
    bytes_by_kind: Counter[str] = Counter()
    for stream in streams:
        for n_bytes, frames in messages_of(bytes(stream)):
            with suppress(ValueError):  # a subscription is one byte and no header
                kind = msgpack.unpackb(frames[0])[1]
                bytes_by_kind[kind] += n_bytes
                bytes_by_kind[f"{kind} #"] += 1
    return bytes_by_kind


@contextmanager
def metered_run(folder: Path, sync: Sync) -> Iterator[tuple[Root, Forwarder, Forwarder]]:
    """A root and a worker joined by forwarders alone, which have answered two requests and parted."""
    spec = tiny_spec(dim=128, hidden_dim=256, n_kv_heads=4, seq_len=64)
    tokenizer = of_t(tiny_tokenizer_data(spec.vocab_size))
    with a_context() as context, write_tiny_model(folder / "tiny.m", spec) as model:
        steps_port, replies_port = free_ports(2)
        steps, replies = Forwarder(steps_port), Forwarder(replies_port)
        endpoints = Forwarded(
            steps=[f"tcp://127.0.0.1:{steps_port}"],
            replies=[f"tcp://127.0.0.1:{replies_port}"],
            public_steps=steps.address,
            public_replies=replies.address,
        )
        root = Root(context, model, RootSettings(names=["worker1"], sync=sync, spin_s=0.0), endpoints)
        worker = Worker(context, WorkerSettings(root=replies.address, name="worker1", spin_s=0.0))
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        try:
            root.wait_ready(time.monotonic() + 30)
            engine = Engine(root, 1)
            for sampling in (Sampling(), Sampling(temperature=50.0, seed=5)):
                assert len(tokens_of(engine, tokenizer.encode("the cat and the dog"), 10, sampling)) == 10
            root.close("done")
            thread.join(10)
            assert not thread.is_alive()
            yield root, steps, replies
        finally:
            worker.stop()
            root.close("done")
            thread.join(10)
            steps.close()
            replies.close()


@pytest.mark.parametrize("sync", ["f32", "q80"])
def test_the_meters_wire_bytes_are_the_bytes_on_tcp(tmp_path: Path, sync: Sync) -> None:
    with metered_run(tmp_path, sync) as (root, steps, replies):
        assert root.link is not None
        metered: Counter[str] = Counter()
        for tally in root.link.meter.tallies():
            metered[tally.kind] += tally.wire_bytes
            metered[f"{tally.kind} #"] += tally.messages
        tcp = counted(steps.to_worker) + counted(replies.to_worker) + counted(replies.to_root)
    for kind in STEP_KINDS | SETUP_KINDS:
        assert tcp[f"{kind} #"] == metered[f"{kind} #"] > 0, kind
        assert tcp[kind] == metered[kind], kind


def test_frames_are_headed_by_2_bytes_up_to_255_and_by_9_above() -> None:
    assert wire_bytes([b""]) == 2
    assert wire_bytes([bytes(255)]) == 257
    assert wire_bytes([bytes(256)]) == 265
    assert wire_bytes([bytes(30), bytes(4096), bytes(8)]) == 2 + 30 + 9 + 4096 + 2 + 8
