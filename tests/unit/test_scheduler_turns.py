"""Owners of sequences take turns with their prompts, and where pages lack, the one with many makes room for another."""

from __future__ import annotations

from test_scheduler import PAGE, added, distinct, rows, run, run_until_decoding, scheduler

from dllama_zmq.root.scheduler import Scheduler
from dllama_zmq.root.sequence import Sequence


def test_a_long_prompt_delays_anothers_short_one_by_a_step() -> None:
    one = scheduler(prefill_rows=12)
    long = added(one, distinct(100, 1), owner="a")
    assert run(one)[0] == [(long, 0, 12)]
    short = added(one, distinct(5, 2), owner="b")
    assert run(one)[0] == [(long, 12, 12)]
    assert run(one)[0] == [(long, 24, 7), (short, 0, 5)]


def test_many_prompts_of_an_owner_do_not_delay_anothers() -> None:
    one = scheduler(prefill_rows=12)
    many = [added(one, distinct(12, n), owner="a") for n in range(5)]
    other = added(one, distinct(12, 9), owner="b")
    turns = [run(one)[0][-1][0] for _ in range(3)]
    assert turns == [many[0], other, many[1]]


def test_a_prompts_rows_beside_decoding_ones_go_by_turns_too() -> None:
    one = scheduler(mixed_rows=3)
    first = added(one, distinct(3, 1), owner="a")
    run_until_decoding(one, first)
    long, other = added(one, distinct(30, 2), owner="a"), added(one, distinct(6, 3), owner="b")
    prompts = [[row for row in run(one)[0] if row[0] is not first] for _ in range(4)]
    assert prompts == [[(long, 0, 3)], [(other, 0, 3)], [(long, 3, 3)], [(other, 3, 3)]]


def test_owners_that_come_later_do_not_pass_one_that_waits() -> None:
    one = scheduler(prefill_rows=12)
    long = added(one, distinct(36, 1), max_new=1, owner="a")
    chunks = []
    for n in range(2, 20):
        added(one, distinct(12, n), max_new=1, owner=f"newcomer {n}")
        chunks += [start for sequence, start, _ in run(one)[0] if sequence is long]
    assert chunks == [0, 12, 24]


def test_a_step_that_fails_takes_no_turn() -> None:
    one = scheduler(prefill_rows=12)
    a, b = added(one, distinct(24, 1), owner="a"), added(one, distinct(24, 2), owner="b")
    assert rows(one.schedule()) == rows(one.schedule()) == [(a, 0, 12)]
    assert run(one)[0] == [(a, 0, 12)]
    assert run(one)[0] == [(b, 0, 12)]


def some_that_have_every_page(n: int) -> tuple[Scheduler, list[Sequence]]:
    one = scheduler(n_pages=2 * n)
    some = [added(one, distinct(PAGE, i), max_new=5, owner="a") for i in range(n)]
    run_until_decoding(one, *some)
    run(one)
    assert one.pool.n_available == 0
    return one, some


def test_an_owner_with_many_sequences_makes_room_for_anothers_first() -> None:
    one, many = some_that_have_every_page(2)
    other = added(one, distinct(PAGE, 8), max_new=1, owner="b")
    run(one)
    assert (many[0].state, many[1].state, other.state) == ("running", "waiting", "running")


def test_nobody_makes_room_for_more_than_a_share() -> None:
    one, many = some_that_have_every_page(3)
    other = added(one, distinct(4 * PAGE, 8), max_new=1, owner="b")  # of 6 pages, and 2 owners
    run(one)
    assert (many[1].state, many[2].state, other.state, one.n_preemptions) == ("running", "running", "waiting", 0)


def test_an_owners_second_sequence_takes_no_room() -> None:
    one, many = some_that_have_every_page(2)
    second = added(one, distinct(PAGE, 8), max_new=1, owner="a")
    run(one)
    assert (many[1].state, second.state) == ("running", "waiting")
