"""Micro-batches: which rows they have, and in what order the layers go over them."""

from __future__ import annotations

import numpy as np
import pytest

from dllama_zmq.models import micro_batches
from dllama_zmq.models.comm import Layers, run_micro_batches
from dllama_zmq.quants import F32, U8
from dllama_zmq.shapes import shape
from dllama_zmq.spec import ModelSpec

DENSE = shape("tinyllama")
MIXTRAL = shape("mixtral-8x7b")  # 2 of 8 experts


@pytest.mark.parametrize(
    ("spec", "n_rows", "sizes"),
    [
        (DENSE, 1, [1]),
        (DENSE, 63, [63]),
        (DENSE, 64, [32, 32]),
        (DENSE, 79, [32, 47]),
        (DENSE, 80, [40, 40]),
        (DENSE, 128, [64, 64]),
        (MIXTRAL, 128, [128]),
        (MIXTRAL, 255, [255]),
        (MIXTRAL, 256, [128, 128]),
    ],
)
def test_a_long_step_is_two_micro_batches_of_enough_rows_for_each_weight(
    spec: ModelSpec, n_rows: int, sizes: list[int]
) -> None:
    batches = micro_batches(spec, n_rows)
    assert [batch.stop - batch.start for batch in batches] == sizes
    assert [*range(n_rows)] == [row for batch in batches for row in range(batch.start, batch.stop)]


class Wire:
    """Sums that take their time, and a record of who waits for what."""

    def __init__(self) -> None:
        self.record: list[str] = []
        self._travelling: list[F32 | U8] = []

    def all_reduce(self, partial: F32 | U8) -> F32:
        self.record.append(f"reduce {partial[0]}")
        return partial.astype(np.float32)

    def start(self, partial: F32 | U8) -> None:
        self.record.append(f"start {partial[0]}")
        self._travelling.append(partial)

    def finish(self) -> F32:
        partial = self._travelling.pop(0)
        self.record.append(f"finish {partial[0]}")
        return partial.astype(np.float32)


def layers(first: float, n_stages: int) -> Layers:
    total = np.full(1, first, np.float32)
    for _ in range(n_stages):
        total = total + (yield total)
    return total


def test_two_micro_batches_take_turns_and_one_of_each_is_on_its_way() -> None:
    wire = Wire()
    results = run_micro_batches([layers(1, 3), layers(100, 3)], wire)
    assert [float(result[0]) for result in results] == [8, 800]
    assert [line.replace(".0", "") for line in wire.record] == [
        "start 1",
        "start 100",
        "finish 1",
        "start 2",
        "finish 100",
        "start 200",
        "finish 2",
        "start 4",
        "finish 200",
        "start 400",
        "finish 4",
        "finish 400",
    ]


def test_one_micro_batch_waits_for_each_sum_at_once() -> None:
    wire = Wire()
    assert float(run_micro_batches([layers(1, 3)], wire)[0][0]) == 8
    assert [line.replace(".0", "") for line in wire.record] == ["reduce 1", "reduce 2", "reduce 4"]
