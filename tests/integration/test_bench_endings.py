"""A `dllama-zmq bench` that is stopped, killed or loses a worker leaves nothing, and none is silent for long."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from command_line import Cli, Process, finish, kill, read_some, until
from integration.bench_runs import LITTLE_MEMORY, SHAPE, left_folders

LEAVE_S = 20.0  # on a busy machine; half a second alone


@contextmanager
def long_bench(cli: Cli) -> Iterator[Process]:
    """A bench of two nodes that has printed its first row and has minutes of work before it."""
    words = ["bench", *SHAPE, "-p", "0", "-n", "1,100", "-r", "150", "--nodes", "2"]
    with cli.started(*words, code=LITTLE_MEMORY, XDG_CACHE_HOME=str(cli.folder)) as process:
        read = b""
        while b"| tg1 " not in read:
            read += read_some(process, 1, 90.0)  # a busy machine measures its memory for long
        yield process


@pytest.mark.few(1)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_bench_that_is_stopped_leaves_nothing(bench: Cli, number: signal.Signals, code: int) -> None:
    with long_bench(bench) as process:
        start = time.monotonic()
        process.send_signal(number)
        ended = finish(process, LEAVE_S, start)
    assert ended.code == code, ended.said
    assert "Traceback" not in ended.err
    assert (bench.processes(), bench.sockets(), left_folders(bench)) == ([], [], [])


def test_a_worker_that_is_frozen_does_not_outlive_a_bench_that_is_stopped(bench: Cli) -> None:
    with long_bench(bench) as process:
        kill(bench.processes_of("worker")[0].pid, signal.SIGSTOP)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        ended = finish(process, LEAVE_S, start)
    assert ended.code == 130, ended.said
    assert (bench.processes(), bench.sockets(), left_folders(bench)) == ([], [], [])


def test_a_bench_that_is_killed_leaves_nothing_either(bench: Cli) -> None:
    with long_bench(bench) as process:
        kill(process.pid)
        process.wait(LEAVE_S)
        until(lambda: not bench.processes(), LEAVE_S, "its children to end")
    assert (bench.sockets(), left_folders(bench)) == ([], [])


@pytest.mark.few(1)
@pytest.mark.parametrize("place", ["run/*", "run/*/replies.sock", "logs/*/worker1.log"])
def test_a_bench_that_is_stopped_while_its_nodes_start_leaves_nothing(bench: Cli, place: str) -> None:
    words = ["bench", *SHAPE, "--nodes", "2", "-p", "0", "-n", "100", "-r", "1000"]
    with bench.started(*words, code=LITTLE_MEMORY, XDG_CACHE_HOME=str(bench.folder)) as process:
        until(lambda: list(bench.home.glob(place)), 30, place)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        ended = finish(process, LEAVE_S, start)
    assert ended.code == 130, ended.said
    assert "Traceback" not in ended.err
    until(lambda: not bench.processes(), LEAVE_S, "the workers to end")
    assert (bench.sockets(), left_folders(bench)) == ([], [])


def test_a_worker_that_dies_ends_the_bench_with_one_sentence(bench: Cli) -> None:
    with long_bench(bench) as process:
        start = time.monotonic()
        kill(bench.processes_of("worker")[0].pid)
        ended = finish(process, LEAVE_S, start)
    assert re.match(r"worker1 (was lost at step \d+|ended with signal 9)", ended.error())
    assert (bench.processes(), bench.sockets(), left_folders(bench)) == ([], [], [])


def test_a_shape_that_is_stopped_while_it_is_made_leaves_no_file(bench: Cli, tmp_path: Path) -> None:
    words = ["bench", "--shape", "tinyllama", "--weights", "f32"]  # 4.4 GB: seconds at least
    with bench.started(*words, XDG_CACHE_HOME=str(tmp_path)) as process:
        until(lambda: list(tmp_path.rglob("*.part")), 30, "the file to be begun")
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        ended = finish(process, LEAVE_S, start)
    assert ended.code == 130, ended.said
    assert "Traceback" not in ended.err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nothing_is_silent_for_more_than_two_seconds(bench: Cli) -> None:
    # One node, which computes until the lines have come.
    words = ["bench", *SHAPE, "-p", "0", "-n", "100", "-r", "10000"]
    with bench.started(*words, code=LITTLE_MEMORY, XDG_CACHE_HOME=str(bench.folder)) as process:
        assert process.stderr is not None
        while b"tg100" not in (line := process.stderr.readline()):
            assert line, "it ended"
        times, lines = [time.monotonic()], list[bytes]()
        for _ in range(3):
            lines.append(process.stderr.readline())
            times.append(time.monotonic())
        process.send_signal(signal.SIGINT)
        finish(process, LEAVE_S, times[-1])
    assert all(b"tokens/s in the last" in line for line in lines)
    silences = sorted(after - before for before, after in pairwise(times))
    assert silences[1] < 2, silences  # the longest may be the machine's own
