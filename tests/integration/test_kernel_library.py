"""The machine code of the fast kernels from one process to the next: compiled once, kept, loaded, checked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START = """
import hashlib, json, logging, sys
import numpy as np
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
from dllama_zmq.kernels.simd.backend import Simd
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType
values = np.random.default_rng(0).standard_normal((40, 64), dtype=np.float32)
product = Simd().linear(BlockMatrix.from_array(values, FloatType.Q80))(values)
print(json.dumps({"numba": "numba" in sys.modules, "product": hashlib.sha256(product.tobytes()).hexdigest()}))
"""
"""A process that needs the kernels: makes a product with them and tells whether it had to load the compiler."""


@dataclass(frozen=True)
class Start:
    """What became of a process of START."""

    compiled: bool
    product: str
    log: list[str]

    def warnings(self) -> list[str]:
        return [line for line in self.log if line.startswith("WARNING ")]


def begin(cache: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Start:
    try:
        out, err = process.communicate(timeout=280)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    facts: dict[str, Any] = json.loads(out)
    return Start(facts["numba"], facts["product"], err.splitlines())


def start(cache: Path, **env: str) -> Start:
    return finish(begin(cache, **env))


def kept(cache: Path) -> list[Path]:
    """The object files of a cache. AssertionError where there is more than those and the lock."""
    found = sorted((cache / "dllama-zmq" / "kernels").iterdir())
    assert [path.name for path in found if path.suffix != ".o"] == ["lock"]
    return [path for path in found if path.suffix == ".o"]


@dataclass(frozen=True)
class Pair:
    """Two processes that began together over an empty cache."""

    cache: Path
    starts: list[Start]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    cache = tmp_path_factory.mktemp("cache")
    processes = [begin(cache), begin(cache)]
    return Pair(cache, [finish(process) for process in processes])


@pytest.fixture
def cache(pair: Pair, tmp_path: Path) -> Path:
    """A copy of a cache that has the kernels for this CPU."""
    shutil.copytree(pair.cache, tmp_path / "cache")
    return tmp_path / "cache"


def test_of_two_processes_at_once_one_compiles_and_both_have_the_kernels(pair):
    assert sorted(one.compiled for one in pair.starts) == [False, True]
    assert pair.starts[0].product == pair.starts[1].product
    assert len(kept(pair.cache)) == 1
    assert not any(one.warnings() for one in pair.starts)


def test_who_compiles_says_so_and_how_long_it_took(pair):
    log = next(one.log for one in pair.starts if one.compiled)
    assert [line for line in log if line.startswith("INFO compiling kernels for ")], log
    assert [line for line in log if line.startswith("INFO compiled kernels seconds=")], log


def test_a_later_start_loads_what_is_kept_without_the_compiler_and_in_silence(pair, cache):
    before = {path: path.stat().st_mtime_ns for path in kept(cache)}
    again = start(cache)
    assert not again.compiled
    assert again.log == []
    assert again.product == pair.starts[0].product
    assert {path: path.stat().st_mtime_ns for path in kept(cache)} == before


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_one_byte_changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncated, with_one_byte_changed])
def test_a_damaged_file_is_compiled_again_with_a_warning_and_replaced(pair, cache, damage):
    (path,) = kept(cache)
    damage(path)
    damaged = path.read_bytes()
    first = start(cache)
    assert first.compiled
    assert first.product == pair.starts[0].product
    assert first.warnings()
    assert all(str(path) in line and "damaged" in line for line in first.warnings())
    assert kept(cache) == [path]
    assert path.read_bytes() != damaged
    second = start(cache)
    assert not second.compiled
    assert second.log == []


def test_where_nothing_can_be_kept_a_start_compiles_and_warns(pair, tmp_path):
    (tmp_path / "file").write_text("no folder")
    alone = start(tmp_path / "file")
    assert alone.compiled
    assert alone.product == pair.starts[0].product
    (warning,) = alone.warnings()
    assert "cannot be kept" in warning
    assert str(tmp_path / "file") in warning


def test_each_cpu_has_a_file_of_its_own_beside_the_others(pair, cache):
    own = kept(cache)
    other = start(cache, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert other.compiled
    assert not other.warnings()
    assert len(kept(cache)) == 2
    assert set(own) < set(kept(cache))
    assert not start(cache, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="").compiled
    assert not start(cache).compiled
