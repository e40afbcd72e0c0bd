"""The cases to measure: prompts (pp) and generated tokens (tg) on some nodes; their steps, and the work of their
matrices.

Knows plans and counts; runs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct, field

from dllama_zmq.kernels import Batch, KernelChoice
from dllama_zmq.reporting import plural
from dllama_zmq.sharding import PREFILL_TOKENS, Plan
from dllama_zmq.spec import FloatType, Sync

StepRows: TypeAlias = tuple[int, int]
"""The rows of a step, and how many of them give a token."""

ALONE_STEPS = 33
"""Steps of the sequences that run, before a new prompt comes."""


class Case(Struct, frozen=True):
    """`n_tokens` tokens after `depth` positions that the cache already holds; named as llama-bench names it.

    parallel: the number of sequences that generate `n_tokens` each (tg), or that run beside one new prompt (pp); 1 is
    one sequence alone.
    """

    kind: Literal["pp", "tg"]
    n_tokens: int
    depth: int = 0
    parallel: int = 1

    @property
    def name(self) -> str:
        depth = f" @ d{self.depth}" if self.depth else ""
        return f"{self.kind}{self.n_tokens}{depth}" + (f" @ {self.parallel}" if self.parallel > 1 else "")

    @property
    def n_counted(self) -> int:
        """The tokens that tokens/s count in one repetition."""
        return self.n_tokens * (self.parallel if self.kind == "tg" else 1)

    @property
    def n_positions(self) -> int:
        """Positions of each sequence that the cache needs."""
        beside = self.kind == "pp" and self.parallel > 1
        return self.depth + self.n_tokens + (ALONE_STEPS if beside else 1 if self.parallel > 1 else 0)

    @property
    def n_all_positions(self) -> int:
        """Positions of all sequences that the cache needs."""
        others = self.parallel * self.n_positions if self.parallel > 1 else 0
        return others + (self.n_tokens if self.kind == "pp" else 0) if others else self.n_positions

    def steps(self) -> Iterator[tuple[Batch, bool]]:
        """The steps of one repetition of a sequence alone, as in an answer, and whether each must give a token.

        A prompt runs in chunks, and its last chunk gives a token. Each step of decoding gives a token.
        """
        if self.kind == "pp":
            yield from prompt_steps(self.depth, self.n_positions)
        else:
            yield from ((Batch.alone(position, 1), True) for position in range(self.depth, self.n_positions))


class Nodes(Struct, frozen=True):
    """The number of nodes, and of compute threads in each."""

    n_nodes: int
    threads: int

    @property
    def all_threads(self) -> int:
        return self.n_nodes * self.threads

    def __str__(self) -> str:
        return f"{plural(self.n_nodes, 'node')} of {plural(self.threads, 'thread')}"


class RandomModel(Struct, frozen=True):
    """A published shape with random weights. `overrides` (keys of shapes.OVERRIDES) replace numbers of the shape."""

    shape: str
    weight_type: FloatType = FloatType.Q40
    overrides: Mapping[str, int] = field(default_factory=dict)


class BenchSettings(Struct, frozen=True):
    """Each case on each of `nodes`.

    model: a name or path as people give it, or a random model. command: the command line that asks for this.
    profile: measure where the root's time goes. predict: predict each case first.
    """

    model: str | RandomModel
    cases: Sequence[Case]
    nodes: Sequence[Nodes]
    repetitions: int
    sync: Sync
    kernels: KernelChoice
    command: str
    profile: bool = False
    predict: bool = False


def prompt_steps(start: int, stop: int) -> Iterator[tuple[Batch, bool]]:
    """The steps that evaluate positions `start` to `stop` - 1 of a prompt, in the chunks that `generate` uses."""
    for first in range(start, stop, PREFILL_TOKENS):
        count = min(PREFILL_TOKENS, stop - first)
        yield Batch.alone(first, count), first + count == stop


def cases(
    prompts: Sequence[int], generated: Sequence[int], depths: Sequence[int], parallel: Sequence[int] = (1,)
) -> list[Case]:
    """Each of these lengths at each depth, with each number of sequences. A length of 0 means none."""
    found = []
    for depth, n_sequences in itertools.product(depths, parallel):
        found += [Case("pp", n_tokens, depth, n_sequences) for n_tokens in prompts if n_tokens]
        found += [Case("tg", n_tokens, depth, n_sequences) for n_tokens in generated if n_tokens]
    return found


def work(plan: Plan, steps: Sequence[StepRows]) -> tuple[int, int]:
    """Bytes of weights read, and multiply-adds, by the matrices of all nodes in these steps.

    A KV head that several nodes hold counts for each of them.
    """
    each = [node_work(plan, node, steps) for node in range(plan.n_nodes)]
    return round(sum(weight_bytes for weight_bytes, _ in each)), round(sum(macs for _, macs in each))


def node_work(plan: Plan, node: int, steps: Sequence[StepRows]) -> tuple[float, float]:
    """Bytes of weights read, and multiply-adds, by the matrices of one node in these steps.

    A step reads each weight of the node once, for any number of tokens; the head only if the step gives a token; of
    experts the expected number in use when each is equally likely. Attention is not counted.
    """
    n_rows, n_given = sum(rows for rows, _ in steps), sum(given for _, given in steps)
    share = plan.spec.n_active_experts / max(1, plan.spec.n_experts)
    expert_reads = sum(1 - (1 - share) ** rows for rows, _ in steps)
    weight_bytes = macs = 0.0
    for tensor in plan.shard_tensors():
        reads, rows = float(len(steps)), float(n_rows)
        if ".experts." in tensor.name:
            reads, rows = expert_reads, share * n_rows
        elif tensor.axes[0] == "vocab":
            reads, rows = sum(given > 0 for _, given in steps), n_given
        weight_bytes += reads * plan.region_bytes(tensor, node)
        if tensor.axes[0] != "one":  # the gain of a norm is no matrix
            out, columns = plan.region(tensor, node)
            macs += rows * (out.stop - out.start) * (columns.stop - columns.start)
    return weight_bytes, macs
