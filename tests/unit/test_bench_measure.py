"""What a case makes a root of one node do: the cache filled once, one warm-up, then the repetitions that count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from tiny import write_tiny_model

from dllama_zmq.bench.cases import ALONE_STEPS, Case
from dllama_zmq.bench.machine import MemoryReader
from dllama_zmq.bench.measure import Bench
from dllama_zmq.reporting import SilentReporter
from dllama_zmq.root.root import Root, RootSettings


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    with write_tiny_model(tmp_path / "tiny.m") as model:
        yield Root(zmq.Context.instance(), model, RootSettings())  # one node opens no socket


@pytest.fixture(scope="module")
def reader() -> MemoryReader:
    """One for all tests: to fill its gigabyte takes longer than any of them, and it is only read."""
    return MemoryReader(1)


@pytest.fixture
def bench(root: Root, reader: MemoryReader) -> Bench:
    return Bench(root, SilentReporter(), "1 node", reader)


def test_a_case_runs_once_more_than_it_counts(root: Root, bench: Bench) -> None:
    measured = bench.run(Case("tg", 5), repetitions=3)
    assert len(measured.seconds) == 3
    assert root.ledger.tokens["prediction"] == (1 + 3) * 5
    assert 0 < measured.timing.wall_s <= sum(measured.seconds)
    assert 1e8 < measured.read_bytes_per_s < 1e13


def test_the_cache_is_filled_up_to_the_depth_once(root: Root, bench: Bench) -> None:
    bench.run(Case("tg", 2, depth=40), repetitions=1)
    assert root.ledger.tokens["prompt"] == 40
    bench.run(Case("tg", 2, depth=40), repetitions=1)
    assert root.ledger.tokens["prompt"] == 40


def test_positions_that_an_earlier_case_has_filled_are_not_filled_again(root: Root, bench: Bench) -> None:
    bench.run(Case("pp", 30), repetitions=1)
    bench.run(Case("tg", 1, depth=50), repetitions=1)
    assert root.ledger.tokens["prompt"] == (1 + 1) * 30 + 20


def test_sequences_together_decode_in_the_same_steps_each_from_its_depth_on(root: Root, bench: Bench) -> None:
    measured = bench.run(Case("tg", 5, depth=7, parallel=3), repetitions=2)
    assert measured.steps == [(3, 3)] * 5 * 2
    assert root.ledger.tokens["prompt"] == 3 * (7 + 1) * (1 + 3), "once each, then once a repetition: no page is full"
    assert root.ledger.tokens["prediction"] == 3 * 5 * 3
    assert measured.gaps is None


def test_a_prompt_comes_while_others_run_until_its_first_token(root: Root, bench: Bench) -> None:
    measured = bench.run(Case("pp", 40, parallel=2), repetitions=2)
    assert sum(rows - 2 for rows, _ in measured.steps) == 2 * 40
    given = [n_given for _, n_given in measured.steps]  # how many steps it takes is a matter of time
    assert (given.count(3), given.count(2), given[-1]) == (2, len(given) - 2, 3)
    assert measured.gaps is not None
    assert len(measured.gaps.beside) == len(measured.steps)
    assert len(measured.gaps.alone) == 2 * (ALONE_STEPS - 1)


def test_kernels_are_counted_over_the_repetitions_alone_and_only_where_asked_for(
    tmp_path: Path, bench: Bench, reader: MemoryReader
) -> None:
    assert bench.run(Case("tg", 2), repetitions=1).kernels is None
    with write_tiny_model(tmp_path / "profiled.m") as model:
        root = Root(zmq.Context.instance(), model, RootSettings(profile=True))
        measured = Bench(root, SilentReporter(), "1 node", reader).run(Case("tg", 4, depth=5), repetitions=3)
        n_layers = model.spec.n_layers
    assert measured.kernels is not None
    assert measured.kernels["attend"][1] == 3 * 4 * n_layers
    assert measured.kernels["rms_norm"][1] == 0  # each is part of a product
    assert 0 < sum(seconds for seconds, _ in measured.kernels.values()) <= sum(measured.seconds)
