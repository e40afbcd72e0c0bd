"""What a model asks of the other nodes, and how it is kept busy meanwhile.

Between sending a partial sum and having the sum there is time: on Ethernet, with many tokens, it can be as much as
the products took. So the rows of a long step are two micro-batches (arXiv:1811.06965 has the word) that take turns:
while the sums of one travel, the layers go over the other. On one node too, so that every product has the same shape
on any number of nodes, and with it the same bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Protocol

from dllama_zmq.quants import F32, U8
from dllama_zmq.spec import ModelSpec

MICRO_BATCH_ROWS = 32
"""A micro-batch has so many rows at least, of experts so many each: it reads all weights, and below this that shows."""
_WHOLE_ROWS = 8
"""The first has a multiple of so many: what products take at once."""

Layers = Generator[F32 | U8, F32, F32]
"""The layers over some rows: yields partial sums, is sent their sums, returns the rows (T, D)."""


class Comm(Protocol):
    """Adds up what all nodes hold a part of."""

    def all_reduce(self, partial: F32 | U8) -> F32:
        """The sum of every node's `partial` (T, D), the same bits on all of them.

        U8: as it crosses the bus, (T, bytes of D values): what a product makes that is told `Sums.wire`.
        """
        ...

    def start(self, partial: F32 | U8) -> None:
        """Begin an `all_reduce`; at most two may have begun at a time, on all nodes in the same order."""
        ...

    def finish(self) -> F32:
        """The result of the one that began first."""
        ...


def micro_batches(spec: ModelSpec, n_rows: int) -> list[slice]:
    """The rows of each micro-batch of a step, the same on all nodes: PROTOCOL.md §1."""
    apart, at_once = (spec.n_experts, spec.n_active_experts) if spec.n_experts else (1, 1)
    if n_rows * at_once < 2 * MICRO_BATCH_ROWS * apart:
        return [slice(0, n_rows)]
    middle = n_rows // (2 * _WHOLE_ROWS) * _WHOLE_ROWS
    return [slice(0, middle), slice(middle, n_rows)]


def by_turns(batches: Sequence[Layers], comm: Comm) -> list[F32]:
    """What the layers return of each micro-batch."""
    if len(batches) == 1:
        return [_alone(batches[0], comm)]
    for layers in batches:
        comm.start(next(layers))
    results: list[F32] = []
    waiting = deque(batches)
    while waiting:
        layers = waiting.popleft()
        try:
            partial = layers.send(comm.finish())
        except StopIteration as end:
            results.append(end.value)
        else:
            comm.start(partial)
            waiting.append(layers)
    return results


def _alone(layers: Layers, comm: Comm) -> F32:
    partial = next(layers)
    while True:
        try:
            partial = layers.send(comm.all_reduce(partial))
        except StopIteration as end:
            rows: F32 = end.value
            return rows
