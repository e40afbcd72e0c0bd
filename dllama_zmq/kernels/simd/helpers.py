"""Helper processes that compile on several cores; what none of them delivers is compiled in this process.

numba compiles one kernel at a time. Only the helpers import it, so it is in no process that computes.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread, Timer
from typing import BinaryIO

from dllama_zmq import host
from dllama_zmq.kernels.needs import Compiling
from dllama_zmq.kernels.simd.catalog import cost_s
from dllama_zmq.kernels.simd.host import host_cpu
from dllama_zmq.own_code import own_code

_MAX_HELPERS = 3
_FREE_BYTES = 400 << 20
"""Free memory for each helper beyond the first: one takes 200 MB."""
_KERNEL_TIMEOUT_S = 120.0
"""A helper that takes longer for one kernel is ended; the slowest takes 2 s on a core of tools/BENCHMARKS.md."""
_START_S = 0.7
"""From a helper's start until it can compile, on such a core."""
_POLL_S = 0.02
_REPORT_S = 0.2
_LENGTH_BYTES = 8

Keep = Callable[[str, bytes], None]


def compile_objects(names: Sequence[str], keep: Keep, on_progress: Callable[[Compiling], None]) -> dict[str, bytes]:
    """The kernels' object files. Each is given to `keep` when it is made; `on_progress` is called 5 times a second."""
    left, made, kept = deque(sorted(names, key=lambda name: -cost_s([name]))), dict[str, bytes](), set[str]()
    progress = _Progress(names, how_many(len(names)))

    def look(ready: bool = True) -> None:
        for name in list(made):
            if name not in kept:
                keep(name, made[name])
                kept.add(name)
        progress.tell(on_progress, ready, kept, left)

    with helpers(left, made, progress.n_helpers) as (at_work, ready):
        while at_work():
            look(ready())
            time.sleep(_POLL_S)
    look()
    if left:  # no helper could be started, or they ended early
        from dllama_zmq.kernels.simd.build import object_of

        while left:
            name = left.popleft()
            made[name] = object_of(name)
            look()
    on_progress(Compiling(1.0, progress.spent_s, progress.spent_s))
    return made


class _Progress:
    """How far compiling is, by expected cost. What is done so far shows how much slower this computer is."""

    def __init__(self, names: Sequence[str], n_helpers: int) -> None:
        self.n_helpers = n_helpers
        self._names = set(names)
        self._starts_s = n_helpers * _START_S
        self._whole_s = cost_s(names) + self._starts_s
        self._begun, self._told, self._started_s, self._fraction = time.monotonic(), 0.0, 0.0, 0.0

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._begun

    def tell(self, to: Callable[[Compiling], None], ready: bool, kept: set[str], left: Iterable[str]) -> None:
        """Report progress if the last report is long enough ago. ready: a helper has started and takes from `left`."""
        spent_s = self.spent_s
        if not ready or not self._started_s:
            self._started_s = spent_s
        if self._told and spent_s < self._told + _REPORT_S:
            return
        self._told = spent_s
        expected_s = self._whole_s / self.n_helpers * max(1.0, self._started_s / _START_S)
        at_work_s = cost_s(self._names - kept - set(left)) if ready else 0.0
        done_s = self._starts_s + cost_s(kept)
        fraction = min(max(spent_s / expected_s, done_s / self._whole_s if kept else 0.0), 0.99)
        self._fraction = max(self._fraction, min(fraction, (done_s + 0.9 * at_work_s) / self._whole_s))
        to(Compiling(self._fraction, spent_s, spent_s / max(self._fraction, 0.01)))


@contextmanager
def helpers(
    left: deque[str], made: dict[str, bytes], n_helpers: int
) -> Iterator[tuple[Callable[[], bool], Callable[[], bool]]]:
    """Helpers that compile the names in `left` into `made`. Yields two functions: is one at work, and has one started.

    A name that a helper has taken and not delivered is in `left` again.
    """
    _, name, features = host_cpu()  # a helper by itself might be allowed AMX where this process is not
    cpu = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    environment = own_code() | cpu | {"NUMBA_OPT": "0"}  # numba must not optimize: build.py does
    processes: list[subprocess.Popen[bytes]] = []
    threads: list[Thread] = []
    started = Event()
    for _ in range(n_helpers):
        with suppress(OSError):
            process = subprocess.Popen(
                [sys.executable, "-m", "dllama_zmq.kernels.simd.build"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            processes.append(process)
            threads.append(Thread(target=_feed, args=(process, left, made, started), daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield lambda: any(thread.is_alive() for thread in threads), started.is_set
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for thread in threads:
            thread.join()


def answer(make: Callable[[str], bytes], names: BinaryIO, answers: BinaryIO) -> None:
    """Be a helper: write a length of 0 now, then for each line of `names` the length and the bytes of `make(line)`."""
    answers.write(bytes(_LENGTH_BYTES))
    answers.flush()
    for line in names:
        made = make(line.decode().strip())
        answers.write(len(made).to_bytes(_LENGTH_BYTES, "little") + made)
        answers.flush()


def how_many(n_names: int) -> int:
    """Helpers for `n_names` kernels, as cores and free memory allow."""
    free_bytes = host.free_memory_bytes()
    by_memory = _MAX_HELPERS if free_bytes is None else max(1, free_bytes // _FREE_BYTES)
    return min(_MAX_HELPERS, host.usable_cores(), by_memory, n_names)


def _feed(process: subprocess.Popen[bytes], left: deque[str], made: dict[str, bytes], started: Event) -> None:
    """Give one helper names, one at a time, and put its answers into `made`, until no name is left."""
    names, answers = process.stdin, process.stdout
    if names is None or answers is None:
        return
    with suppress(BrokenPipeError), names, answers:  # to close is to write, where a write has failed
        with _with_timeout(process):
            if len(answers.read(_LENGTH_BYTES)) < _LENGTH_BYTES:
                return
        started.set()
        while True:
            try:
                name = left.popleft()
            except IndexError:
                return
            try:
                with _with_timeout(process):
                    names.write(name.encode() + b"\n")
                    names.flush()
                    n_bytes = int.from_bytes(answers.read(_LENGTH_BYTES), "little")
                    code = answers.read(n_bytes)
            except OSError:
                code, n_bytes = b"", 0
            if not code or len(code) < n_bytes:
                left.append(name)
                return
            made[name] = code


@contextmanager
def _with_timeout(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A helper that does not answer within `_KERNEL_TIMEOUT_S` is ended."""
    end = Timer(_KERNEL_TIMEOUT_S, process.kill)
    end.daemon = True
    end.start()
    try:
        yield
    finally:
        end.cancel()
