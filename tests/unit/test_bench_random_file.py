"""A shape's file of random weights: whole or not there, told from others, refused where there is no room for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_spec

from dllama_zmq.bench.random_file import cache_folder, is_file_of, shape_title, write_random
from dllama_zmq.errors import UsageError
from dllama_zmq.shapes import shape
from dllama_zmq.spec import FloatType
from dllama_zmq.telling import Unheard


def test_a_file_is_made_in_folders_that_are_made_too_and_told(tmp_path: Path) -> None:
    said: list[str] = []

    class Heard(Unheard):
        def line(self, text: str) -> None:
            said.append(text)

    path = tmp_path / "one" / "two" / "tiny.m"
    assert not is_file_of(tiny_spec(), path)
    write_random(path, tiny_spec(), Heard())
    assert is_file_of(tiny_spec(), path)
    assert [line.split(" of ")[0] for line in said] == [f"making {path}"]


def test_a_file_of_other_numbers_is_not_taken_for_it(tmp_path: Path) -> None:
    write_random(tmp_path / "tiny.m", tiny_spec(), Unheard())
    assert not is_file_of(tiny_spec(seq_len=32), tmp_path / "tiny.m")


def test_a_damaged_file_is_not_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "tiny.m"
    write_random(path, tiny_spec(), Unheard())
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_file_of(tiny_spec(), path)


def test_a_file_without_room_on_the_disk_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    spec = shape("llama2-70b", FloatType.F32, {"layers": 4096})  # 14 TB
    with pytest.raises(UsageError, match=r"^huge takes 1\d{4}\.\d GB, and .* GB free; make room, "):
        write_random(tmp_path / "huge.m", spec, Unheard())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where the folder should be")
    with pytest.raises(UsageError, match="cannot be made: Not a directory"):
        write_random(tmp_path / "file" / "shapes" / "tiny.m", tiny_spec(), Unheard())


def test_titles_tell_models_apart() -> None:
    assert shape_title("TinyLlama", FloatType.Q40, {}) == "tinyllama-q40"
    given = {"kv-heads": 2, "layers": 4}
    assert shape_title("tinyllama", FloatType.F16, given) == "tinyllama-f16-layers4-kvheads2"


def test_the_cache_is_in_the_home_folder_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/dllama-zmq/shapes")
