"""What a name of a model means, wherever it is typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dllama_zmq.errors import UsageError
from dllama_zmq.sources import absolute_model, model_at


def test_a_tilde_means_the_home_folder_for_a_model_of_any_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "story.m").touch()
    assert model_at("~/story.m") == tmp_path / "story.m"
    assert absolute_model("~/story.m") == str(tmp_path / "story.m")


@pytest.mark.parametrize("named", [model_at, absolute_model])
def test_the_home_folder_of_nobody_is_wrong_use(named: Callable[[str], object]) -> None:
    with pytest.raises(UsageError, match=r"~no-such-user/story\.m: no such home folder; write an absolute path"):
        named("~no-such-user/story.m")
