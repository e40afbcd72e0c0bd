"""Processes that compile beside this one. What one of them takes and does not bring is left for this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread, Timer
from typing import BinaryIO

from dllama_zmq.host import free_memory_bytes, usable_cores

_MOST = 3
_ROOM_BYTES = 1 << 30
"""Of this machine's free memory for each helper: one takes 200 MB, and a small machine has other things to do."""
_LONGEST_S = 60.0
"""A helper that takes longer for one name is ended; numba takes 2 s at most here."""
_LENGTH_BYTES = 8


@contextmanager
def helpers(left: deque[str], made: dict[str, str]) -> Iterator[Callable[[], bool]]:
    """Have names of `left` done and put into `made`; gives a function that says whether a helper is at work on one.

    What a helper has taken and does not bring is in `left` again.
    """
    # Where this process found its modules, and nowhere else.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONSAFEPATH": "1"}
    processes: list[subprocess.Popen[bytes]] = []
    threads: list[Thread] = []
    for _ in range(_how_many()):
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


def answer(make: Callable[[str], str], names: BinaryIO, answers: BinaryIO) -> None:
    """Be a helper: for each line of `names`, what `make` makes of it, behind its length."""
    for line in names:
        made = make(line.decode().strip()).encode()
        answers.write(len(made).to_bytes(_LENGTH_BYTES, "little") + made)
        answers.flush()


def _feed(process: subprocess.Popen[bytes], left: deque[str], made: dict[str, str]) -> None:
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
            made[name] = code.decode()


def _how_many() -> int:
    free = free_memory_bytes()
    return max(0, min(_MOST, usable_cores() - 1, _MOST if free is None else free // _ROOM_BYTES - 1))
