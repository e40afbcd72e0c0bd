"""A shape's file of random weights: whole or not there, distinguished from others, refused without room on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_spec

from dllama_zmq.bench.random_file import cache_folder, kept_shape, shape_title
from dllama_zmq.errors import UsageError
from dllama_zmq.formats import open_m
from dllama_zmq.reporting import SilentReporter
from dllama_zmq.shapes import shape
from dllama_zmq.spec import FloatType, ModelSpec


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dllama-zmq" / "shapes"


class Heard(SilentReporter):
    """What is said when a file is made."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)


def times_made(spec: ModelSpec) -> int:
    heard = Heard()
    with open_m(kept_shape(spec, "tiny", heard)) as model:
        assert model.spec == spec
    return len(heard.said)


def test_a_file_is_made_once_in_folders_that_are_made_too_and_said(cache: Path) -> None:
    heard = Heard()
    path = kept_shape(tiny_spec(), "tiny", heard)
    assert path == cache / "tiny.m"
    assert [line.split(" of ")[0] for line in heard.said] == [f"making {path}"]
    assert times_made(tiny_spec()) == 0


def test_a_file_of_other_numbers_is_made_again() -> None:
    assert times_made(tiny_spec()) == 1
    assert times_made(tiny_spec(seq_len=32)) == 1


def test_a_damaged_file_is_made_again() -> None:
    path = kept_shape(tiny_spec(), "tiny", SilentReporter())
    path.write_bytes(path.read_bytes()[:-1])
    assert times_made(tiny_spec()) == 1


def test_a_file_that_the_disk_has_no_space_for_is_refused_before_it_is_begun(cache: Path) -> None:
    spec = shape("llama2-70b", FloatType.F32, {"layers": 4096})  # 14 TB
    with pytest.raises(UsageError, match=r"^huge takes 1\d{4}\.\d GB, and .* GB free; make room, "):
        kept_shape(spec, "huge", SilentReporter())
    assert list(cache.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("where the folder should be")
    with pytest.raises(UsageError, match="cannot be made: Not a directory"):
        kept_shape(tiny_spec(), "tiny", SilentReporter())


def test_titles_distinguish_models() -> None:
    assert shape_title("TinyLlama", FloatType.Q40, {}) == "tinyllama-q40"
    given = {"kv-heads": 2, "layers": 4}
    assert shape_title("tinyllama", FloatType.F16, given) == "tinyllama-f16-layers4-kvheads2"


def test_the_cache_is_in_the_home_folder_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/dllama-zmq/shapes")
