"""A front whose engine is played by the test: it is in a long step until the test says something."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq
from integration.nodes import Context

from dllama_zmq.bus import sockets
from dllama_zmq.bus.client_messages import TO_CLIENT
from dllama_zmq.bus.codec import decode
from dllama_zmq.bus.engine_messages import (
    ENCODER,
    TO_ENGINE,
    Facts,
    Listening,
    Submit,
    ToEngine,
    ToFront,
)
from dllama_zmq.bus.messages import Message
from dllama_zmq.bus.peers import Peers
from dllama_zmq.bus.text_messages import Model
from dllama_zmq.front.front import Front
from dllama_zmq.tokenizer import Tokenizer

SOON_S = 20.0
PLACES = 8
N_IDS = 288
CONTEXT = 64


def a_model(context_length: int) -> Model:
    """What the engine says of it."""
    return Model(
        id=0,
        name="tiny",
        path="/tiny.m",
        architecture="llama",
        n_params=1000,
        size_bytes=2000,
        seq_len=context_length,
        context=context_length,
        vocab_size=N_IDS,
        dim=64,
        bos="",
        eos=[],
        template="",
        specials={},
        created=1,
    )


@dataclass
class Engine:
    """The engine's side by hand, which does nothing of itself."""

    link: zmq.Socket[bytes]
    address: str

    def tell(self, message: ToFront) -> None:
        self.link.send(ENCODER.encode(message))

    def hear(self, wait_s: float = SOON_S) -> ToEngine:
        assert self.link.poll(round(wait_s * 1000)), "the front has said nothing"
        return TO_ENGINE.decode(self.link.recv())

    def heard(self) -> list[ToEngine]:
        """All that the front has said and nobody has heard."""
        said = []
        while self.link.poll(0):
            said.append(TO_ENGINE.decode(self.link.recv()))
        return said

    def submitted(self) -> Submit:
        """The next thing that the front says, which must be that."""
        message = self.hear()
        assert isinstance(message, Submit)
        return message


@contextmanager
def front_alone(context: Context, tokenizer: Tokenizer, context_length: int = CONTEXT) -> Iterator[Engine]:
    """A front that has PLACES places for answers, and has not heard that the nodes are ready."""
    link, address = f"inproc://{secrets.token_hex(6)}", f"ipc:///tmp/dz-{secrets.token_hex(6)}"
    ends = [sockets.pair(context, link, bind=True), sockets.pair(context, link)]
    readable, writable = os.pipe()
    front = Front(ends[1], readable, tokenizer, lambda at: Peers(context, at, sockets.CLIENTS))
    thread = threading.Thread(target=front.run, daemon=True)
    thread.start()
    engine = Engine(ends[0], address)
    try:
        engine.tell(Facts([address], PLACES, 60.0, a_model(context_length)))
        assert engine.hear() == Listening("")
        yield engine
    finally:
        os.close(writable)
        thread.join(SOON_S)
        os.close(readable)
        for end in ends:
            end.close(linger=0)
        Path(address.removeprefix("ipc://")).unlink(missing_ok=True)
    assert not thread.is_alive()


@contextmanager
def raw(context: Context, address: str) -> Iterator[zmq.Socket[bytes]]:
    """A client without a Client, which sees every message."""
    client = sockets.connect(context, zmq.DEALER, address)
    try:
        yield client
    finally:
        client.close(linger=0)


def next_message(client: zmq.Socket[bytes]) -> Message:
    """The next message to a raw client."""
    frames = sockets.receive(client, time.monotonic() + SOON_S)
    assert frames is not None
    return decode(frames, TO_CLIENT)[0]
