"""Many sequences at once, through the engine: their tokens together, and a new prompt's first token beside them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from statistics import median, quantiles

from numpy.random import Generator

from dllama_zmq.bench.cases import ALONE_STEPS, Case, StepRows
from dllama_zmq.bus.client_messages import NO_STEPS, StepStats
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.root import Root
from dllama_zmq.sampling import Sampling


@dataclass(slots=True)
class Gaps:
    """Seconds between two tokens of running sequences: `alone`, and `beside` a prompt that is evaluated."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Their medians and the 99th percentile beside a prompt, in milliseconds."""
        p99 = quantiles(self.beside, n=100, method="inclusive")[-1] if len(self.beside) > 1 else self.beside[0]
        medians = {"gap_ms": median(self.alone), "gap_beside_ms": median(self.beside)}
        return {name: 1000 * seconds for name, seconds in {**medians, "gap_beside_p99_ms": p99}.items()}


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

    def run(self) -> tuple[float, StepStats, list[StepRows]]:
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
                return self._timed([self._step() for _ in range(case.n_tokens)])
            self.gaps.alone += [self._step()[0] for _ in range(ALONE_STEPS)][1:]  # the first one admits them
            new = engine.add(self._random(case.n_tokens), Sampling())
            texts.append(new)
            steps = []
            while not new.n_new:
                steps.append(self._step())
            self.gaps.beside += [seconds for seconds, *_ in steps]
            return self._timed(steps)
        finally:
            for text in texts:
                engine.cancel(text)

    def _random(self, n_tokens: int) -> list[int]:
        tokens: list[int] = self._rng.integers(0, self._engine.root.spec.vocab_size, n_tokens).tolist()
        return tokens

    def _step(self) -> tuple[float, StepStats, StepRows]:
        ledger, start = self._engine.root.ledger, time.perf_counter()
        before = ledger.tokens.total(), ledger.sampled.total()
        outcome = self._engine.step()
        seconds = time.perf_counter() - start
        for _, error in outcome.failed:
            raise error
        return seconds, outcome.figures, (ledger.tokens.total() - before[0], ledger.sampled.total() - before[1])

    def _timed(self, steps: Sequence[tuple[float, StepStats, StepRows]]) -> tuple[float, StepStats, list[StepRows]]:
        seconds, figures, rows = zip(*steps, strict=True)
        return sum(seconds), reduce(add, figures, NO_STEPS), list(rows)
