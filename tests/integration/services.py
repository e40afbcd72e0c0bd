"""Roots that answer clients, in threads of the test's process."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

from integration.nodes import Context, inproc

from dllama_zmq.bus import sockets
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.bus.peers import Peers
from dllama_zmq.cluster import Limits
from dllama_zmq.formats import ModelFile, read_tokenizer
from dllama_zmq.root.report import ClusterFacts
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.service import Service

SOON_S = 20.0


@contextlib.contextmanager
def a_service(
    context: Context, model: ModelFile, workers: list[str], places: Endpoints, at: str = "", **limits: float
) -> Iterator[tuple[Service, str]]:
    """A root with places for these workers, and the address of its clients, `at` or a new one, until the block ends."""
    settings = RootSettings(names=workers, kernels="numpy", spin_s=0.0, limits=Limits(**limits))
    root = Root(context, model, settings, places)
    address = at or f"ipc:///tmp/dz-{secrets.token_hex(6)}"
    peers = Peers(context, [address], sockets.CLIENTS)
    tokenizer = read_tokenizer(Path(model.path).with_suffix(".t"))
    try:
        yield Service(root, tokenizer, peers, ClusterFacts("clients", "0", "tiny.m")), address
    finally:
        root.close("the test is over")
        peers.close()
        Path(address.removeprefix("ipc://")).unlink(missing_ok=True)


@contextlib.contextmanager
def serving(
    context: Context, model: ModelFile, workers: list[str], busy_s: float = 0.0, at: str = "", **limits: float
) -> Iterator[str]:
    """The address of a root with places for these workers, until the block ends. It answers nobody for `busy_s`."""
    with a_service(context, model, workers, inproc(), at, **limits) as (service, address):

        def run() -> None:
            service.run()
            service._clients.close()  # as the end of the root's process does

        thread = threading.Timer(busy_s, run)
        thread.daemon = True
        thread.start()
        try:
            yield address
        finally:
            service.stop()
            thread.join(SOON_S)
            assert not thread.is_alive()
