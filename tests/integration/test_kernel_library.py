"""The machine code of the fast kernels from one process to the next: compiled once, kept, loaded, checked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, Cli

from dllama_zmq.bus.native.exchange import EXCHANGE_KERNELS
from dllama_zmq.kernels.simd.catalog import needed
from dllama_zmq.kernels.simd.library import Library, library
from dllama_zmq.kernels.simd.store import Keeper, cache_folder, find, only_builder
from dllama_zmq.sharding import kernel_needs

pytestmark = pytest.mark.timeout(300)
_WAIT_S = 200.0
"""For a command that compiles: 3 s, on a busy computer many times that."""

_SLOWEST = ["attend_f16", "store_kv_f16", "run", "run_sequences", "product_q40", "repack_q40", "quantize"]
"""Some that the small model needs. Others of their groups are compiled, but for products."""

START = """
import hashlib, json, logging, os, sys
import numpy as np
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
import dllama_zmq.kernels.simd.backend
from dllama_zmq.kernels.simd.arrays import address
from dllama_zmq.kernels.simd.job import Job
from dllama_zmq.kernels.simd.layout import ReadJob
from dllama_zmq.kernels.simd.library import library
values = np.random.default_rng(0).standard_normal((40, 64), dtype=np.float32)
result = np.zeros((40, 16), np.float32)
job = Job(*ReadJob(address(values), values.strides[0], address(result)))
library().load(["read_memory", "stop"])
library().entry("read_memory", 3)(job.address, 0, len(values))
print(json.dumps({"numba": "numba" in sys.modules, "result": hashlib.sha256(result.tobytes()).hexdigest()}))
"""
"""A process that needs two kernels, which cost little to compile: adds up with one and tells whether it has the
compiler in memory. It has one core, so that one process compiles for it: a second would cost more than these kernels.
"""


@dataclass(frozen=True)
class Start:
    """What became of a process of START."""

    numba: bool
    result: str
    log: list[str]

    @property
    def compiled(self) -> bool:
        return any(line.startswith("INFO compiled kernels=") for line in self.log)

    def warnings(self) -> list[str]:
        return [line for line in self.log if line.startswith("WARNING ")]


def begin(cache: Path, **env: str) -> subprocess.Popen[str]:
    spare = {"TMPDIR": str(cache.parent / "spare")}
    return subprocess.Popen(
        [sys.executable, "-c", START],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)} | spare | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Start:
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    facts: dict[str, Any] = json.loads(out)
    return Start(facts["numba"], facts["result"], err.splitlines())


def start(cache: Path, **env: str) -> Start:
    return finish(begin(cache, **env))


def kept(cache: Path) -> list[Path]:
    """The object files of a cache. AssertionError where there is more than those and the lock."""
    return objects_in(cache / "dllama-zmq" / "kernels")


def objects_in(folder: Path) -> list[Path]:
    found = sorted(folder.iterdir())
    assert [path.name for path in found if path.suffix != ".o"] == ["lock"]
    return [path for path in found if path.suffix == ".o"]


def spare_of(cache: Path) -> Path:
    """Where the kernels of a START over `cache` are when that cannot be used."""
    return cache.parent / "spare" / f"dllama-zmq-kernels-{os.getuid()}"


@dataclass(frozen=True)
class Pair:
    """Two processes that began together over an empty cache."""

    cache: Path
    starts: list[Start]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    cache = tmp_path_factory.mktemp("pair") / "cache"
    processes = [begin(cache), begin(cache)]
    return Pair(cache, [finish(process) for process in processes])


@pytest.fixture
def cache(pair: Pair, tmp_path: Path) -> Path:
    """A copy of a cache that has the kernels for this CPU."""
    shutil.copytree(pair.cache, tmp_path / "cache")
    return tmp_path / "cache"


def test_one_of_two_processes_at_once_compiles_and_both_have_the_kernels(pair):
    assert sorted(one.compiled for one in pair.starts) == [False, True]
    assert pair.starts[0].result == pair.starts[1].result
    assert len(kept(pair.cache)) == 2
    assert not spare_of(pair.cache).exists()
    assert not any(one.warnings() for one in pair.starts)


def test_who_finds_all_kernels_waits_for_nobody_who_compiles():
    library().load(["add_up"])
    with only_builder(lambda: None):
        # twice, as two lists of kernels may have one in common
        Library().load(["add_up", "add_up"], on_progress=lambda now: pytest.fail("it waits"))


def test_the_compiler_is_in_no_process_that_computes(pair):
    assert not any(one.numba for one in pair.starts)


def test_who_compiles_says_so_and_how_far_it_is_and_how_long_it_took(pair):
    log = next(one.log for one in pair.starts if one.compiled)
    assert [line for line in log if line.startswith("INFO compiling kernels for ")], log
    assert [line for line in log if line.startswith("INFO compiled kernels=") and " seconds=" in line], log


def test_a_later_start_loads_what_is_kept_in_silence(pair, cache):
    before = {path: path.stat().st_mtime_ns for path in kept(cache)}
    again = start(cache)
    assert again.log == []
    assert again.result == pair.starts[0].result
    assert {path: path.stat().st_mtime_ns for path in kept(cache)} == before


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_one_byte_changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.few(1)
@pytest.mark.parametrize("damage", [truncated, with_one_byte_changed])
def test_a_damaged_file_alone_is_compiled_again_with_a_warning_and_replaced(pair, cache, damage):
    before = {path: path.stat().st_mtime_ns for path in kept(cache)}
    path = next(path for path in before if path.name.endswith("-read_memory.o"))
    damage(path)
    damaged = path.read_bytes()
    first = start(cache)
    assert first.compiled
    assert first.result == pair.starts[0].result
    assert first.warnings()
    assert all(str(path) in line and "damaged" in line for line in first.warnings())
    assert path.read_bytes() != damaged
    assert [other for other in kept(cache) if before.get(other) != other.stat().st_mtime_ns] == [path]
    second = start(cache)
    assert second.log == []


def without_room(cache: Path) -> str:
    """A cache where nothing can be made; what the warning says of it."""
    shutil.rmtree(cache)
    cache.write_text("no folder")
    return "Not a directory"


def open_to_all(cache: Path) -> str:
    (cache / "dllama-zmq" / "kernels").chmod(0o777)
    return "other users can write there, mode 777"


def a_link_to_what_is_open_to_all(cache: Path) -> str:
    folder, other = cache / "dllama-zmq" / "kernels", cache / "other"
    folder.rename(other)
    other.chmod(0o770)
    folder.symlink_to(other)
    return "other users can write there, mode 770"


@pytest.mark.few(1)
@pytest.mark.parametrize("spoil", [without_room, open_to_all, a_link_to_what_is_open_to_all])
def test_where_the_cache_cannot_be_used_one_start_compiles_and_says_where_the_kernels_are_now(pair, cache, spoil):
    reason = spoil(cache)
    first = start(cache)
    assert first.compiled
    assert first.result == pair.starts[0].result
    (warning,) = first.warnings()
    assert f"{cache}/dllama-zmq/kernels" in warning
    assert reason in warning
    assert f"they are in {spare_of(cache)} until" in warning
    assert warning.endswith("or set XDG_CACHE_HOME to another")
    assert spare_of(cache).stat().st_mode & 0o777 == 0o700
    assert len(objects_in(spare_of(cache))) == len(kept(pair.cache))
    second = start(cache)
    assert second.log == []
    assert second.result == pair.starts[0].result


def test_where_nothing_can_be_kept_anywhere_a_start_compiles_and_says_so(pair, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for _ in range(2):
        alone = start(tmp_path / "file", TMPDIR=str(tmp_path / "file"))
        assert alone.compiled
        assert alone.result == pair.starts[0].result
        (warning,) = alone.warnings()
        assert "every start will compile them" in warning
        assert str(tmp_path / "file" / "dllama-zmq" / "kernels") in warning


def test_each_cpu_has_files_of_its_own_beside_the_others(pair, cache):
    own = set(kept(cache))
    other = start(cache, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert other.compiled
    assert not other.warnings()
    assert len(kept(cache)) == 2 * len(own)
    assert own < set(kept(cache))
    assert not start(cache, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="").compiled
    assert not start(cache).compiled


@contextmanager
def on_one_core() -> Iterator[None]:
    """Processes that this thread starts have one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[os.getpid() % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def test_a_first_answer_compiles_what_its_model_needs_and_nothing_else(cli: Cli, tmp_path: Path, monkeypatch):
    """On one node; then what two nodes need beyond that. The slowest kernels are in the cache already.

    One process compiles the others, on one core, so that it takes long enough to be told: 0.4 s at a terminal.
    """
    cache = tmp_path / "cache"
    library().load(_SLOWEST)
    slowest = find(_SLOWEST)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for name, code in slowest.items():
        Keeper().keep(name, code, pytest.fail)
    for n_nodes in (1, 2):
        cli.write(n_nodes)
        with on_one_core():
            environment = {"XDG_CACHE_HOME": str(cache), "TMPDIR": str(tmp_path), "TTY_COMPATIBLE": "1"}
            answer = cli.run("generate", "-n", "4", "Once", wait_s=_WAIT_S, **environment)
        assert answer.code == 0, answer.said
        if n_nodes == 1:  # the line shows no time for what two nodes need beyond that
            assert "compiling kernels for this CPU, once" in answer.err, answer.said
        names = sorted(path.stem.partition("-")[2] for path in kept(cache))
        assert names == sorted(needed(kernel_needs(SMALL, n_nodes, "f16", EXCHANGE_KERNELS))), f"{n_nodes} nodes"
        logs = [path.read_text() for path in cli.log_folder.glob("*.log")]
        assert len(logs) == n_nodes
        assert not any("compil" in log for log in logs), "a node compiled what was not ready when it was started"


def test_a_cluster_whose_cache_cannot_be_used_compiles_once_and_says_it_once(cli: Cli, tmp_path: Path):
    """All but one of its kernels are in the spare folder, so that only this one is compiled."""
    cli.write(2)
    (tmp_path / "file").write_text("no folder")
    names = needed(kernel_needs(SMALL, 2, "f16", EXCHANGE_KERNELS))
    library().load(names)  # compiled by now, in the cache of all tests
    spare = tmp_path / f"dllama-zmq-kernels-{os.getuid()}"
    spare.mkdir(mode=0o700)
    for path in cache_folder().glob("*.o"):
        if path.stem.partition("-")[2] in names and not path.name.endswith("-spin.o"):
            shutil.copy(path, spare)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    first = cli.run("generate", "-n", "4", "Once", wait_s=_WAIT_S, **environment)
    assert first.code == 0, first.said
    assert len(list(spare.glob("*-spin.o"))) == 1
    said = [line for line in first.err.splitlines() if "kernels cannot be kept in" in line]
    assert [line.startswith(f"kernels cannot be kept in {tmp_path}/file/dllama-zmq/kernels") for line in said] == [True]
    logs = "".join(path.read_text() for path in cli.log_folder.glob("*.log"))
    assert "compil" not in logs
    assert "cannot be kept" not in logs
    second = cli.run("generate", "-n", "4", "Once", wait_s=_WAIT_S, **environment)
    assert "kernels" not in second.err, second.said
