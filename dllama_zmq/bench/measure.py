"""Run a case on nodes that are ready: a warm-up, then repetitions, with memory read between them.

Several sequences run through the engine: their tokens together, and a new prompt's first token beside them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from statistics import mean, median, quantiles
from typing import NamedTuple

from msgspec import Struct, field
from numpy.random import Generator, default_rng

from dllama_zmq.bench.cases import ALONE_STEPS, Case, StepRows, prompt_steps
from dllama_zmq.bench.machine import MemoryReader
from dllama_zmq.bus.client_messages import NO_STEPS, StepStats
from dllama_zmq.kernels import Batch
from dllama_zmq.kernels.profiled import Profiled
from dllama_zmq.reporting import Reporter
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.root import Root
from dllama_zmq.sampling import Sampling
from dllama_zmq.sharding import Ask

_SEED = 0
_PASSES = 2
"""Over the reader's memory before a repetition. The faster one counts."""
_READ_PERIOD_S = 0.5


class Took(NamedTuple):
    """Seconds of steps, the root's timing of them, and the rows of each."""

    seconds: float
    figures: StepStats
    steps: list[StepRows]

    @classmethod
    def together(cls, parts: Sequence[Took]) -> Took:
        """All of these, one after another."""
        steps = [step for part in parts for step in part.steps]
        return cls(sum(part.seconds for part in parts), reduce(add, (part.figures for part in parts), NO_STEPS), steps)


class Gaps(Struct):
    """Seconds between two tokens of running sequences: `alone`, and `beside` a prompt that is evaluated."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Their medians and the 99th percentile beside a prompt, in milliseconds."""
        p99 = quantiles(self.beside, n=100, method="inclusive")[-1] if len(self.beside) > 1 else self.beside[0]
        medians = {"gap_ms": median(self.alone), "gap_beside_ms": median(self.beside)}
        return {name: 1000 * seconds for name, seconds in {**medians, "gap_beside_p99_ms": p99}.items()}


class Measured(Struct, frozen=True):
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

        def repetition() -> Took:
            return self._evaluate(case.steps()) if many is None else many.run()

        self._reporter.activity(f"{what}, warming up")
        repetition()
        if many is not None:
            many.gaps = Gaps()
        profiled = self._root.kernels if isinstance(self._root.kernels, Profiled) else None
        if profiled is not None:
            profiled.reset()
        took: list[Took] = []
        read_bytes_per_s: list[float] = []
        next_read = 0.0
        for i in range(repetitions):
            speed = f", {case.n_counted / took[-1].seconds:.2f} tokens/s in the last" if took else ""
            self._reporter.activity(f"{what}, repetition {i + 1} of {repetitions}{speed}")
            if time.monotonic() >= next_read:
                read_bytes_per_s.append(self._reader.n_bytes / min(self._reader.pass_s() for _ in range(_PASSES)))
                next_read = time.monotonic() + _READ_PERIOD_S
            took.append(repetition())
        if many is None:
            self._n_filled = max(self._n_filled, case.n_positions)
        kernels = (
            None if profiled is None else {name: (s, profiled.calls[name]) for name, s in profiled.seconds.items()}
        )
        gaps = many.gaps if many is not None and case.kind == "pp" else None
        seconds, (_, timing, steps) = tuple(one.seconds for one in took), Took.together(took)
        return Measured(case, seconds, timing, mean(read_bytes_per_s), steps, kernels, gaps)

    def _fill(self, case: Case, what: str) -> None:
        """Fill the positions before the case's own."""
        self._root.set_phase("prompt")
        for batch, _ in prompt_steps(self._n_filled, case.depth):  # which tokens they are does not change the timing
            self._reporter.activity(f"{what}, filling the cache", batch.spans[0].start, case.depth, "tokens")
            self._evaluate([(batch, False)])
        self._root.set_phase("prompt" if case.kind == "pp" else "prediction")

    def _evaluate(self, steps: Iterable[tuple[Batch, bool]]) -> Took:
        """Run steps over random tokens, drawn before the clock starts. A step that gives a token finds the best one."""
        steps = list(steps)
        tokens = [self._rng.integers(0, self._root.spec.vocab_size, batch.n_rows).tolist() for batch, _ in steps]
        timings = []
        start = time.perf_counter()
        for (batch, gives_token), its_tokens in zip(steps, tokens, strict=True):
            asks = {batch.n_rows - 1: Ask(1)} if gives_token else {}
            timings.append(self._root.evaluate(batch, its_tokens, asks)[1])
        seconds = time.perf_counter() - start
        return Took(seconds, reduce(add, timings), [(batch.n_rows, int(gives_token)) for batch, gives_token in steps])


class Parallel:
    """The repetitions of one case with `case.parallel` sequences, each with a prompt of its own."""

    def __init__(self, root: Root, case: Case, rng: Generator) -> None:
        """Evaluates the prompts, which fill `case.depth` positions; the prefix cache keeps them."""
        self._engine, self._case, self._rng = Engine(root, case.parallel + 1), case, rng
        self._prompts = [self._random(case.depth + 1) for _ in range(case.parallel)]
        self.gaps = Gaps()
        for prompt in self._prompts:
            self._engine.add(prompt, Sampling(), 1)
            while self._engine.busy:
                self._step()

    def run(self) -> Took:
        """One repetition: its seconds, the timing of its steps, and their rows. tg: the steps that give each sequence
        `n_tokens` tokens. pp: the steps from the arrival of a new prompt until its first token, while the others
        continue.
        """
        case, engine = self._case, self._engine
        texts = [engine.add(prompt, Sampling()) for prompt in self._prompts]
        while min(text.n_computed for text in texts) < case.depth:
            self._step()
        try:
            if case.kind == "tg":
                return Took.together([self._step() for _ in range(case.n_tokens)])
            self.gaps.alone += [self._step().seconds for _ in range(ALONE_STEPS)][1:]  # the first one admits them
            new = engine.add(self._random(case.n_tokens), Sampling())
            texts.append(new)
            steps = []
            while not new.n_new:
                steps.append(self._step())
            self.gaps.beside += [step.seconds for step in steps]
            return Took.together(steps)
        finally:
            for text in texts:
                engine.cancel(text)

    def _random(self, n_tokens: int) -> list[int]:
        tokens: list[int] = self._rng.integers(0, self._engine.root.spec.vocab_size, n_tokens).tolist()
        return tokens

    def _step(self) -> Took:
        ledger, start = self._engine.root.ledger, time.perf_counter()
        before = ledger.tokens.total(), ledger.sampled.total()
        outcome = self._engine.step()
        seconds = time.perf_counter() - start
        for _, error in outcome.failed:
            raise error
        rows = ledger.tokens.total() - before[0], ledger.sampled.total() - before[1]
        return Took(seconds, outcome.figures, [rows])
