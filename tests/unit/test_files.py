"""Files that take their name when they are whole."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dllama_zmq.formats.files import replace_file


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nobody could close the file
def test_ctrl_c_in_the_moment_when_the_file_is_made_leaves_nothing(tmp_path: Path) -> None:
    def press(frame: FrameType, event: str, done: Any) -> None:
        if event == "c_return" and done is open:
            sys.setprofile(None)
            assert list(tmp_path.iterdir())
            signal.default_int_handler(signal.SIGINT, frame)

    sys.setprofile(press)
    try:
        with pytest.raises(KeyboardInterrupt), replace_file(tmp_path / "out"):
            pytest.fail("the block began")
    finally:
        sys.setprofile(None)
    assert list(tmp_path.iterdir()) == []
