"""How far a root is that has no socket yet reaches the process that waits for it, in bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq
from tiny import write_tiny_model

from dllama_zmq.launch.starting import StartingFile, tell_from
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.telling import Unheard, Unit


class Heard(Unheard):
    def __init__(self) -> None:
        self.said: list[tuple[str, int, int, Unit]] = []

    def now(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B") -> None:
        self.said.append((text, done, total, unit))


def test_what_one_process_writes_another_tells_until_it_is_removed(tmp_path: Path) -> None:
    path, here, there = tmp_path / "starting.json", Heard(), Heard()
    tell_from(path, there)
    file = StartingFile(path, here)
    file.now("the root reads", 0, 68_000_000_000)
    tell_from(path, there)
    assert here.said == there.said == [("the root reads", 0, 68_000_000_000, "B")]
    file.remove()
    tell_from(path, there)
    assert len(there.said) == 1
    assert here.said[-1][0] == ""  # nothing goes on any more


def test_something_new_is_written_at_once_and_its_progress_now_and_then(tmp_path: Path) -> None:
    path, heard = tmp_path / "starting.json", Heard()
    file = StartingFile(path, Unheard())
    for done in range(1000):
        file.now("reading", done, 1000)
    file.now("packing")
    tell_from(path, heard)
    assert heard.said == [("packing", 0, 0, "B")]


@pytest.mark.parametrize("content", [b"", b"{", b'{"text": 1}', b'{"text": "a", "done": -1}', b"\xff"])
def test_a_file_that_says_nothing_is_not_told(tmp_path: Path, content: bytes) -> None:
    path, heard = tmp_path / "starting.json", Heard()
    path.write_bytes(content)
    tell_from(path, heard)
    assert heard.said == []


def test_a_place_that_cannot_be_written_does_not_keep_a_root_from_starting(tmp_path: Path) -> None:
    StartingFile(tmp_path / "nowhere" / "starting.json", Unheard()).now("reading")


def test_the_root_counts_the_bytes_of_its_own_weights(tmp_path: Path) -> None:
    counted: list[tuple[int, int]] = []
    with write_tiny_model(tmp_path / "tiny.m") as model:
        root = Root(zmq.Context.instance(), model, RootSettings(), None, lambda *amount: counted.append(amount))
        total = root.plan.weight_bytes(0)
    assert counted[0] == (0, total)
    assert [done for done, _ in counted] == sorted(done for done, _ in counted)
    assert 0.5 * total < counted[-1][0] < total
    assert {whole for _, whole in counted} == {total}
