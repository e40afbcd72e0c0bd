"""Model and tokenizer files that something has gone wrong with: `inspect` and `load` run them, or say so in words."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mutants import make_sound

MUTANTS = Path(__file__).parents[1] / "mutants.py"
LONGEST_S = 30.0
"""Of one mutant, on a busy machine: a tokenizer's process that does not start is waited for as long."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutants")
    (folder / "sound").mkdir()
    make_sound(folder / "sound")
    return folder


def try_all(place: Path, first: int, last: int) -> list[dict[str, str]]:
    """What became of the mutants, after it has been seen that none did anything worse than end in an error of ours."""
    with (place / f"stderr {first}").open("w+") as words:
        process = subprocess.Popen(
            [sys.executable, str(MUTANTS), str(place), str(first), str(last)],
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
        )
        assert process.stdout is not None
        began: dict[str, str] = {}
        became = []
        watch = threading.Timer(LONGEST_S, process.kill)
        watch.start()
        try:
            for line in process.stdout:
                watch.cancel()
                watch = threading.Timer(LONGEST_S, process.kill)
                watch.start()
                said = json.loads(line)
                if "number" in said:
                    began = said
                else:
                    became.append(began | said)
            process.wait()
        finally:
            watch.cancel()
            process.kill()
            process.stdout.close()
            process.wait()
        words.seek(0)
        said_last = words.read()[-3000:]
    assert len(became) == last - first, f"{began}: killed by {-process.returncode}, or ended by\n{said_last}"
    assert "Traceback" not in said_last
    return became


def test_some_mutated_files_run_or_are_refused_in_words(place: Path) -> None:
    became = try_all(place, 0, 96)
    for name in ("inspect", "load"):
        assert 8 < sum(each[name] == "accepted" for each in became) < 88


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_a_thousand_mutated_files_run_or_are_refused_in_words(place: Path) -> None:
    for first in range(96, 1096, 100):
        became = try_all(place, first, first + 100)
        assert all(len(each["load"]) < 1000 for each in became)
