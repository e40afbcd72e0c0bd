"""What is measured: a prompt (pp) or generated tokens (tg) after some positions, its steps, and what they take.

Knows plans and counts; runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dllama_zmq.models import Run
from dllama_zmq.sharding import PREFILL_TOKENS, Plan
from dllama_zmq.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Case:
    """`n_tokens` tokens after `depth` positions that the cache already holds; named as llama-bench names it."""

    kind: Literal["pp", "tg"]
    n_tokens: int
    depth: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}{self.n_tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def n_positions(self) -> int:
        """Positions that the cache must have room for."""
        return self.depth + self.n_tokens

    def steps(self) -> Iterator[tuple[Run, bool]]:
        """The steps of one repetition, and whether candidates of a step's last row are wanted.

        They are those of an answer: a prompt in chunks, of which the last gives a token; then a token a step.
        """
        if self.kind == "tg":
            for position in range(self.depth, self.n_positions):
                yield Run(0, position, 1), True
        else:
            yield from prompt_steps(self.depth, self.n_positions)


def prompt_steps(start: int, stop: int) -> Iterator[tuple[Run, bool]]:
    """The steps that evaluate a prompt's positions `start` to `stop` - 1, cut as `generate` cuts them."""
    for first in range(start, stop, PREFILL_TOKENS):
        run = Run(0, first, min(PREFILL_TOKENS, stop - first))
        yield run, first + run.count == stop


def cases(prompts: Sequence[int], generated: Sequence[int], depths: Sequence[int]) -> list[Case]:
    """Every case of these lengths at these depths; a length of 0 stands for none."""
    found = []
    for depth in depths:
        found += [Case("pp", n_tokens, depth) for n_tokens in prompts if n_tokens]
        found += [Case("tg", n_tokens, depth) for n_tokens in generated if n_tokens]
    return found


@dataclass(frozen=True, slots=True)
class Work:
    """What the matrices of all nodes together take for one repetition of a case.

    A step reads each of its node's weights once, however many tokens it has; the head's only where candidates are
    wanted; of experts those that its tokens use, as many as there are when each is as likely as any other.
    Multiply-adds are those of the matrices: attention's are not counted.
    """

    weight_bytes: int
    macs: int


def work(plan: Plan, case: Case) -> Work:
    """The work of one repetition. A KV head that several nodes hold counts for each of them."""
    experts = [tensor for tensor in plan.shard_tensors() if ".experts." in tensor.name]
    layers = [tensor for tensor in plan.shard_tensors() if tensor.axes[0] != "vocab" and ".experts." not in tensor.name]
    head = [tensor for tensor in plan.shard_tensors() if tensor.axes[0] == "vocab"]
    steps = list(case.steps())
    n_steps, n_wanted = len(steps), sum(wanted for _, wanted in steps)
    share = plan.spec.n_active_experts / max(1, plan.spec.n_experts)
    used = sum(1 - (1 - share) ** run.count for run, _ in steps)
    return Work(
        weight_bytes=n_steps * _bytes(plan, layers)
        + round(used * _bytes(plan, experts))
        + n_wanted * _bytes(plan, head),
        macs=case.n_tokens * (_macs(plan, layers) + round(share * _macs(plan, experts))) + n_wanted * _macs(plan, head),
    )


def _bytes(plan: Plan, tensors: Sequence[TensorSpec]) -> int:
    return sum(plan.region_bytes(tensor, node) for tensor in tensors for node in range(plan.n_nodes))


def _macs(plan: Plan, tensors: Sequence[TensorSpec]) -> int:
    n_macs = 0
    for tensor in tensors:
        if tensor.axes[0] == "one":  # a norm's gain
            continue
        for node in range(plan.n_nodes):
            rows, columns = plan.region(tensor, node)
            n_macs += (rows.stop - rows.start) * (columns.stop - columns.start)
    return n_macs
