"""How far a root is that has no socket yet reaches the process that waits for it, in bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq
from tiny import write_tiny_model

from dllama_zmq.launch.paths import ClusterPaths
from dllama_zmq.launch.public_state import PublicState
from dllama_zmq.launch.registry import Record, without_file
from dllama_zmq.reporting import SilentReporter, Unit
from dllama_zmq.root.root import Root, RootSettings


class Heard(SilentReporter):
    def __init__(self) -> None:
        self.said: list[tuple[str, int, int, Unit]] = []

    def activity(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B") -> None:
        self.said.append((text, done, total, unit))


@pytest.fixture
def places(tmp_path: Path) -> ClusterPaths:
    return ClusterPaths(tmp_path, tmp_path)


def doing(places: ClusterPaths) -> tuple[str, int, int, Unit] | None:
    """What another process reads."""
    record = Record.read(places.started_file)
    return None if record is None else record.doing


def test_a_record_that_one_process_writes_another_reads(places: ClusterPaths) -> None:
    here = Heard()
    assert doing(places) is None
    PublicState(without_file("demo"), places, here).activity("the root reads", 0, 68_000_000_000)
    assert here.said == [("the root reads", 0, 68_000_000_000, "B")]
    assert doing(places) == here.said[0]


def test_something_new_is_written_at_once_and_its_progress_now_and_then(places: ClusterPaths) -> None:
    state, written = PublicState(without_file("demo"), places, SilentReporter()), set()
    for done in range(1000):
        state.activity("reading", done, 1000)
        written.add(places.started_file.stat().st_ino)
    assert len(written) < 500
    state.activity("repacking")
    assert doing(places) == ("repacking", 0, 0, "B")


@pytest.mark.parametrize("content", ["", "{", '{"text": 1}', '{"doing": ["a", "b"]}', "\xff"])
def test_a_file_that_says_nothing_is_not_read(places: ClusterPaths, content: str) -> None:
    places.started_file.write_text(content, "latin-1")
    assert doing(places) is None


def test_a_place_that_cannot_be_written_does_not_keep_a_root_from_starting(tmp_path: Path) -> None:
    nowhere = ClusterPaths(tmp_path / "nowhere", tmp_path / "nowhere")
    PublicState(without_file("demo"), nowhere, SilentReporter()).activity("reading")


def test_the_root_counts_the_bytes_of_its_own_weights(tmp_path: Path) -> None:
    counted: list[tuple[int, int]] = []
    with write_tiny_model(tmp_path / "tiny.m") as model:
        root = Root(zmq.Context.instance(), model, RootSettings(), None, lambda *amount: counted.append(amount))
        total = root.plan.weight_bytes(0)
    assert counted[0] == (0, total)
    assert [done for done, _ in counted] == sorted(done for done, _ in counted)
    assert 0.5 * total < counted[-1][0] < total
    assert {whole for _, whole in counted} == {total}
