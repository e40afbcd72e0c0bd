"""How many rows of prompts a step gets beside decoding rows, from seconds that steps have taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq
from tiny import write_tiny_model

from dllama_zmq.root.engine import Engine
from dllama_zmq.root.pace import Pace
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.scheduler import Prefilled
from dllama_zmq.sampling import Sampling


def machine(row_s: float, fixed_s: float = 0.0) -> Pace:
    """What is known of a machine on which a step takes `fixed_s` and `row_s` for each row; most rows: 128."""
    pace = Pace(128)
    for n_decoding in (1, 4):
        pace.add(n_decoding, 0, fixed_s + row_s * n_decoding)
    for _ in range(10):
        pace.add(4, 8, fixed_s + row_s * 12)
    return pace


@pytest.mark.parametrize("row_s", [0.001, 1.0])
def test_a_step_with_a_prompt_takes_two_and_a_quarter_times_as_long_as_one_without_on_a_machine_of_any_speed(
    row_s: float,
) -> None:
    pace = machine(row_s, 16 * row_s)
    assert pace.rows(4) == pytest.approx(1.25 * (16 + 4), abs=1)
    assert pace.rows(1) == pytest.approx(1.25 * (16 + 1), abs=1)


def test_where_rows_cost_nothing_a_prompt_gets_all_that_a_step_may_have() -> None:
    assert machine(0.0, 0.1).rows(4) == 128
    assert machine(0.0001, 0.1).rows(4) == 128


def test_a_prompt_continues_where_every_row_costs_as_much_as_the_decoding_ones() -> None:
    assert machine(1.0).rows(1) == 4


def test_a_step_that_was_disturbed_changes_nothing() -> None:
    pace, disturbed = machine(0.01, 0.16), machine(0.01, 0.16)
    disturbed.add(4, 0, 0.2)
    disturbed.add(4, 0, 90.0)
    disturbed.add(4, 8, 90.0)
    disturbed.add(4, 0, 0.2)
    assert disturbed.rows(4) == pace.rows(4)


def test_rows_that_have_become_dearer_are_soon_fewer() -> None:
    pace = machine(0.01, 0.16)
    for _ in range(10):
        pace.add(4, 20, 0.2 + 20 * 0.03)
    assert pace.rows(4) == 8


def test_another_number_of_decoding_rows_uses_the_nearest_known_one_below() -> None:
    pace = machine(0.01, 0.16)
    assert pace.rows(9) == pace.rows(4)
    assert pace.rows(3) == pace.rows(1)


def test_the_steps_of_a_prompt_alone_say_what_a_row_costs() -> None:
    pace = Pace(128)
    assert pace.rows(2) == 8
    pace.add(2, 0, 0.1)
    assert pace.rows(2) == 8
    pace.add(0, 128, 1.28)
    assert pace.rows(2) == 12


def test_the_engine_evaluates_as_many_rows_of_a_prompt_beside_others(tmp_path: Path) -> None:
    with write_tiny_model(tmp_path / "tiny.m") as model:
        engine = Engine(Root(zmq.Context.instance(), model, RootSettings()), 2)
        engine.add([1], Sampling())
        engine.step()
        engine.pace = Pace(128)
        engine.pace.add(1, 0, 1.0)
        engine.pace.add(1, 20, 1.0 + 20 * 0.25)
        prompt = engine.add(range(2, 42), Sampling())
        counts = [event.count for event in engine.step().events if isinstance(event, Prefilled)]
        assert counts == [5]
        assert prompt.n_computed == 5
