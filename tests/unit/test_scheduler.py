"""Which rows a step has, one rule at a time; test_scheduler_rules.py has all orders of all rules."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from dllama_zmq.errors import ClusterDefect, RequestError
from dllama_zmq.root.pages import PagePool
from dllama_zmq.root.scheduler import Event, Finished, Prefilled, Scheduled, Scheduler, Token
from dllama_zmq.root.sequence import Sequence

PAGE = 4
STOP = 99


def scheduler(n_pages: int = 100, max_sequences: int = 8, prefill_rows: int = 12, mixed_rows: int = 3) -> Scheduler:
    return Scheduler(PagePool(n_pages, PAGE), max_sequences, prefill_rows, mixed_rows)


def added(to: Scheduler, prompt: Iterable[int], max_new: int = 20, owner: str = "") -> Sequence:
    sequence = Sequence(prompt, None, max_new, frozenset([STOP]), owner=owner)
    to.add(sequence)
    return sequence


def distinct(n: int, first: int) -> list[int]:
    """A prompt of `n` tokens that no other prompt begins with."""
    return [1000 * first + i for i in range(n)]


def rows(step: Scheduled | None) -> list[tuple[Sequence, int, int]]:
    assert step is not None
    return [(sequence, span.start, span.count) for sequence, span in zip(step.sequences, step.spans, strict=True)]


def run(one: Scheduler, token: int = 7) -> tuple[list[tuple[Sequence, int, int]], list[Event]]:
    """One step in which each sampled row chooses `token`."""
    step = one.schedule()
    return rows(step), one.accept(step, [token] * len(step.sampled))


def run_until_decoding(one: Scheduler, *sequences: Sequence) -> None:
    while not all(len(sequence.tokens) > sequence.n_prompt for sequence in sequences):
        run(one)


def test_a_prompt_is_evaluated_in_chunks_and_its_last_row_gives_the_first_token() -> None:
    one = scheduler(prefill_rows=12)
    a = added(one, distinct(30, 1))
    step = one.schedule()
    assert (rows(step), step.tokens, step.sampled) == ([(a, 0, 12)], a.tokens[:12], [])
    assert step.spans[0].pages == [0, 1, 2]
    assert one.accept(step, []) == [Prefilled(a, 12, 30, 12)]
    assert run(one) == ([(a, 12, 12)], [Prefilled(a, 24, 30, 12)])
    step = one.schedule()
    assert (rows(step), step.sampled) == ([(a, 24, 6)], [(5, a)])
    assert one.accept(step, [7]) == [Prefilled(a, 30, 30, 6), Token(a, 7)]
    step = one.schedule()
    assert (rows(step), step.tokens, step.sampled) == ([(a, 30, 1)], [7], [(0, a)])
    assert one.accept(step, [8]) == [Token(a, 8)]


def test_prompts_that_fit_share_a_step_in_order_of_arrival() -> None:
    one = scheduler(prefill_rows=12)
    a, b, c = (added(one, distinct(5, i)) for i in range(3))
    assert run(one)[0] == [(a, 0, 5), (b, 0, 5), (c, 0, 2)]


def test_beside_decoding_rows_the_prompts_have_a_smaller_budget_together() -> None:
    one = scheduler(prefill_rows=12, mixed_rows=3)
    a = added(one, distinct(5, 1))
    run_until_decoding(one, a)
    b = added(one, distinct(5, 2))
    c = added(one, distinct(5, 3))
    assert run(one)[0] == [(a, 5, 1), (b, 0, 3)]
    assert run(one)[0] == [(a, 6, 1), (b, 3, 2), (c, 0, 1)]
    assert run(one)[0] == [(a, 7, 1), (b, 5, 1), (c, 1, 3)]


def test_a_new_sequence_joins_at_the_next_step_and_a_finished_one_leaves_at_once() -> None:
    one = scheduler()
    a = added(one, distinct(3, 1), max_new=2)
    run(one)
    b = added(one, distinct(3, 2))
    spans, events = run(one)
    assert spans == [(a, 3, 1), (b, 0, 3)]
    assert events == [Token(a, 7), Finished(a, "length"), Prefilled(b, 3, 3, 3), Token(b, 7)]
    assert run(one)[0] == [(b, 3, 1)]


def test_a_stop_id_ends_a_sequence_and_is_not_one_of_its_tokens() -> None:
    one = scheduler()
    a = added(one, [1, 2])
    run(one, 7)
    assert run(one, STOP)[1] == [Finished(a, "stop")]
    assert (a.tokens, a.state) == ([1, 2, 7], "finished")
    assert (one.schedule(), one.pool.n_in_use) == (None, 0)


def test_no_more_sequences_run_than_may_and_the_next_begins_when_one_ends() -> None:
    one = scheduler(max_sequences=2)
    a, b, c = (added(one, distinct(2, i), max_new=2) for i in range(3))
    assert run(one)[0] == [(a, 0, 2), (b, 0, 2)]
    run(one)
    assert run(one)[0] == [(c, 0, 2)]


def test_a_cancelled_sequence_leaves_at_once_also_in_a_step() -> None:
    one = scheduler(max_sequences=2)
    a, b, c = (added(one, distinct(3, i)) for i in range(3))
    step = one.schedule()
    one.cancel(a)
    one.cancel(c)
    one.cancel(c)
    assert (a.state, c.state, one.pool.n_in_use) == ("finished", "finished", 1)
    assert one.accept(step, [7, 8]) == [Prefilled(b, 3, 3, 3), Token(b, 8)]
    assert run(one)[0] == [(b, 3, 1)]


def test_a_step_that_is_never_accepted_did_not_happen() -> None:
    one = scheduler()
    a, b = added(one, distinct(5, 1)), added(one, distinct(5, 2))
    failed = one.schedule()
    again = one.schedule()
    assert (again.spans, again.tokens) == (failed.spans, failed.tokens)
    with pytest.raises(ClusterDefect, match="not the last one"):
        one.accept(failed, [7, 7])
    assert one.accept(again, [7, 8])[1::2] == [Token(a, 7), Token(b, 8)]
    with pytest.raises(ClusterDefect, match="not the last one"):
        one.accept(again, [7, 8])


def test_whose_last_token_alone_is_left_has_its_row_whatever_others_take() -> None:
    one = scheduler(prefill_rows=12, mixed_rows=3)
    a, b = added(one, distinct(5, 1)), added(one, [7])
    assert rows(one.schedule()) == [(a, 0, 5), (b, 0, 1)]  # it fails
    assert rows(one.schedule()) == [(a, 0, 3), (b, 0, 1)]


def test_when_pages_run_out_the_youngest_gives_its_back_and_is_evaluated_again_when_it_fits() -> None:
    one = scheduler(n_pages=5, prefill_rows=16)
    a, b = added(one, distinct(8, 1), max_new=12), added(one, distinct(8, 2), max_new=5)
    assert run(one)[0] == [(a, 0, 8), (b, 0, 8)]
    assert run(one)[0] == [(a, 8, 1)]  # on the fifth page, and b needs one too
    assert (b.state, b.pages, b.n_computed, one.n_preemptions) == ("waiting", [], 0, 1)
    while a.state != "finished":
        assert run(one)[0] == [(a, len(a.tokens) - 2, 1)]
    assert run(one, 8) == ([(b, 0, 9)], [Token(b, 8)])
    assert b.tokens[8:] == [7, 8]


def test_a_preempted_sequence_begins_after_those_of_its_pages_that_nobody_has_taken() -> None:
    one = scheduler(n_pages=5, prefill_rows=16)
    a, b = added(one, distinct(8, 1), max_new=5), added(one, distinct(8, 2), max_new=5)
    run_until_decoding(one, a, b)
    while a.state != "finished":
        run(one)
    assert run(one)[0] == [(b, 8, 1)]
    assert (b.n_cached, one.n_preemptions) == (0, 1)


def test_who_waits_for_pages_is_not_overtaken() -> None:
    one = scheduler(n_pages=5)
    a = added(one, distinct(9, 1), max_new=8)
    run_until_decoding(one, a)
    b, c = added(one, distinct(8, 2), max_new=1), added(one, distinct(1, 3), max_new=1)
    assert run(one)[0] == [(a, 9, 1)]
    assert list(one.waiting) == [b, c]
    while a.state == "running":
        run(one)
    assert run(one)[0] == [(b, 0, 8), (c, 0, 1)]


def test_a_sequence_that_could_not_run_alone_is_refused() -> None:
    one = scheduler(n_pages=3)
    added(one, distinct(5, 1), max_new=8)
    with pytest.raises(RequestError, match="room for 12 in all"):
        added(one, distinct(5, 1), max_new=9)
    with pytest.raises(RequestError, match="expected 1 or more"):
        added(one, [], max_new=9)
    with pytest.raises(RequestError, match="expected 1 or more"):
        added(one, [1], max_new=-1)


def test_a_sequence_begins_after_the_full_pages_of_an_earlier_text_answer_included() -> None:
    one = scheduler()
    a = added(one, range(6), max_new=4)
    while a.state != "finished":
        run(one)
    b = added(one, [*a.tokens, 50, 51])  # the answer's last token was never evaluated
    assert run(one)[0] == [(b, 8, 4)]
    assert (b.n_cached, a.n_cached) == (8, 0)


def test_at_least_the_last_token_of_a_prompt_is_evaluated() -> None:
    one = scheduler()
    run_until_decoding(one, added(one, range(8)))
    b = added(one, range(8))
    assert run(one)[0][1:] == [(b, 4, 3)]


def test_equal_prompts_that_arrive_together_are_evaluated_once() -> None:
    one = scheduler(prefill_rows=12)
    a, b, c = (added(one, range(10)) for _ in range(3))
    assert run(one)[0] == [(a, 0, 10)]
    assert run(one)[0] == [(a, 10, 1), (b, 8, 2), (c, 8, 1)]
    assert a.pages[:2] == b.pages[:2] == c.pages[:2]
    assert one.pool.n_in_use == 2 + 3


def test_prompts_whose_beginnings_differ_do_not_wait_for_each_other() -> None:
    one = scheduler(prefill_rows=10)
    for beginning in (1, 2):
        added(one, [beginning] * 5, max_new=1)
    run(one)
    a, b = added(one, [1, 1, 1, 1, 5, 5, 5, 5, 6]), added(one, [2, 2, 2, 2, 5, 5, 5, 5, 6])
    assert run(one)[0] == [(a, 4, 5), (b, 4, 5)]


def test_a_rewind_evaluates_all_again_in_order_and_finds_nothing() -> None:
    one = scheduler(prefill_rows=24)
    a, b = added(one, distinct(8, 1)), added(one, distinct(8, 2))
    run_until_decoding(one, a, b)
    step = one.schedule()
    assert one.rewind() == []
    with pytest.raises(ClusterDefect, match="not the last one"):
        one.accept(step, [7, 7])
    spans, events = run(one)
    assert spans == [(a, 0, 9), (b, 0, 9)]
    assert events == [Token(a, 7), Token(b, 7)]


def test_a_rewind_to_less_memory_lets_those_go_that_no_longer_fit() -> None:
    one = scheduler(n_pages=6)
    a, b = added(one, distinct(8, 1), max_new=10), added(one, distinct(8, 2), max_new=5)
    run_until_decoding(one, a, b)
    assert one.rewind(n_pages=3) == [a]
    assert a.state == "finished"
    assert run(one)[0] == [(b, 0, 9)]


def test_a_sequence_ends_with_the_token_that_makes_it_whole() -> None:
    one = scheduler()
    a, b = added(one, distinct(3, 1)), added(one, distinct(3, 2), max_new=1)
    step = one.schedule()
    assert one.accept(step, [7, 7], {a, b})[2:] == [
        Finished(a, "stop"),
        Prefilled(b, 3, 3, 3),
        Token(b, 7),
        Finished(b, "stop"),
    ]
    assert a.tokens[-1] == 7


def test_one_that_generates_nothing_ends_with_its_prompt_and_has_a_row_for_each_token() -> None:
    one = scheduler(prefill_rows=12)
    before = added(one, distinct(9, 1), max_new=1)
    while before.state != "finished":
        run(one)
    a = added(one, distinct(14, 1), max_new=0)
    assert one.pool.find(a.tokens) != []
    assert run(one) == ([(a, 0, 12)], [Prefilled(a, 12, 14, 12)])
    step = one.schedule()
    assert (rows(step), step.sampled) == ([(a, 12, 2)], [])
    assert one.accept(step, []) == [Prefilled(a, 14, 14, 2), Finished(a, "length")]
    assert one.pool.n_in_use == 0
