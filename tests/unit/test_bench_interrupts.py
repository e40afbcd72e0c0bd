"""Signals of `bench`: raised where work may be broken off, held back elsewhere."""

from __future__ import annotations

import signal
from contextlib import suppress

import pytest

from dllama_zmq.bench.interrupts import Interrupts


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
