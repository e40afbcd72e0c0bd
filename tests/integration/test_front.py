"""The front beside an engine that is in a long step: what it says to the engine, and who gets a place."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq
from command_line import until
from integration.nodes import Context
from tiny import tiny_tokenizer_data
from tokenizers_of import of_t

from dllama_zmq import Client
from dllama_zmq.bus import sockets
from dllama_zmq.bus.client_messages import NO_STEPS, Done, KVStatus, Piece, Queued, Started, Status
from dllama_zmq.bus.engine_messages import (
    ENCODER,
    TO_ENGINE,
    AskReport,
    Ended,
    Facts,
    Listening,
    ModelFacts,
    Readiness,
    Report,
    Sampled,
    Stepped,
    Submit,
    ToEngine,
    ToFront,
    Withdraw,
    Withdrawn,
)
from dllama_zmq.bus.peers import Peers
from dllama_zmq.front.front import Front

SOON_S = 20.0
PLACES = 8
MODEL = ModelFacts("tiny", "/tiny.m", "llama", 1000, 2000, 64, 1)


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


@pytest.fixture
def engine(context: Context) -> Iterator[Engine]:
    """A front that has been told that the cluster is ready."""
    link, address = f"inproc://{secrets.token_hex(6)}", f"ipc:///tmp/dz-{secrets.token_hex(6)}"
    ends = [sockets.pair(context, link, bind=True), sockets.pair(context, link)]
    readable, writable = os.pipe()
    front = Front(ends[1], readable, of_t(tiny_tokenizer_data()), lambda at: Peers(context, at, sockets.CLIENTS))
    thread = threading.Thread(target=front.run, daemon=True)
    thread.start()
    engine = Engine(ends[0], address)
    engine.tell(Facts([address], 64, 64, 288, PLACES, 60.0, MODEL))
    assert engine.hear() == Listening("")
    engine.tell(Readiness(True, "", 60.0))
    yield engine
    os.close(writable)
    thread.join(SOON_S)
    os.close(readable)
    for end in ends:
        end.close(linger=0)
    Path(address.removeprefix("ipc://")).unlink(missing_ok=True)
    assert not thread.is_alive()


def test_who_begins_and_cancels_in_a_loop_does_not_fill_the_queue_to_the_engine(engine: Engine) -> None:
    with Client(engine.address) as client:
        for _ in range(50):
            answers = client.generate("the cat")
            while not isinstance(next(answers), Started | Queued):
                pass
            answers.close()
        last = client.generate("the cat")
        assert isinstance(next(last), Queued)
        said = engine.heard()
        kinds = [type(message) for message in said]
        assert kinds.count(Submit) == kinds.count(Withdraw) == PLACES
        for message in said:
            if isinstance(message, Withdraw):
                engine.tell(Withdrawn(message.id))
        assert isinstance(engine.hear(), Submit)
        assert isinstance(next(answer for answer in last if not isinstance(answer, Queued)), Started)


def test_the_last_place_is_for_a_client_that_has_none(engine: Engine) -> None:
    with Client(engine.address) as greedy, Client(engine.address) as other:
        requests = [greedy.generate("once upon a time") for _ in range(PLACES)]
        for request in requests[:-1]:
            assert isinstance(next(request), Started)
        assert isinstance(next(requests[-1]), Queued)
        assert isinstance(next(other.generate("the cat")), Started)
        for request in requests[:2]:
            of_engine = engine.hear()
            assert isinstance(of_engine, Submit)
            engine.tell(Stepped(NO_STEPS, [], [Sampled(of_engine.id, 40, [])], [Ended(of_engine.id, "length")]))
            assert [type(answer) for answer in request] == [Piece, Done]
        assert isinstance(next(answer for answer in requests[-1] if not isinstance(answer, Queued)), Started)


def test_the_engine_is_asked_for_one_report_at_a_time(engine: Engine) -> None:
    kv = KVStatus(64, 1, 0, 0, 0, 0, 0)
    status = Status(
        0, "c", "0", "ready", "", 1, 0.0, "m", "", "f32", "numpy", 64, 0, 0, [], kv, False, {}, {}, {}, [], {}, []
    )
    engine.tell(Report(status))
    with Client(engine.address) as client:
        for _ in range(3):
            assert client.status().name == "c"
        assert engine.heard() == [AskReport()]
        engine.tell(Report(status))
        until(lambda: client.status() and engine.heard() == [AskReport()], SOON_S, "the next question")
