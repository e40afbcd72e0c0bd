"""Processes that compile, on several cores: numba does one kernel at a time. What none of them brings is compiled here.

Knows no numba, which therefore is in no process that computes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Thread, Timer
from typing import BinaryIO

from dllama_zmq import host
from dllama_zmq.kernels.needs import Compiling
from dllama_zmq.kernels.simd.catalog import cost_s

_MOST = 3
_ROOM_BYTES = 400 << 20
"""Of this machine's free memory for each helper beyond the first: one takes 200 MB."""
_LONGEST_S = 120.0
"""A helper that takes longer for one name is ended; the slowest takes 2 s on a core of tools/BENCHMARKS.md."""
_START_S = 0.7
"""What a helper takes until it can compile, on such a core."""
_LOOK_S = 0.02
_TELL_EVERY_S = 0.2
_LENGTH_BYTES = 8

Keep = Callable[[str, bytes], None]


def compile_objects(names: Sequence[str], keep: Keep, on_progress: Callable[[Compiling], None]) -> dict[str, bytes]:
    """Each kernel's object file, given to `keep` as soon as it is there; `on_progress` is called 5 times a second."""
    left, made, kept = deque(sorted(names, key=lambda name: -cost_s([name]))), dict[str, bytes](), set[str]()
    n_helpers = how_many(len(names))
    whole_s, start, told = cost_s(names), time.monotonic(), 0.0

    def tell() -> None:
        nonlocal told
        now = time.monotonic()
        if now < told + _TELL_EVERY_S:
            return
        told, spent_s = now, now - start
        # Each helper is half-way through something. A slower CPU shows by how long that and all before it took.
        begun_s = cost_s(sorted(set(names) - kept - set(left))) / 2 + cost_s(kept) + n_helpers * _START_S
        total_s = whole_s + n_helpers * _START_S
        expected_s = max(total_s / n_helpers, spent_s * max(1.0, total_s / begun_s))
        on_progress(Compiling(min(spent_s / expected_s, 0.99), spent_s, expected_s))

    def keep_new() -> None:
        for name in list(made):
            if name not in kept:
                keep(name, made[name])
                kept.add(name)

    with helpers(left, made, n_helpers) as at_work:
        while at_work():
            keep_new()
            tell()
            time.sleep(_LOOK_S)
    if left:
        from dllama_zmq.kernels.simd.build import object_of

        while left:
            keep_new()
            tell()
            name = left.popleft()
            made[name] = object_of(name)
    keep_new()
    spent_s = time.monotonic() - start
    on_progress(Compiling(1.0, spent_s, spent_s))
    return made


@contextmanager
def helpers(left: deque[str], made: dict[str, bytes], n_helpers: int) -> Iterator[Callable[[], bool]]:
    """Have names of `left` done and put into `made`; gives a function that says whether a helper is at work on one.

    What a helper has taken and does not bring is in `left` again.
    """
    # Where this process found its modules, and nowhere else. numba must not optimize: build.py does.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "PYTHONSAFEPATH": "1",
        "NUMBA_OPT": "0",
    }
    processes: list[subprocess.Popen[bytes]] = []
    threads: list[Thread] = []
    for _ in range(n_helpers):
        with suppress(OSError):
            process = subprocess.Popen(
                [sys.executable, "-m", "dllama_zmq.kernels.simd.build"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
            processes.append(process)
            threads.append(Thread(target=_feed, args=(process, left, made), daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield lambda: any(thread.is_alive() for thread in threads)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for thread in threads:
            thread.join()


def answer(make: Callable[[str], bytes], names: BinaryIO, answers: BinaryIO) -> None:
    """Be a helper: for each line of `names`, what `make` makes of it, behind its length."""
    for line in names:
        made = make(line.decode().strip())
        answers.write(len(made).to_bytes(_LENGTH_BYTES, "little") + made)
        answers.flush()


def how_many(n_names: int) -> int:
    """Helpers for `n_names` kernels: as cores and memory allow."""
    free_bytes = host.free_memory_bytes()
    room = _MOST if free_bytes is None else max(1, free_bytes // _ROOM_BYTES)
    return min(_MOST, host.usable_cores(), room, n_names)


def _feed(process: subprocess.Popen[bytes], left: deque[str], made: dict[str, bytes]) -> None:
    """One helper's names to it, one at a time, and what it makes of them into `made`, until there are none."""
    names, answers = process.stdin, process.stdout
    if names is None or answers is None:
        return
    with suppress(BrokenPipeError), names, answers:  # to close is to write, where a write has failed
        while True:
            try:
                name = left.popleft()
            except IndexError:
                return
            end = Timer(_LONGEST_S, process.kill)
            end.start()
            try:
                names.write(name.encode() + b"\n")
                names.flush()
                n_bytes = int.from_bytes(answers.read(_LENGTH_BYTES), "little")
                code = answers.read(n_bytes)
            except OSError:
                code, n_bytes = b"", 0
            finally:
                end.cancel()
            if not code or len(code) < n_bytes:
                left.append(name)
                return
            made[name] = code
