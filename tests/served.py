"""A root that answers clients: its engine and its front in threads of this process, joined as their processes are."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import zmq

from dllama_zmq.bus import sockets
from dllama_zmq.bus.peers import Peers
from dllama_zmq.bus.security import Server
from dllama_zmq.constraint.matching import Vocabulary
from dllama_zmq.front.front import Front
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.report import ClusterFacts
from dllama_zmq.root.root import Root
from dllama_zmq.root.serving import Serving
from dllama_zmq.tokenizer import Tokenizer

END_S = 20.0


@contextmanager
def a_front(
    context: zmq.Context[zmq.Socket[bytes]],
    root: Root,
    tokenizer: Tokenizer,
    clients: str = "",
    max_sequences: int = 16,
    busy_s: float = 0.0,
    security: Server | None = None,
) -> Iterator[tuple[Serving, str, BinaryIO]]:
    """The engine's side of a front, to be opened and run, the address of clients, and what keeps the front alive.

    clients: that address; a new one over ipc by default. busy_s: so long the front answers nobody. security: whose keys
    clients must have.
    """
    link, address = f"inproc://front-{secrets.token_hex(6)}", clients or f"ipc:///tmp/dz-{secrets.token_hex(6)}"
    readable, writable = os.pipe()
    alive = os.fdopen(writable, "wb")
    ends = [sockets.pair(context, link, bind=True), sockets.pair(context, link)]
    peers = Peers(context, [address], sockets.CLIENTS, security=security)
    front = Front(ends[1], readable, tokenizer, lambda endpoints: peers)

    def run() -> None:
        time.sleep(busy_s)  # what is slow here, not a wait for anything
        front.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        serving = Serving(
            Engine(root, max_sequences, Vocabulary(tokenizer, root.spec.vocab_size)),
            ends[0],
            ClusterFacts("tests", "0", "tiny.m"),
        )
        yield serving, address, alive
    finally:
        alive.close()
        thread.join(END_S)
        os.close(readable)
        for end in ends:
            end.close(linger=0)
        if not peers.socket.closed:
            peers.close()
        Path(address.removeprefix("ipc://")).unlink(missing_ok=True)
    assert not thread.is_alive()


@contextmanager
def served(
    context: zmq.Context[zmq.Socket[bytes]],
    root: Root,
    tokenizer: Tokenizer,
    clients: str = "",
    max_sequences: int = 16,
    busy_s: float = 0.0,
    security: Server | None = None,
) -> Iterator[str]:
    """The address of `root`, which serves clients until the block ends. The rest is as in `a_front`."""
    with a_front(context, root, tokenizer, clients, max_sequences, busy_s, security) as (serving, address, alive):

        def run() -> None:
            serving.open([address])
            serving.run()
            alive.close()  # as the end of the root's process does

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield address
        finally:
            serving.stop()
            thread.join(END_S)
    assert not thread.is_alive()
