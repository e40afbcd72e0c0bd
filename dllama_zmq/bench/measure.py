"""Run a case on nodes that are ready: warm-up, repetitions, seconds of each. Knows no table."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from statistics import mean

from numpy.random import default_rng

from dllama_zmq.bench.bandwidth import Reader
from dllama_zmq.bench.cases import Case, prompt_steps
from dllama_zmq.kernels.profiled import Profiled
from dllama_zmq.models import Run
from dllama_zmq.root.root import Root
from dllama_zmq.root.timing import Timing
from dllama_zmq.telling import Tells

_SEED = 0
_PASSES = 2
"""Over the reader's memory before a repetition; the better one counts."""
_READ_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of every repetition of a case, and the root's figures of all of them together.

    read_bytes_per_s: what the threads of all nodes read, in the mean of readings between the repetitions.
    kernels: seconds and calls of each of the root's kernels, where it counts them.
    """

    case: Case
    seconds: tuple[float, ...]
    timing: Timing
    read_bytes_per_s: float
    kernels: dict[str, tuple[float, int]] | None = None


class Bench:
    """Cases on one root, one after another; the cache keeps what they leave in it.

    reader: with as many threads as all nodes have. It reads between the repetitions, because a machine's bandwidth may
    be another one a minute later (tools/BENCHMARKS.md).
    """

    def __init__(self, root: Root, tells: Tells, title: str, reader: Reader) -> None:
        self._root = root
        self._reader = reader
        self._tells = tells
        self._title = title
        self._rng = default_rng(_SEED)
        self._filled = 0  # positions with keys and values, from the first on

    def run(self, case: Case, repetitions: int) -> Measured:
        """Measure `case` after one repetition that does not count: it touches the weights and the cache's pages.

        Raises WorkerLost or RemoteError.
        """
        what = f"{self._title}: {case.name}"
        self._fill(case.depth, what)
        self._root.set_phase("prompt" if case.kind == "pp" else "prediction")
        self._tells.now(f"{what}, warming up")
        self._evaluate(case.steps())
        profiled = self._root.kernels if isinstance(self._root.kernels, Profiled) else None
        if profiled is not None:
            profiled.reset()
        seconds: list[float] = []
        reads_s: list[float] = []
        next_read = 0.0
        timings: list[Timing] = []
        for i in range(repetitions):
            speed = f", {case.n_tokens / seconds[-1]:.2f} tokens/s in the last" if seconds else ""
            self._tells.now(f"{what}, repetition {i + 1} of {repetitions}{speed}")
            if time.monotonic() >= next_read:
                reads_s.append(min(self._reader.pass_s() for _ in range(_PASSES)))
                next_read = time.monotonic() + _READ_EVERY_S
            took_s, timing = self._evaluate(case.steps())
            seconds.append(took_s)
            timings.append(timing)
        self._filled = max(self._filled, case.n_positions)
        spent = None
        if profiled is not None:
            calls = profiled.calls
            spent = {name: (its_seconds, calls[name]) for name, its_seconds in profiled.seconds.items()}
        read = self._reader.n_bytes * mean(1 / s for s in reads_s)
        return Measured(case, tuple(seconds), reduce(add, timings), read, spent)

    def _fill(self, depth: int, what: str) -> None:
        """Make the cache hold at least `depth` positions; what they hold does not change what a step takes."""
        self._root.set_phase("prompt")
        for run, _ in prompt_steps(self._filled, depth):
            self._tells.now(f"{what}, filling the cache", run.start, depth, "tokens")
            self._evaluate([(run, False)])

    def _evaluate(self, steps: Iterable[tuple[Run, bool]]) -> tuple[float, Timing]:
        """Steps over random tokens, drawn before the clock starts; the best candidate of each row that is wanted."""
        steps = list(steps)
        vocabulary = self._root.spec.vocab_size
        tokens = [self._rng.integers(0, vocabulary, run.count).tolist() for run, _ in steps]
        total = Timing(0.0, 0.0, 0, 0)
        start = time.perf_counter()
        for (run, wanted), its_tokens in zip(steps, tokens, strict=True):
            rows = [(run.count - 1, 0.0)] if wanted else []
            _, timing = self._root.evaluate([run], its_tokens, rows, 1 if wanted else 0)
            total += timing
        return time.perf_counter() - start, total
