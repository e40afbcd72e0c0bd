"""The front beside an engine that is in a long step: what it says to the engine, and who gets a place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from command_line import until
from integration.front_alone import PLACES, SOON_S, Engine, front_alone, next_message, raw
from integration.nodes import Context
from statuses import a_status
from tiny import tiny_tokenizer_data
from tokenizers_of import of_t

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import (
    NO_STEPS,
    Cancel,
    Done,
    Error,
    Generate,
    Queued,
    Started,
    StatusRequest,
    TokenText,
)
from dllama_zmq.bus.codec import encode
from dllama_zmq.bus.engine_messages import (
    Ended,
    Readiness,
    Sampled,
    Stepped,
    Submit,
    Withdraw,
    Withdrawn,
)
from dllama_zmq.bus.prompts import MAX_PROMPT_TOKENS
from dllama_zmq.sampling import GREEDY


@pytest.fixture
def engine(context: Context) -> Iterator[Engine]:
    """The address of a front whose cluster is ready."""
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
            assert [type(answer) for answer in request] == [TokenText, Done]
        assert isinstance(next(answer for answer in requests[-1] if not isinstance(answer, Queued)), Started)


def test_the_engine_is_asked_for_one_status_at_a_time(engine: Engine) -> None:
    report = a_status(name="c", state="ready")
    engine.tell(report)
    with Client(engine.address) as client:
        for _ in range(3):
            assert client.status().name == "c"
        assert [type(said) for said in engine.heard()] == [StatusRequest]
        engine.tell(report)
        until(
            lambda: client.status() and [type(said) for said in engine.heard()] == [StatusRequest],
            SOON_S,
            "the next question",
        )


# --- several answers to a request -------------------------------------------------------------------------------------


def submitted(engine: Engine, n: int) -> list[int]:
    """The engine's numbers of the next `n` answers."""
    return [engine.submitted().id for _ in range(n)]


def test_cancelling_is_answered_for_each_answer_that_has_not_ended(context: Context, engine: Engine) -> None:
    n = PLACES + 2  # more than can begin
    with raw(context, engine.address) as client:
        client.send_multipart(encode(Generate(5, "the cat", None, GREEDY, True, [], None, n)))
        assert isinstance(next_message(client), Started)
        begun = submitted(engine, PLACES - 1)  # the last place is for another client
        engine.tell(Stepped(NO_STEPS, [], [Sampled(begun[2], 40, [])], [Ended(begun[2], "length")]))
        assert [type(next_message(client)) for _ in range(2)] == [TokenText, Done]
        begun += submitted(engine, 1)
        client.send_multipart(encode(Cancel(5)))
        ends = [next_message(client) for _ in range(n - 1)]
        assert ends == [Done(5, "cancelled", "", index) for index in range(n) if index != 2]
        withdrawn = [engine.hear() for _ in range(PLACES - 1)]
        assert withdrawn == [Withdraw(id) for id in begun if id != begun[2]]


def test_an_answer_that_fails_ends_its_request_once(context: Context, engine: Engine) -> None:
    with raw(context, engine.address) as client:
        client.send_multipart(encode(Generate(5, "the cat", None, GREEDY, True, [], None, 3)))
        assert isinstance(next_message(client), Started)
        first, second, third = submitted(engine, 3)
        engine.tell(Error(second, "RemoteError", "worker1 failed: no"))
        assert next_message(client) == Error(5, "RemoteError", "worker1 failed: no")
        assert [engine.hear(), engine.hear()] == [Withdraw(first), Withdraw(third)]
        engine.tell(Stepped(NO_STEPS, [], [Sampled(first, 40, [])], [Ended(third, "length")]))
        client.send_multipart(encode(Generate(5, "the cat", None, GREEDY, True, [])))  # its id is free
        assert isinstance(next_message(client), Started)


def test_each_answer_waits_for_its_client_s_turn(context: Context, engine: Engine) -> None:
    with raw(context, engine.address) as client, raw(context, engine.address) as other:
        client.send_multipart(encode(Generate(1, "the cat", None, GREEDY, True, [], None, 16)))
        assert isinstance(next_message(client), Started)
        begun = submitted(engine, PLACES - 1)
        for request_id in (1, 2, 3):
            other.send_multipart(encode(Generate(request_id, [40, 41], None, GREEDY, True, [])))
        waiting = {next_message(other).id for _ in range(3)}  # the first hears Started, the others Queued
        assert waiting == {1, 2, 3}
        assert engine.submitted().tokens == [40, 41]  # the last place
        for id in begun[:4]:
            engine.tell(Stepped(NO_STEPS, [], [], [Ended(id, "length")]))
        of_other = [engine.submitted().tokens == [40, 41] for _ in range(3)]
        assert sum(of_other) >= 1  # not all of them are for who came first


def test_a_request_that_loses_its_place_in_the_queue_loses_its_answers_too(context: Context) -> None:
    long = [40] * MAX_PROMPT_TOKENS  # three of them are more than may wait
    with (
        front_alone(context, of_t(tiny_tokenizer_data()), 2 * MAX_PROMPT_TOKENS) as engine,
        raw(context, engine.address) as client,
        raw(context, engine.address) as second,
        raw(context, engine.address) as third,
    ):
        engine.tell(Readiness(True, "", 60.0))
        client.send_multipart(encode(Generate(1, long, None, GREEDY, True, [], None, 16)))
        assert isinstance(next_message(client), Started)
        begun = submitted(engine, PLACES - 1)
        second.send_multipart(encode(Generate(1, "the cat", None, GREEDY, True, [])))
        assert isinstance(next_message(second), Started)
        submitted(engine, 1)
        for other in (second, third):
            other.send_multipart(encode(Generate(2, long, None, GREEDY, True, [])))
            assert isinstance(next_message(other), Queued)
        error = next_message(client)
        assert isinstance(error, Error)
        assert (error.id, error.kind) == (1, "QueueFull")
        assert [engine.hear() for _ in begun] == [Withdraw(id) for id in begun]
