"""What a client hears when its root ends, or another one takes its place."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.nodes import Context
from integration.services import SOON_S, serving
from tiny import tiny_spec, write_tiny_pair

from dllama_zmq import Client
from dllama_zmq.bus import sockets
from dllama_zmq.bus.client_messages import FROM_CLIENT, Done, Generate, Prefill, Queued, Started, TokenText
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.peers import Peers
from dllama_zmq.client import Computing
from dllama_zmq.errors import ClusterError, RootLost
from dllama_zmq.formats import ModelFile


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_pair(tmp_path_factory.mktemp("model"), tiny_spec()) as file:
        yield file


def test_messages_that_a_client_has_not_read_when_the_root_stops_are_read_all_the_same(
    context: Context, model: ModelFile
) -> None:
    with contextlib.ExitStack() as stack:
        with serving(context, model, []) as address:
            client = stack.enter_context(Client(address))
            answers = client.generate("once upon a time", max_tokens=5, ignore_eos=True)
            found = [next(answers)]
            with Client(address) as other:
                until = time.monotonic() + SOON_S
                while (status := other.status()).active or status.queued:
                    assert time.monotonic() < until
        found += answers
        assert [type(answer) for answer in found if not isinstance(answer, Queued | Prefill)] == [
            Started,
            *[TokenText] * 5,
            Done,
        ]
        with pytest.raises(RootLost):
            client.status(wait_s=0.1)


def test_all_requests_of_a_client_end_with_the_root_that_says_why(context: Context, model: ModelFile) -> None:
    with contextlib.ExitStack() as stack:
        with serving(context, model, ["worker1"]) as address:  # which does not come
            client = stack.enter_context(Client(address))
            requests = [client.generate("once upon a time") for _ in range(3)]
            assert [type(next(request)) for request in requests] == [Queued] * 3
        for request in requests:
            with pytest.raises(ClusterError, match="the cluster is going down"):
                assert not [answer for answer in request if isinstance(answer, Computing)]


def test_all_requests_of_a_client_end_with_the_root_that_says_nothing(context: Context, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/clients"
    root = Peers(context, [address], sockets.CLIENTS)

    def queue_each() -> None:
        for _ in requests:
            frames = root.receive(time.monotonic() + SOON_S, 0.0)
            assert frames is not None
            message, _ = decode(frames[1:], FROM_CLIENT)
            assert isinstance(message, Generate)
            root.send(bytes(frames[0]), encode(Queued(message.id, 1, "", 100.0)))

    with Client(address) as client:
        requests = [client.generate("once upon a time") for _ in range(3)]
        queueing = threading.Thread(target=queue_each)
        queueing.start()
        assert [type(next(request)) for request in requests] == [Queued] * 3
        queueing.join(SOON_S)
        root.close()
        for request in requests:
            with pytest.raises(RootLost, match="went away"):
                assert not [answer for answer in request if isinstance(answer, Computing)]


def test_a_client_finds_a_root_again_that_was_started_anew(context: Context, model: ModelFile) -> None:
    texts = []
    with contextlib.ExitStack() as stack:
        with serving(context, model, []) as address:
            client = stack.enter_context(Client(address))
            texts.append(client.text("once upon a time", max_tokens=3))
        assert client._connection.lost(SOON_S)  # what is sent before it knows is lost with the root that was there
        with serving(context, model, [], at=address):
            texts.append(client.text("once upon a time", max_tokens=3))
    assert texts[0] == texts[1]
