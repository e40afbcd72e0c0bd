"""Helpers that compile: whatever becomes of them, each name is either made or left to be done."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path

import pytest

from dllama_zmq.kernels.simd import helpers as module
from dllama_zmq.kernels.simd.helpers import helpers

NAMES = [f"kernel{i}" for i in range(20)]
ANSWERS = "answer(str.upper, sys.stdin.buffer, sys.stdout.buffer)"
DIES = "answer(lambda name: sys.exit(1) if name[-1] in '37' else name.upper(), sys.stdin.buffer, sys.stdout.buffer)"
CUT_SHORT = "sys.stdin.readline(); sys.stdout.buffer.write((99).to_bytes(8, 'little') + b'KERNEL')"
HANGS = "import time; time.sleep(1000)"


@pytest.fixture
def be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make two helpers of a program."""
    monkeypatch.setattr(module, "_how_many", lambda: 2)

    def be(program: str) -> None:
        script = tmp_path / "helper"
        imports = "import sys\nfrom dllama_zmq.kernels.simd.helpers import answer\n"
        script.write_text(f"#!{sys.executable}\n{imports}{program}\n")
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return be


def work(deadline_s: float = 30.0) -> tuple[deque[str], dict[str, str]]:
    """What is left and what is made when no helper is at work any more."""
    left, made = deque(NAMES), dict[str, str]()
    until = time.monotonic() + deadline_s
    with helpers(left, made) as at_work:
        while at_work() and time.monotonic() < until:
            time.sleep(0.01)
        assert not at_work()
    return left, made


def test_helpers_make_all_there_is(be):
    be(ANSWERS)
    left, made = work()
    assert not left
    assert made == {name: name.upper() for name in NAMES}


@pytest.mark.parametrize("program", [DIES, CUT_SHORT, "sys.exit(1)"])
def test_what_a_helper_takes_and_does_not_bring_is_left(be, program):
    be(program)
    left, made = work()
    assert left
    assert sorted([*left, *made]) == sorted(NAMES)
    assert all(code == name.upper() for name, code in made.items())


def test_a_helper_that_hangs_is_ended_and_its_name_left(be, monkeypatch):
    monkeypatch.setattr(module, "_LONGEST_S", 0.5)
    be(HANGS)
    left, made = work()
    assert (sorted(left), made) == (sorted(NAMES), {})


def test_where_no_helper_can_be_started_all_is_left(be, monkeypatch):
    monkeypatch.setattr(module, "_how_many", lambda: 2)
    monkeypatch.setattr(sys, "executable", "/nowhere")
    left, made = work()
    assert (list(left), made) == (NAMES, {})
