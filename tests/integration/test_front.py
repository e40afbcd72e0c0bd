"""The front beside an engine that is in a long step: what it says to the engine, and who gets a place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from command_line import until
from integration.front_alone import PLACES, SOON_S, Engine, front_alone
from integration.nodes import Context
from tiny import tiny_tokenizer_data
from tokenizers_of import of_t

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import NO_STEPS, Done, KVStatus, Piece, Queued, Started, Status
from dllama_zmq.bus.engine_messages import (
    AskReport,
    Ended,
    Readiness,
    Report,
    Sampled,
    Stepped,
    Submit,
    Withdraw,
    Withdrawn,
)


@pytest.fixture
def engine(context: Context) -> Iterator[Engine]:
    """Of a front that has been told that the cluster is ready."""
    with front_alone(context, of_t(tiny_tokenizer_data())) as engine:
        engine.tell(Readiness(True, "", 60.0))
        yield engine


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
