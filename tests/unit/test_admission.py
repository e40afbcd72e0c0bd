"""Who may connect, and when: an address that flooded is slowed down, others are not."""

from __future__ import annotations

import logging

import pytest
from secured import Secured

from dllama_zmq.bus.admission import SLOWED_S, Admission, Request
from dllama_zmq.bus.rate_limited_log import Refusals
from dllama_zmq.errors import TrustError
from dllama_zmq.trust import KeyPair, Role

EVERY_S = 0.2


def a_request(address: str, name: str, since: float = 0.0, key: str = "") -> Request:
    return Request(name.encode(), b"1", since, address, key)


def names(requests: list[Request]) -> set[str]:
    return {request.session.decode() for request in requests}


def test_without_a_flood_everybody_is_admitted_at_once() -> None:
    admission = Admission()
    for number in range(100):
        admission.ask(a_request("192.168.1.2", str(number)))
    assert len(admission.admitted(0.0)) == 100
    assert not admission.has_waiting


def test_an_address_that_flooded_comes_in_one_by_one_and_others_do_not_wait() -> None:
    admission = Admission()
    admission.slow_down("192.168.1.2", 0.0)
    for number in range(3):
        admission.ask(a_request("192.168.1.2", f"flood{number}"))
    admission.ask(a_request("192.168.1.3", "other"))
    admission.ask(a_request("localhost:0:0:77", "over ipc"))
    assert names(admission.admitted(0.0)) == {"other", "over ipc"}
    assert not admission.admitted(EVERY_S / 2)
    assert len(admission.admitted(EVERY_S)) == 1
    assert not admission.admitted(EVERY_S * 1.5)
    assert len(admission.admitted(EVERY_S * 2)) == 1


def test_an_address_that_floods_no_more_is_as_any_other() -> None:
    admission = Admission()
    admission.slow_down("192.168.1.2", 0.0)
    for number in range(50):
        admission.ask(a_request("192.168.1.2", str(number), since=SLOWED_S))
    assert len(admission.admitted(SLOWED_S - 0.1)) == 1
    assert len(admission.admitted(SLOWED_S)) == 49


def test_who_shares_the_address_of_a_flood_gets_in_too() -> None:
    """However long the flood waits with 31 connections, and comes again as soon as one of them is ended."""
    admission, now = Admission(), 0.0
    for number in range(31):
        admission.ask(a_request("127.0.0.1", f"flood{number}"))
    admission.ask(a_request("127.0.0.1", "worker"))
    for turn in range(2000):
        now += EVERY_S
        admission.slow_down("127.0.0.1", now)
        admitted = names(admission.admitted(now))
        if "worker" in admitted:
            return
        admission.ask(a_request("127.0.0.1", f"again{turn}", since=now))
        if turn % 20 == 0:  # libzmq gives up after 5 s, and tries again
            admission.ask(a_request("127.0.0.1", "worker", since=now))
    pytest.fail("it has waited for 400 s")


def test_who_has_waited_for_longer_than_a_handshake_may_last_is_forgotten() -> None:
    admission = Admission()
    admission.slow_down("127.0.0.1", 0.0)
    for number in range(3):
        admission.ask(a_request("127.0.0.1", str(number)))
    admission.admitted(0.0)
    admission.slow_down("127.0.0.1", 6.0)
    assert not admission.admitted(6.0)
    assert not admission.has_waiting


@pytest.mark.parametrize(
    ("flooded", "other", "waits"),
    [
        ("fd77::1", "fd77::2", True),  # of one /64
        ("fd77::1", "fd77:0:0:1::2", False),
        ("::ffff:192.168.1.2", "192.168.1.2", True),
        ("192.168.1.2", "192.168.1.3", False),
    ],
)
def test_addresses_that_one_computer_may_have_are_one(flooded: str, other: str, waits: bool) -> None:
    admission = Admission()
    admission.slow_down(flooded, 0.0)
    admission.ask(a_request(other, "second"))
    assert (admission.admitted(0.0) == []) is waits


# --- keys -------------------------------------------------------------------------------------------------------------


def code(admission: Admission, key: str) -> str:
    """The status code of the answer to somebody with that key."""
    return admission.answer(a_request("192.168.1.2", "peer", key=key))[0].decode()


def test_a_key_is_let_in_by_the_ring_and_a_message_says_whose_it_is() -> None:
    secured = Secured()
    own, admission = secured.own["worker1"].public, Admission(secured.server())
    assert admission.answer(a_request("192.168.1.2", "peer", key=own)) == (b"200", b"OK", own.encode(), b"")
    assert admission.answer(a_request("localhost:0:0:77", "over ipc")) == (b"200", b"OK", b"", b"")
    for other in (secured.own["laptop"].public, KeyPair.new().public, secured.root.public):
        assert code(admission, other) == "400"
    assert admission.refusals.counts() == {"192.168.1.2": 3}


@pytest.mark.parametrize(
    ("role", "of_workers", "of_clients"), [(Role.worker, "200", "200"), (Role.client, "400", "200")]
)
def test_the_key_of_a_token_is_let_in_to_enrol(role: Role, of_workers: str, of_clients: str) -> None:
    secured = Secured()
    admission = Admission(secured.server(role))
    assert code(admission, secured.tokens[Role.worker].public) == of_workers
    assert code(admission, secured.tokens[Role.client].public) == of_clients


def test_a_key_without_a_ring_is_refused() -> None:
    assert code(Admission(), KeyPair.new().public) == "400"


def test_a_ring_that_cannot_be_read_refuses_and_the_next_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    secured = Secured()

    def look() -> bool:
        raise TrustError("the disk is gone")

    secured.ring.reload = look  # type: ignore[method-assign]
    admission = Admission(secured.server())
    assert code(admission, KeyPair.new().public) == "400"
    assert "the disk is gone" in caplog.text
    assert code(admission, secured.own["worker1"].public) == "200"


def test_a_key_that_is_removed_is_named_once_and_a_token_that_is_used_never() -> None:
    secured = Secured()
    admission = Admission(secured.server())
    own, token = secured.own["worker1"].public, secured.tokens[Role.worker].public
    assert (code(admission, own), code(admission, token), admission.removed()) == ("200", "200", set())
    secured.ring._state = Secured([]).ring._state
    assert admission.removed() == {own}
    assert admission.removed() == set()
    assert code(admission, own) == "400"


def test_who_is_refused_again_and_again_is_no_flood_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(logging.getLogger("refusals"))
    for _ in range(1000):
        refusals.add("192.168.1.2", "its key is not known here")
    for number in range(300):
        refusals.add(f"192.168.2.{number}", "its key is not known here")
    assert len(caplog.records) == 1
    assert len(refusals.counts()) == 256
    assert refusals.counts()["192.168.2.299"] == 1
