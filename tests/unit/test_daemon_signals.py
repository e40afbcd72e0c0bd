"""What a root does with signals: what is being set up ends at once, a step that does not end is broken off."""

from __future__ import annotations

import os
import signal
import time

import pytest

from dllama_zmq.launch.daemon import _Signals, _Stopped


def spin(wait_s: float, number: signal.Signals | None = None) -> None:
    """A step that hears nothing; it begins with a signal."""
    if number is not None:
        os.kill(os.getpid(), number)
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_step_that_outlasts_its_time_is_broken_off(number: signal.Signals) -> None:
    signals, told = _Signals(step_s=0.05), []
    with pytest.raises(_Stopped), signals.caught(), signals.then(lambda: told.append(time.monotonic())):
        spin(20, number)
    assert len(told) == 1
    assert time.monotonic() - told[0] < 5


def test_a_step_that_ends_in_time_is_not_broken_off() -> None:
    signals, told = _Signals(step_s=0.05), []
    with signals.caught():
        with signals.then(lambda: told.append(True)):
            spin(0, signal.SIGTERM)
        spin(0.2)
    assert told == [True]


def test_a_signal_during_the_setting_up_ends_it_and_one_before_the_run_is_not_forgotten() -> None:
    signals, told = _Signals(step_s=10), []
    with pytest.raises(_Stopped), signals.caught(), signals.raised():
        spin(20, signal.SIGTERM)
    with signals.caught(), signals.then(lambda: told.append(True)):
        pass
    assert told == [True]
