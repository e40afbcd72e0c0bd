"""What the last steps took: who has become slow is named soon, who has recovered no more."""

from __future__ import annotations

from dllama_zmq.bus.client_messages import NodeTimes
from dllama_zmq.root.recent import Recent

STEP_S, SPAN_S = 0.1, 10.0
STEPS_OF_SPAN = round(SPAN_S / STEP_S)


def add(recent: Recent, n_steps: int, slow: str = "", late_s: float = 0.05) -> None:
    for _ in range(n_steps):
        names = ("root", "pi2", "pi3", "pi4")
        recent.add(1, STEP_S, {name: NodeTimes(0.1, 0.0, late_s if name == slow else 0.0) for name in names})


def test_a_node_that_has_become_slow_is_named_within_the_span_however_long_it_was_not() -> None:
    recent = Recent(SPAN_S)
    add(recent, 100 * STEPS_OF_SPAN)
    assert recent.times().slowest == ""
    add(recent, STEPS_OF_SPAN, slow="pi3")
    assert (recent.times().slowest, recent.times().share) == ("pi3", 1.0)


def test_a_node_that_has_recovered_is_not_named_after_twice_the_span_however_long_it_was_slow() -> None:
    recent = Recent(SPAN_S)
    add(recent, 100 * STEPS_OF_SPAN, slow="pi3")
    assert recent.times().slowest == "pi3"
    add(recent, 2 * STEPS_OF_SPAN + 2)
    assert recent.times().slowest == ""
    assert recent.times().nodes["pi3"].waited_for_s == 0.0


def test_another_node_takes_its_place() -> None:
    recent = Recent(SPAN_S)
    add(recent, 10 * STEPS_OF_SPAN, slow="pi3")
    add(recent, 2 * STEPS_OF_SPAN, slow="pi4")
    assert recent.times().slowest == "pi4"


def test_the_report_covers_one_to_two_spans_of_steps_with_their_tokens() -> None:
    recent = Recent(SPAN_S)
    for _ in range(5 * STEPS_OF_SPAN):
        add(recent, 1)
        times = recent.times()
        assert times.steps == times.tokens
        assert abs(times.wall_s - times.steps * STEP_S) < 1e-6
        assert abs(times.nodes["pi4"].compute_s - times.steps * 0.1) < 1e-6
    assert STEPS_OF_SPAN <= recent.times().steps <= 2 * STEPS_OF_SPAN + 1


def test_the_report_covers_at_least_twenty_long_steps() -> None:
    recent = Recent(SPAN_S)
    for _ in range(100):
        recent.add(128, 2 * SPAN_S, {"root": NodeTimes(1.0)})
    assert 20 <= recent.times().steps <= 40
