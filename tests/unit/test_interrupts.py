"""Signals are raised where work may be broken off, passed on where something runs, held back elsewhere."""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import suppress

import pytest

from dllama_zmq.interrupts import Interrupts

HEARD = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def spin(wait_s: float, number: signal.Signals | None = None, every_s: float = math.inf) -> None:
    """A step that hears nothing; it begins with a signal, which comes again `every_s`."""
    begun = time.monotonic()
    next_signal = begun if number is not None else math.inf
    while time.monotonic() < begun + wait_s:
        if number is not None and time.monotonic() >= next_signal:
            os.kill(os.getpid(), number)
            next_signal += every_s


def test_a_signal_raises_in_a_raised_block() -> None:
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts.caught(), interrupts.raised():
        signal.raise_signal(signal.SIGINT)


def test_sigterm_ends_with_the_exit_code_of_a_shell() -> None:
    interrupts = Interrupts()
    with pytest.raises(SystemExit) as ending, interrupts.caught(), interrupts.raised():
        signal.raise_signal(signal.SIGTERM)
    assert ending.value.code == 128 + signal.SIGTERM


def test_a_signal_elsewhere_waits_for_the_next_raised_block() -> None:
    came = []

    def run(interrupts: Interrupts) -> None:
        with interrupts.caught():
            signal.raise_signal(signal.SIGINT)
            came.append("the block goes on")
            with interrupts.raised():
                came.append("never")

    with pytest.raises(KeyboardInterrupt):
        run(Interrupts())
    assert came == ["the block goes on"]


def test_a_signal_whose_exception_was_swallowed_ends_the_block_all_the_same() -> None:
    came = []

    def run(interrupts: Interrupts) -> None:
        with interrupts.caught():
            with interrupts.raised(), suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            came.append("never")

    with pytest.raises(KeyboardInterrupt):
        run(Interrupts())
    assert came == []


def test_a_signal_of_which_an_error_was_made_ends_the_block_as_the_signal_does() -> None:
    def run(interrupts: Interrupts) -> None:
        with interrupts.caught(), interrupts.raised():
            try:
                signal.raise_signal(signal.SIGTERM)
            except SystemExit as ending:
                raise ImportError("initialization failed") from ending

    with pytest.raises(SystemExit) as ended:
        run(Interrupts())
    assert ended.value.code == 128 + signal.SIGTERM


def test_an_error_without_a_signal_is_that_error() -> None:
    def run(interrupts: Interrupts) -> None:
        with interrupts.caught(), interrupts.raised():
            raise ImportError("there is no such module")

    with pytest.raises(ImportError, match="no such module"):
        run(Interrupts())


def test_a_signal_with_no_such_block_to_come_ends_the_whole() -> None:
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts.caught():
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_does_not_break_off_what_the_first_has_begun_to_clear_away() -> None:
    cleared = []

    def run(interrupts: Interrupts) -> None:
        with interrupts.caught():
            try:
                with interrupts.raised():
                    try:
                        signal.raise_signal(signal.SIGINT)
                    finally:
                        signal.raise_signal(signal.SIGINT)
                        cleared.append("inside the block")
            finally:
                signal.raise_signal(signal.SIGTERM)
                cleared.append("outside it")

    with pytest.raises(KeyboardInterrupt):
        run(Interrupts())
    assert cleared == ["inside the block", "outside it"]


def test_signals_go_their_old_way_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts().caught():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupts().caught():
            signal.raise_signal(number)
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", HEARD, ids=lambda number: number.name)
def test_a_step_that_outlasts_its_time_is_broken_off(number: signal.Signals) -> None:
    interrupts, calls = Interrupts(), list[float]()
    with (
        pytest.raises((KeyboardInterrupt, SystemExit)),
        interrupts.caught(),
        interrupts.then(lambda: calls.append(time.monotonic()), 0.05),
    ):
        spin(20, number)
    assert len(calls) == 1
    assert time.monotonic() - calls[0] < 5


def test_a_step_that_ends_in_time_is_not_broken_off() -> None:
    interrupts, calls = Interrupts(), list[bool]()
    with interrupts.caught():
        with interrupts.then(lambda: calls.append(True), 0.05):
            os.kill(os.getpid(), signal.SIGTERM)
        spin(0.2)
    assert calls == [True]


def test_signals_without_a_pause_do_not_put_off_that_a_step_is_broken_off() -> None:
    interrupts, begun = Interrupts(), time.monotonic()
    with pytest.raises(SystemExit), interrupts.caught(), interrupts.then(lambda: None, 0.5):
        spin(20, signal.SIGTERM, every_s=0.01)
    assert time.monotonic() < begun + 10


def test_a_signal_before_the_run_reaches_it() -> None:
    interrupts, calls = Interrupts(), list[bool]()
    with interrupts.caught():
        signal.raise_signal(signal.SIGTERM)
        with interrupts.then(lambda: calls.append(True), 10):
            pass
    assert calls == [True]


def test_a_signal_while_something_is_set_up_ends_it_and_is_not_forgotten() -> None:
    interrupts, calls = Interrupts(), list[bool]()
    with pytest.raises(SystemExit), interrupts.caught(), interrupts.raised():
        spin(20, signal.SIGTERM)
    with interrupts.caught(), interrupts.then(lambda: calls.append(True), 10):
        pass
    assert calls == [True]
