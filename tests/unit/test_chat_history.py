"""What was typed in earlier chats: bounded, the user's alone, and never a reason not to talk."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from dllama_zmq.cli.chat import terminal
from dllama_zmq.launch.paths import HOME_VARIABLE


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the history is."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home" / "chat.history"


def test_a_long_history_keeps_its_newest_entries_whole(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("".join(f"\n# 2026-11-29 06:00:00\n+message {i}\n" for i in range(40_000)))
    assert file.stat().st_size > 1 << 20
    newest, *others = terminal.open_history().load_history_strings()
    assert (newest, stat.S_IMODE(file.stat().st_mode)) == ("message 39999", 0o600)
    assert file.stat().st_size <= 1 << 19
    n_kept = len(others) + 1
    assert others[-1] == f"message {40_000 - n_kept}"  # no part of an entry is left at the beginning


def test_without_a_place_for_it_one_talks_all_the_same(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.parent.write_text("no folder")
    history = terminal.open_history()
    history.append_string("Hello")
    assert history.get_strings() == ["Hello"]
    assert "your input is not kept for the next chat: " in capsys.readouterr().err
