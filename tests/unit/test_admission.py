"""Who may connect, and when: an address that flooded is slowed down, others are not."""

from __future__ import annotations

import pytest

from dllama_zmq.bus.admission import SLOWED_S, Admission, Request

EVERY_S = 0.2


def a_request(name: str, since: float = 0.0) -> Request:
    return Request(name.encode(), b"1", since)


def names(requests: list[Request]) -> set[str]:
    return {request.session.decode() for request in requests}


def test_without_a_flood_everybody_is_admitted_at_once() -> None:
    admission = Admission()
    for number in range(100):
        admission.ask("192.168.1.2", a_request(str(number)))
    assert len(admission.admitted(0.0)) == 100
    assert not admission.anybody_waits


def test_an_address_that_flooded_comes_in_one_by_one_and_others_do_not_wait() -> None:
    admission = Admission()
    admission.slow_down("192.168.1.2", 0.0)
    for number in range(3):
        admission.ask("192.168.1.2", a_request(f"flood{number}"))
    admission.ask("192.168.1.3", a_request("other"))
    admission.ask("localhost:0:0:77", a_request("over ipc"))
    assert names(admission.admitted(0.0)) == {"other", "over ipc"}
    assert not admission.admitted(EVERY_S / 2)
    assert len(admission.admitted(EVERY_S)) == 1
    assert not admission.admitted(EVERY_S * 1.5)
    assert len(admission.admitted(EVERY_S * 2)) == 1


def test_an_address_that_floods_no_more_is_as_any_other() -> None:
    admission = Admission()
    admission.slow_down("192.168.1.2", 0.0)
    for number in range(50):
        admission.ask("192.168.1.2", a_request(str(number), since=SLOWED_S))
    assert len(admission.admitted(SLOWED_S - 0.1)) == 1
    assert len(admission.admitted(SLOWED_S)) == 49


def test_who_shares_the_address_of_a_flood_gets_in_too() -> None:
    """However long the flood waits with 31 connections, and comes again as soon as one of them is ended."""
    admission, now = Admission(), 0.0
    for number in range(31):
        admission.ask("127.0.0.1", a_request(f"flood{number}"))
    admission.ask("127.0.0.1", a_request("worker"))
    for turn in range(2000):
        now += EVERY_S
        admission.slow_down("127.0.0.1", now)
        admitted = names(admission.admitted(now))
        if "worker" in admitted:
            return
        admission.ask("127.0.0.1", a_request(f"again{turn}", since=now))
        if turn % 20 == 0:  # libzmq gives up after 5 s, and tries again
            admission.ask("127.0.0.1", a_request("worker", since=now))
    pytest.fail("it has waited for 400 s")


def test_who_has_waited_for_longer_than_a_handshake_may_last_is_forgotten() -> None:
    admission = Admission()
    admission.slow_down("127.0.0.1", 0.0)
    for number in range(3):
        admission.ask("127.0.0.1", a_request(str(number)))
    admission.admitted(0.0)
    admission.slow_down("127.0.0.1", 6.0)
    assert not admission.admitted(6.0)
    assert not admission.anybody_waits


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
    admission.ask(other, a_request("second"))
    assert (admission.admitted(0.0) == []) is waits
