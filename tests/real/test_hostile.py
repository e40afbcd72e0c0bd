"""Published files that something has gone wrong with: `inspect`, `convert` and `up` end in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli, clean_cli

COMMANDS = ("inspect", "convert", "up")
CUTS_IN_HEAD, CUTS_IN_TENSORS, CHANGES = 60, 10, 60
_METADATA_BYTES, _DIRECTORY_BYTES = 1200, 12_000
"""Of the numbers at a file's begin, and of the list of tensors at the end of its head."""
KEPT_BYTES = 256 << 20
"""More than either file has that is not zeros."""


class Copy:
    """A copy of a published file; head_bytes: what comes before its tensors."""

    def __init__(self, path: Path, source: Path, head_bytes: int) -> None:
        self.path, self.head_bytes = path, head_bytes
        with source.open("rb") as whole, path.open("wb") as out:
            out.write(whole.read(KEPT_BYTES))
        self.n_bytes = source.stat().st_size
        os.truncate(path, self.n_bytes)


@pytest.fixture(params=[("gemma", 6_527_680), ("deepseek", 5_953_248)], ids=lambda param: param[0])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Copy]:
    path = tmp_path / "a.gguf"
    name, head_bytes = request.param
    yield Copy(path, request.getfixturevalue(name), head_bytes)
    path.unlink()  # pytest keeps the folders of several runs


@pytest.fixture
def cli(tmp_path: Path, copy: Copy) -> Iterator[Cli]:
    with clean_cli(tmp_path, copy.path) as cli:
        cli.write()
        yield cli


def refused(cli: Cli, command: str) -> bool:
    """Whether the command refuses the file, which it then does in one sentence that names it, and makes nothing."""
    words = {"inspect": ["inspect", str(cli.model)], "convert": ["convert", str(cli.model), "out.m"], "up": ["up"]}
    result = cli.run_here(*words[command])
    if result.code == 0:
        assert "Traceback" not in result.said, result.said
        return False
    sentence = result.error()
    assert str(cli.model) in sentence
    assert len(sentence) < 1000
    assert not list(cli.folder.glob("out*"))
    return True


def test_a_file_that_is_cut_anywhere_is_refused_in_one_sentence(cli: Cli, copy: Copy) -> None:
    draw = np.random.default_rng(5)
    cuts = {0, copy.head_bytes, copy.n_bytes - 1}
    cuts |= set(draw.integers(1, copy.head_bytes, CUTS_IN_HEAD).tolist())
    cuts |= set(draw.integers(copy.head_bytes, copy.n_bytes, CUTS_IN_TENSORS).tolist())
    for n_bytes in sorted(cuts, reverse=True):
        os.truncate(copy.path, n_bytes)
        for command in COMMANDS:
            assert refused(cli, command), (n_bytes, command)


def test_a_file_with_a_byte_of_its_head_changed_is_read_or_refused_in_one_sentence(cli: Cli, copy: Copy) -> None:
    draw = np.random.default_rng(6)
    places = [draw.integers(0, end, CHANGES) for end in (_METADATA_BYTES, copy.head_bytes)]
    places.append(draw.integers(copy.head_bytes - _DIRECTORY_BYTES, copy.head_bytes, CHANGES))
    n_refused = 0
    with copy.path.open("r+b", buffering=0) as file:
        for place in np.concatenate(places).tolist():
            file.seek(place)
            sound = file.read(1)
            file.seek(place)
            file.write(bytes([sound[0] ^ int(draw.integers(1, 256))]))
            if refused(cli, COMMANDS[0]):  # what it reads, the others would take a minute to read
                n_refused += 1
                assert all(refused(cli, command) for command in COMMANDS[1:]), place
            file.seek(place)
            file.write(sound)
    assert 20 < n_refused < 3 * CHANGES
