"""What is shown of something that takes long: plain lines that thin out, and whom `up` waits for."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import time
from collections.abc import Callable

import pytest
from command_line import until
from statuses import a_node, a_status

from dllama_zmq.bus.client_messages import NodeStatus, Status
from dllama_zmq.cli.notes import note
from dllama_zmq.cli.progress import Arrivals, Display, duration

MB = 1_000_000
DisplayOf = Callable[[Callable[[Display, float], None], float], list[tuple[float, str]]]


@pytest.fixture
def display_of(capsys: pytest.CaptureFixture[str]) -> DisplayOf:
    """When each plain line was said, where `happen` is called every 0.1 s with the display and the time."""

    def lines(happen: Callable[[Display, float], None], until_s: float) -> list[tuple[float, str]]:
        now, said = 0.0, []
        display = Display(clock=lambda: now)
        for i in range(round(until_s * 10)):
            now = i / 10
            happen(display, now)
            display.tick()
            said += [(now, line) for line in capsys.readouterr().err.splitlines()]
        return said

    return lines


def test_a_long_activity_is_said_within_two_seconds_and_then_less_and_less_often(display_of: DisplayOf) -> None:
    said = display_of(lambda display, now: display.activity("reading"), 100.0)
    assert [round(at) for at, _ in said] == [2, 5, 10, 30, 60, 90]
    assert [text for _, text in said[:3]] == ["reading (2 s)", "reading (5 s)", "reading (10 s)"]


def test_short_work_is_not_shown_and_the_next_is_shown_within_two_seconds(display_of: DisplayOf) -> None:
    said = display_of(lambda display, now: display.activity("reading" if now < 1.4 else "repacking"), 4.0)
    assert said == [(1.5, "repacking (0 s)")]


def test_many_short_things_one_after_the_other_are_never_silent_for_two_seconds(display_of: DisplayOf) -> None:
    said = display_of(lambda display, now: display.activity(f"part {now // 1:.0f}"), 20.0)
    times = [0.0, *(at for at, _ in said), 20.0]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 2.0


def test_bytes_have_an_amount_a_speed_and_a_time_left(display_of: DisplayOf) -> None:
    def happen(display: Display, now: float) -> None:
        display.activity("the root reads its part of the model", round(now * 1.2e9), 68_000_000_000)

    (_, first), (_, second) = display_of(happen, 6.0)
    assert first == "the root reads its part of the model: 1.8 of 68.0 GB, 1.2 GB/s, 55 s left"
    assert second == "the root reads its part of the model: 6.0 of 68.0 GB, 1.2 GB/s, 52 s left"


def test_tokens_have_a_speed_and_a_share_has_none(display_of: DisplayOf) -> None:
    said = display_of(
        lambda display, now: display.activity("evaluating the prompt", round(now * 10), 300, "tokens"), 2.0
    )
    assert [text for _, text in said] == ["evaluating the prompt: 15 of 300 tokens, 10.0 tokens/s, 28 s left"]
    said = display_of(lambda display, now: display.activity("compiling", round(now), 31, "%"), 2.0)
    assert said[0][1].startswith("compiling: 6%")


def test_an_activity_that_does_not_move_says_for_how_long(display_of: DisplayOf) -> None:
    said = display_of(lambda display, now: display.activity("evaluating the prompt", 0, 300, "tokens"), 6.0)
    assert said[1][1] == "evaluating the prompt: 0 of 300 tokens, 5 s"


def test_a_speed_is_that_of_what_came_since_and_falls_where_nothing_comes(display_of: DisplayOf) -> None:
    def happen(display: Display, now: float) -> None:
        display.activity("m.gguf", 40 * MB if now == 0 else 50 * MB, 100 * MB)

    assert [text for _, text in display_of(happen, 10.5)] == [
        "m.gguf: 50.0 of 100.0 MB, 6.7 MB/s, 8 s left",
        "m.gguf: 50.0 of 100.0 MB, 2.0 MB/s, 25 s left",
        "m.gguf: 50.0 of 100.0 MB, 1.0 MB/s, 50 s left",
    ]


def test_at_rest_nothing_is_said(display_of: DisplayOf) -> None:
    assert display_of(lambda display, now: display.activity("reading" if now < 1 else ""), 10.0) == []


def test_a_thread_says_it_where_the_one_that_works_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    start, said = time.monotonic(), ""
    with Display() as display:
        display.activity("reading")
        while not said and time.monotonic() < start + 20:
            said = capsys.readouterr().err
            time.sleep(0.05)  # between two looks
    assert said.startswith("reading (")
    capsys.readouterr()  # it may have been said again before the end of the block
    display.activity("writing")
    assert capsys.readouterr().err == ""


def test_a_thing_without_an_amount_may_follow_one_with_it(display_of: DisplayOf) -> None:
    said = display_of(
        lambda display, now: display.activity("reading", 1, 2) if now < 2 else display.activity("starting"), 5.0
    )
    assert [text for _, text in said] == ["reading: 1 of 2 bytes, 2 s", "starting (1 s)"]


def test_on_a_terminal_a_new_thing_may_follow_one_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    now = 0.0
    with Display(clock=lambda: now) as display:
        assert display.is_live
        for i in range(20):
            display.activity(f"part {i}", i, 20, "tokens" if i % 2 else "B")
            now += 0.3


def test_control_characters_of_an_activity_do_not_control_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a node's words, or those of a model's file."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    seen = ""

    def has_shown_the_thing() -> bool:
        nonlocal seen
        seen += capsys.readouterr().err
        return "a thing" in seen

    with Display(per_s=100) as display:
        note("a note\x1b[2J\x9b2J")
        display.line("a line\x1b[2J\x9b2J")
        display.activity("a thing\x1b[2J\x9b2J")
        until(has_shown_the_thing, 30.0, "the line of progress")
    assert [f"{what}\\x1b[2J\\x9b2J" in seen for what in ("a note", "a line", "a thing")] == [True] * 3
    assert "\x1b[2J" not in seen
    assert "\x9b" not in seen


def test_durations_are_as_people_say_them() -> None:
    assert [duration(s) for s in (0.0, 9.4, 99.4, 600, 6600)] == ["0 s", "9 s", "99 s", "10 min", "1 h 50 min"]


# --- the workers' arrival -----------------------------------------------------------------------------------------


def node(
    name: str, state: str, sent_bytes: int = 0, reason: str = "has not joined yet", doing: str = "", kept_bytes: int = 0
):
    return a_node(
        name,
        state=state,
        reason=reason if state == "absent" else "",
        sent_bytes=sent_bytes,
        kept_bytes=kept_bytes,
        doing=doing,
        percent=40 if doing else 0,
        memory_bytes=8 * MB,
        weight_bytes=4 * MB,
        total_bytes=4 * MB,
    )


def status(*workers: NodeStatus) -> Status:
    return a_status(node("root", "ready"), *workers)


def arriving(display_of: DisplayOf, workers_at: Callable[[float], list[NodeStatus]], until_s: float) -> list[str]:
    """What is said of workers as they are at times."""
    arrivals: list[Arrivals] = []

    def happen(display: Display, now: float) -> None:
        arrivals.append(arrivals[0] if arrivals else Arrivals(display, display._clock))
        arrivals[0].show(status(*workers_at(now)))

    return [text for _, text in display_of(happen, until_s)]


def test_a_worker_that_loads_within_a_second_takes_one_line(display_of: DisplayOf) -> None:
    states = ["absent", "loading", "loading", "loaded", "ready", "ready"]
    said = arriving(display_of, lambda now: [node("worker1", states[round(now * 10)])], 0.6)
    assert said == ["worker1 has its weights, 4.0 MB in 0.4 s"]


def test_the_activity_names_each_worker_that_is_on_its_way_and_what_it_does(display_of: DisplayOf) -> None:
    workers = [node("a", "ready", 4 * MB), node("b", "loading", MB), node("c", "loading", 4 * MB), node("d", "absent")]
    said = arriving(display_of, lambda now: workers, 6.0)
    words = "b receives its weights; c gets ready; d has not joined yet: 1.0 of 4.0 MB"
    assert said == ["a has its weights, 4.0 MB in 0.4 s", f"{words}, 2 s", f"{words}, 5 s"]


def test_a_worker_that_prepares_its_weights_has_a_percentage(display_of: DisplayOf) -> None:
    workers = [node("a", "loading", MB, doing="compiles kernels", kept_bytes=3 * MB), node("b", "absent")]
    (line,) = arriving(display_of, lambda now: workers, 2.0)
    assert line == "a compiles kernels; b has not joined yet: 40%, 2 s"


def test_each_of_several_that_receive_has_its_speed_and_its_time_left(display_of: DisplayOf) -> None:
    def workers_at(now: float) -> list[NodeStatus]:
        return [
            node("a", "loading", round(now * MB)),
            node("b", "loading", round(now * MB / 2), kept_bytes=MB),
            node("c", "ready"),
        ]

    said = arriving(display_of, workers_at, 2.0)[-1]
    assert said == (
        "a receives its weights (1.0 MB/s, 2 s left); b receives its weights (500.0 kB/s, 4 s left): "
        "2.2 of 7.0 MB, 1.5 MB/s, 3 s left"
    )


def test_the_bytes_that_a_worker_had_are_said(display_of: DisplayOf) -> None:
    said = arriving(display_of, lambda now: [node("a", "loaded", MB, kept_bytes=3 * MB)], 0.2)
    assert said == ["a has its weights, 4.0 MB in 0.4 s (3.0 MB were there)"]


def test_some_of_many_workers_are_named_and_the_others_counted(display_of: DisplayOf) -> None:
    (line,) = arriving(display_of, lambda now: [node(f"w{i}", "absent") for i in range(7)], 2.0)
    assert line == "w0 has not joined yet; w1 has not joined yet; w2 has not joined yet; and 4 more (2 s)"


def test_a_worker_that_is_lost_is_reported_at_once(display_of: DisplayOf) -> None:
    lost = node("worker1", "absent", reason="was lost: its connection broke")
    said = arriving(display_of, lambda now: [node("worker1", "loading") if now < 0.1 else lost], 0.3)
    assert said == ["worker1 was lost: its connection broke"]


def test_a_signal_at_any_moment_leaves_a_display_that_can_rest() -> None:
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    display = Display()
    kept = signal.signal(signal.SIGVTALRM, stop)
    try:
        for moment in range(1, 100):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_VIRTUAL, moment * 1e-4)
                for i in itertools.count():
                    display.activity(f"thing {i}")
            display.rest()
    finally:
        signal.signal(signal.SIGVTALRM, kept)
