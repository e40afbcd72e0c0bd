"""Roster: who is in, and who is ready. Pure, so a test is a table of what happens."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dllama_zmq.bus.messages import Join, Refuse
from dllama_zmq.bus.roster import Member, Roster, State

FIRST = 1000


def roster(*names: str, reserved: tuple[str, ...] = ()) -> Roster:
    return Roster(names, FIRST, reserved)


def join(place: Roster, identity: bytes, name: str = "", pid: int = 1) -> Member | Refuse:
    return place.join(identity, Join(name, "host", pid, "0.1", "pi3", 1, None))


def joined(place: Roster, identity: bytes, name: str = "") -> Member:
    member = join(place, identity, name)
    assert isinstance(member, Member)
    return member


def ready(place: Roster, *identities: bytes) -> list[Member]:
    """Workers who joined, loaded and heard."""
    members = [joined(place, identity) for identity in identities]
    for member in members:
        place.set_loaded(member)
    for member in members:
        place.set_ready(member, place.epoch)
    return members


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (["", "", ""], ["a", "b", "c"]),
        (["c", "", ""], ["c", "a", "b"]),
        (["", "b", ""], ["a", "b", "c"]),
        (["c", "b", "a"], ["c", "b", "a"]),
    ],
)
def test_a_named_worker_gets_its_own_place_and_an_unnamed_one_the_first_that_is_free(
    asked: list[str], given: list[str]
) -> None:
    place = roster("a", "b", "c")
    members = [joined(place, f"id{i}".encode(), name) for i, name in enumerate(asked)]
    assert [member.name for member in members] == given
    assert [member.node for member in members] == [1 + "abc".index(name) for name in given]
    assert all(place.find(f"id{i}".encode()) is member for i, member in enumerate(members))


def test_the_place_of_a_process_that_the_root_has_started_is_for_that_process_alone() -> None:
    place = roster("a", "b", reserved=("a",))
    place.reserve("a", 77)
    for pid in (1, 78):
        answer = join(place, b"stranger", "a", pid)
        assert isinstance(answer, Refuse)
        assert not answer.retry
        assert "started by the root itself" in answer.reason
    assert isinstance(join(place, b"own", "a", 77), Member)
    assert place.has("a", 77)
    place.lose(place.members[0], "was lost")
    assert not place.has("a", 77)
    assert isinstance(join(place, b"stranger", "a", 1), Refuse)
    place.explain_absence("a", "starts again in 4 s")
    assert place.members[0].lost_reason == "starts again in 4 s"
    place.reserve("a", 79)
    assert isinstance(join(place, b"next", "a", 79), Member)
    assert isinstance(join(place, b"free", "", 5), Member)


def test_a_reserved_place_is_only_for_who_asks_for_it_by_name() -> None:
    place = roster("a", "b", reserved=("a",))
    assert joined(place, b"1").name == "b"
    refusal = join(place, b"2")
    assert isinstance(refusal, Refuse)
    assert joined(place, b"3", "a").name == "a"


def test_a_foreign_name_is_refused_for_good_with_the_names_that_there_are() -> None:
    refusal = join(roster("a", "b"), b"1", "z")
    assert refusal == Refuse("no worker of this cluster is called 'z'; its workers are a, b", retry=False)


def test_a_taken_name_is_refused_with_its_holder_and_may_be_asked_for_again() -> None:
    place = roster("a", "b")
    holder = join(place, b"1", "a", pid=42)
    epoch = place.epoch
    assert join(place, b"2", "a") == Refuse("a is already here (process 42)", retry=True)
    assert place.find(b"1") is holder
    assert place.find(b"2") is None
    assert place.epoch == epoch, "a refusal disturbs nobody"


def test_a_worker_too_many_is_refused_and_may_ask_again() -> None:
    place = roster("a")
    ready(place, b"1")
    refusal = join(place, b"2")
    assert isinstance(refusal, Refuse)
    assert refusal.retry
    assert "a" in refusal.reason
    assert place.ready


def test_a_lost_workers_place_is_free_for_another() -> None:
    place = roster("a")
    [member] = ready(place, b"1")
    place.lose(member, "was unplugged")
    assert (member.state, member.lost_reason, place.find(b"1")) == (State.ABSENT, "was unplugged", None)
    assert joined(place, b"2", "a") is member
    assert place.find(b"2") is member


@pytest.mark.parametrize(
    ("addresses", "given"),
    [
        (["10.0.0.4", "10.0.0.3", "10.0.0.2"], ["pi4", "pi3", "pi2"]),
        (["10.0.0.9", "10.0.0.4", "10.0.0.2"], ["any", "pi4", "pi2"]),
        (
            ["10.0.0.9", "10.0.0.9", "10.0.0.4"],
            ["any", "pi2", "pi4"],
        ),  # behind a router: any place
        (["10.0.0.3", "10.0.0.3", ""], ["pi3", "any", "pi2"]),
    ],
)
def test_an_unnamed_worker_gets_the_place_of_its_address(addresses: list[str], given: list[str]) -> None:
    hosts = {f"pi{i}": frozenset({f"10.0.0.{i}", f"fd00::{i}"}) for i in (2, 3, 4)}
    place = Roster(["pi2", "pi3", "pi4", "any"], FIRST, addresses=hosts)
    for i, (address, name) in enumerate(zip(addresses, given, strict=True)):
        member = place.join(bytes([i]), Join("", "host", 1, "0.1", "pi", 1, None), address)
        assert isinstance(member, Member)
        assert (member.name, member.address) == (name, address)


def test_a_worker_that_joins_twice_keeps_its_place_and_loads_anew() -> None:
    place = roster("a", "b")
    first, _ = ready(place, b"1", b"2")
    assert joined(place, b"1") is first
    assert first.state is State.LOADING
    assert not place.loaded


# --- epochs and readiness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        lambda place: joined(place, b"3", "c"),
        lambda place: joined(place, b"1"),
        lambda place: place.lose(place.members[0], "gone"),
        lambda place: place.new_epoch(),
    ],
    ids=["a worker joins", "a worker joins again", "a worker is lost", "a step failed"],
)
def test_the_epoch_rises_and_nobody_is_ready_until_its_beacon_is_heard(event: Callable[[Roster], object]) -> None:
    place = roster("a", "b", "c")
    ready(place, b"1", b"2")
    before = place.epoch
    event(place)
    assert place.epoch > before
    assert State.READY not in [member.state for member in place.members]
    assert place.members[1].state is State.LOADED, "who has its weights keeps them"


def test_ready_needs_every_worker_to_have_loaded_and_then_heard_this_epochs_beacon() -> None:
    place = roster("a", "b")
    a, b = joined(place, b"1"), joined(place, b"2")
    steps: list[tuple[Callable[[], None], bool, bool]] = [  # what happens; loaded; ready
        (lambda: place.set_ready(a, place.epoch), False, False),  # heard before it has its weights
        (lambda: place.set_loaded(a), False, False),
        (lambda: place.set_loaded(b), True, False),
        (lambda: place.set_ready(a, place.epoch - 1), True, False),  # the beacon of an old epoch
        (lambda: place.set_ready(a, place.epoch + 1), True, False),
        (lambda: place.set_ready(a, place.epoch), True, False),
        (lambda: place.set_ready(a, place.epoch), True, False),  # twice
        (lambda: place.set_ready(b, place.epoch), True, True),
    ]
    for number, (happens, loaded, is_ready) in enumerate(steps):
        happens()
        assert (place.loaded, place.ready) == (loaded, is_ready), f"after {number}"


def test_a_root_alone_is_ready() -> None:
    assert roster().ready


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "may_be", "place"),
    [
        ("pi1", ["pi1"], "pi1"),
        ("", ["pi2"], "pi2"),
        ("", ["", "pi3"], "pi3"),
        ("", None, "pi1"),
        ("pi2", None, "pi2"),
    ],
)
def test_a_key_gets_the_place_that_it_is_bound_to(asked: str, may_be: list[str] | None, place: str) -> None:
    joined = Roster(["pi1", "pi2", "pi3"], 1).join(b"1", Join(asked, "h", 1, "0", "h", 1, None), may_be=may_be)
    assert not isinstance(joined, Refuse)
    assert joined.name == place


@pytest.mark.parametrize(("asked", "may_be"), [("pi1", ["pi2"]), ("pi1", []), ("", []), ("pi1", ["", "pi2"])])
def test_a_key_gets_no_place_that_it_is_not_bound_to(asked: str, may_be: list[str]) -> None:
    refused = Roster(["pi1", "pi2"], 1).join(b"1", Join(asked, "h", 1, "0", "h", 1, None), may_be=may_be)
    assert isinstance(refused, Refuse)
    assert not refused.retry
