"""The sums that a model needs from all nodes, overlapped with computing.

On Ethernet a sum of many rows can travel for as long as the products before it took. So the rows of a long step are
split into two micro-batches (the word is that of arXiv:1811.06965): the layers work on one while the sums of the other
travel. One node splits its steps too: every product then has the same shape, and so the same bits, on any number of
nodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Protocol

from dllama_zmq.quants import F32, U8
from dllama_zmq.spec import ModelSpec

MICRO_BATCH_ROWS = 32
"""Fewest rows of a micro-batch (per expert in a mixture of experts). Each micro-batch reads all weights: with fewer
rows, reading costs more than the overlap gains."""
_ROWS_AT_ONCE = 8
"""Rows that a product takes at once: the first micro-batch has a multiple of it."""

Layers = Generator[F32 | U8, F32, F32]
"""The layers over some rows: yields partial sums, is sent the sums over all nodes, returns the rows (T, D)."""


class Comm(Protocol):
    """Adds the partial sums of all nodes."""

    def all_reduce(self, partial: F32 | U8) -> F32:
        """The sum of every node's `partial` (T, D), the same bits on all nodes.

        U8: (T, bytes of D values) encoded for the bus, as products return them if `Reduction.wire` is set.
        """
        ...

    def start(self, partial: F32 | U8) -> None:
        """Begin an `all_reduce`. At most two may be open, begun in the same order on all nodes."""
        ...

    def finish(self) -> F32:
        """The result of the open `all_reduce` that was begun first."""
        ...


def micro_batches(spec: ModelSpec, n_rows: int) -> list[slice]:
    """The rows of each micro-batch of a step, the same on all nodes: PROTOCOL.md §1."""
    n_experts, n_active = (spec.n_experts, spec.n_active_experts) if spec.n_experts else (1, 1)
    if n_rows * n_active < 2 * MICRO_BATCH_ROWS * n_experts:
        return [slice(0, n_rows)]
    middle = n_rows // (2 * _ROWS_AT_ONCE) * _ROWS_AT_ONCE
    return [slice(0, middle), slice(middle, n_rows)]


def run_micro_batches(batches: Sequence[Layers], comm: Comm) -> list[F32]:
    """Run the layers over each micro-batch, alternating between them; returns the rows (T, D) of each."""
    if len(batches) == 1:
        return [_run_one(batches[0], comm)]
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


def _run_one(layers: Layers, comm: Comm) -> F32:
    partial = next(layers)
    while True:
        try:
            partial = layers.send(comm.all_reduce(partial))
        except StopIteration as end:
            rows: F32 = end.value
            return rows
