"""Helpers that compile: whatever becomes of them, each name is either made or left to be done."""

from __future__ import annotations

import sys
import time
from collections import deque
from itertools import pairwise
from pathlib import Path

import pytest

from dllama_zmq.kernels import Compiling
from dllama_zmq.kernels.simd import helpers as module
from dllama_zmq.kernels.simd.helpers import compile_objects, helpers

NAMES = [f"kernel{i}" for i in range(20)]
ANSWERS = "answer(lambda name: name.upper().encode(), sys.stdin.buffer, sys.stdout.buffer)"
DIES = """
def make(name):
    return sys.exit(1) if name[-1] in "37" else name.upper().encode()
answer(make, sys.stdin.buffer, sys.stdout.buffer)
"""
SLOW = """
import time
def make(name):
    time.sleep(0.1)
    return name.upper().encode()
answer(make, sys.stdin.buffer, sys.stdout.buffer)
"""
CUT_SHORT = """
sys.stdout.buffer.write(bytes(8))
sys.stdout.buffer.flush()
sys.stdin.readline()
sys.stdout.buffer.write((99).to_bytes(8, "little") + b"KERNEL")
"""
HANGS = "import time; time.sleep(1000)"


@pytest.fixture
def be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a helper of a program."""

    def be(program: str) -> None:
        script = tmp_path / "helper"
        imports = "import sys\nfrom dllama_zmq.kernels.simd.helpers import answer\n"
        script.write_text(f"#!{sys.executable}\n{imports}{program}\n")
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return be


def work(deadline_s: float = 30.0) -> tuple[deque[str], dict[str, bytes]]:
    """What is left and what is made when neither of two helpers is at work any more."""
    left, made = deque(NAMES), dict[str, bytes]()
    until = time.monotonic() + deadline_s
    with helpers(left, made, 2) as (at_work, _):
        while at_work() and time.monotonic() < until:
            time.sleep(0.01)
        assert not at_work()
    return left, made


def test_helpers_make_all_there_is(be):
    be(ANSWERS)
    left, made = work()
    assert not left
    assert made == {name: name.upper().encode() for name in NAMES}


@pytest.mark.parametrize("program", [DIES, CUT_SHORT, "sys.exit(1)"])
def test_what_a_helper_takes_and_does_not_bring_is_left(be, program):
    be(program)
    left, made = work()
    assert left
    assert sorted([*left, *made]) == sorted(NAMES)
    assert all(code == name.upper().encode() for name, code in made.items())


def test_a_helper_that_hangs_is_ended_and_its_name_left(be, monkeypatch):
    monkeypatch.setattr(module, "_KERNEL_TIMEOUT_S", 0.5)
    be(HANGS)
    left, made = work()
    assert (sorted(left), made) == (sorted(NAMES), {})


def test_where_no_helper_can_be_started_all_is_left(be, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere")
    left, made = work()
    assert (list(left), made) == (NAMES, {})


def test_a_compiled_kernel_is_kept_at_once_and_progress_is_reported_all_the_time(be):
    be(SLOW)
    kept, reports, times = dict[str, bytes](), list[Compiling](), [time.monotonic()]

    def keep(name: str, code: bytes) -> None:
        kept[name] = code
        assert reports or len(kept) < len(NAMES), "no report before all was made"

    def tell(now: Compiling) -> None:
        reports.append(now)
        times.append(time.monotonic())

    made = compile_objects(NAMES, keep, tell)
    assert kept == made == {name: name.upper().encode() for name in NAMES}
    assert reports[-1].fraction == 1.0
    assert all(0 <= now.fraction < 1 and now.spent_s <= now.expected_s for now in reports[:-1])
    assert [now.fraction for now in reports] == sorted(now.fraction for now in reports)
    assert [now.spent_s for now in reports] == sorted(now.spent_s for now in reports)
    assert max(later - earlier for earlier, later in pairwise(times)) < 2
    assert str(reports[-1]).startswith("compiling kernels for this CPU, once: ")


def test_a_slow_computer_shows_in_how_long_it_is_expected_to_take(be, monkeypatch):
    be(SLOW)
    monkeypatch.setattr(module, "cost_s", lambda names: 1e-3 * len(list(names)))
    monkeypatch.setattr(module, "_START_S", 1e-3)
    monkeypatch.setattr(module, "_REPORT_S", 0.02)
    reports, kept_at = list[Compiling](), list[float]()
    begun = time.monotonic()
    compile_objects(NAMES, lambda name, code: kept_at.append(time.monotonic() - begun), reports.append)
    start_s = kept_at[0]  # on a busy computer helpers take long to start, and their work here is a sleep
    whole_s = reports[-1].spent_s - start_s
    assert whole_s > 20e-3, "not slower than expected"
    half = next(now for now in reports if now.fraction > 0.5)
    assert 0.25 * whole_s < half.spent_s - start_s < 0.9 * whole_s
