"""Run a case on nodes that are ready: a warm-up, then repetitions, with memory read between them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from statistics import mean

from numpy.random import default_rng

from dllama_zmq.bench.cases import Case, StepRows, prompt_steps
from dllama_zmq.bench.parallel import Gaps, Parallel
from dllama_zmq.bench.reader import MemoryReader
from dllama_zmq.bus.client_messages import StepStats
from dllama_zmq.kernels import Batch
from dllama_zmq.kernels.profiled import Profiled
from dllama_zmq.reporting import Reporter
from dllama_zmq.root.root import Root
from dllama_zmq.sharding import Ask

_SEED = 0
_PASSES = 2
"""Over the reader's memory before a repetition. The faster one counts."""
_READ_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of each repetition of a case, the root's timing of all of them together, and the rows of their steps.

    read_bytes_per_s: memory read by the threads of all nodes, the mean of the readings between repetitions.
    kernels: seconds and calls of each kernel of the root; None without a profile.
    gaps: seconds between the tokens of sequences beside a new prompt; None for other cases.
    """

    case: Case
    seconds: tuple[float, ...]
    timing: StepStats
    read_bytes_per_s: float
    steps: Sequence[StepRows]
    kernels: dict[str, tuple[float, int]] | None = None
    gaps: Gaps | None = None


class Bench:
    """Cases on one root, one after another. The cache keeps the positions that they have filled."""

    def __init__(self, root: Root, reporter: Reporter, title: str, reader: MemoryReader) -> None:
        """reader: has as many threads as all nodes together. It reads between the repetitions, because a machine's
        bandwidth may change within a minute (tools/BENCHMARKS.md).
        """
        self._root, self._reporter, self._title, self._reader = root, reporter, title, reader
        self._rng = default_rng(_SEED)
        self._n_filled = 0  # positions with keys and values, from the first on

    def run(self, case: Case, repetitions: int) -> Measured:
        """Measure `case`. A warm-up that does not count touches the weights and the pages of the cache.

        Raises WorkerLost or RemoteError.
        """
        what = f"{self._title}: {case.name}"
        many = None
        if case.parallel > 1:
            self._reporter.activity(f"{what}, evaluating the prompts")
            many = Parallel(self._root, case, self._rng)
        else:
            self._fill(case, what)

        def repetition() -> tuple[float, StepStats, list[StepRows]]:
            return self._evaluate(case.steps()) if many is None else many.run()

        self._reporter.activity(f"{what}, warming up")
        repetition()
        if many is not None:
            many.gaps = Gaps()
        profiled = self._root.kernels if isinstance(self._root.kernels, Profiled) else None
        if profiled is not None:
            profiled.reset()
        seconds: list[float] = []
        timings: list[StepStats] = []
        steps: list[StepRows] = []
        read_bytes_per_s: list[float] = []
        next_read = 0.0
        for i in range(repetitions):
            speed = f", {case.n_counted / seconds[-1]:.2f} tokens/s in the last" if seconds else ""
            self._reporter.activity(f"{what}, repetition {i + 1} of {repetitions}{speed}")
            if time.monotonic() >= next_read:
                read_bytes_per_s.append(self._reader.n_bytes / min(self._reader.pass_s() for _ in range(_PASSES)))
                next_read = time.monotonic() + _READ_PERIOD_S
            took_s, timing, its_steps = repetition()
            seconds.append(took_s)
            timings.append(timing)
            steps += its_steps
        if many is None:
            self._n_filled = max(self._n_filled, case.n_positions)
        kernels = (
            None if profiled is None else {name: (s, profiled.calls[name]) for name, s in profiled.seconds.items()}
        )
        gaps = many.gaps if many is not None and case.kind == "pp" else None
        return Measured(case, tuple(seconds), reduce(add, timings), mean(read_bytes_per_s), steps, kernels, gaps)

    def _fill(self, case: Case, what: str) -> None:
        """Fill the positions before the case's own."""
        self._root.set_phase("prompt")
        for batch, _ in prompt_steps(self._n_filled, case.depth):  # which tokens they are does not change the timing
            self._reporter.activity(f"{what}, filling the cache", batch.spans[0].start, case.depth, "tokens")
            self._evaluate([(batch, False)])
        self._root.set_phase("prompt" if case.kind == "pp" else "prediction")

    def _evaluate(self, steps: Iterable[tuple[Batch, bool]]) -> tuple[float, StepStats, list[StepRows]]:
        """Run steps over random tokens, drawn before the clock starts. A step that gives a token finds the best one."""
        steps = list(steps)
        tokens = [self._rng.integers(0, self._root.spec.vocab_size, batch.n_rows).tolist() for batch, _ in steps]
        timings = []
        start = time.perf_counter()
        for (batch, gives_token), its_tokens in zip(steps, tokens, strict=True):
            asks = {batch.n_rows - 1: Ask(1)} if gives_token else {}
            timings.append(self._root.evaluate(batch, its_tokens, asks)[1])
        seconds = time.perf_counter() - start
        return seconds, reduce(add, timings), [(batch.n_rows, int(gives_token)) for batch, gives_token in steps]
