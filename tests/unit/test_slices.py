"""The hashes of slices are made once for a model, kept for the next start, and made anew where they do not hold."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.errors import FormatError
from dllama_zmq.formats import ModelFile, open_m
from dllama_zmq.root.slices import Slices
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import FloatType

SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, n_kv_heads=2, weight_type=FloatType.Q40)


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def hashes(model: ModelFile, folder: Path | None, n_nodes: int = 4) -> list[list[str]]:
    """Those of all workers, once they are known, and kept."""
    plan = Plan.make(model.spec, n_nodes)
    slices = Slices(model, plan, folder)
    until(lambda: len(slices.known(n_nodes - 1)) == len(plan.shard_tensors()))
    slices.close()
    return [list(slices.known(node)) for node in range(1, n_nodes)]


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return write_tiny_model(tmp_path / "tiny.m", SPEC)


def test_they_are_of_the_bytes_of_each_nodes_region_in_file_order(model: ModelFile) -> None:
    plan = Plan.make(SPEC, 4)
    expected = [
        [
            hashlib.sha256(model.read(t.name, *plan.region(t, node)).contiguous().data.tobytes()).hexdigest()
            for t in plan.shard_tensors()
        ]
        for node in range(1, 4)
    ]
    assert hashes(model, None) == expected


def test_at_the_next_start_the_model_is_not_read_for_them(model: ModelFile, tmp_path: Path) -> None:
    first = hashes(model, tmp_path / "hashes")
    again = open_m(model.path)
    again.close()  # reading raises now
    assert hashes(again, tmp_path / "hashes") == first


def test_of_a_model_that_was_changed_they_are_made_anew(model: ModelFile, tmp_path: Path) -> None:
    first = hashes(model, tmp_path / "hashes")
    status = model.path.stat()
    data = bytearray(model.path.read_bytes())
    data[-1] ^= 1
    model.path.write_bytes(data)
    os.utime(model.path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync -t would leave it
    changed = hashes(open_m(model.path), tmp_path / "hashes")
    assert changed == hashes(open_m(model.path), None)
    assert changed != first


def test_other_numbers_of_nodes_have_their_own(model: ModelFile, tmp_path: Path) -> None:
    hashes(model, tmp_path / "hashes")
    assert hashes(model, tmp_path / "hashes", 2) == hashes(model, None, 2)


@pytest.mark.parametrize("bad", [b"", b"{", b"[[],[]]", b'[["../x"]]', b"\xff" * 100])
def test_a_file_of_hashes_that_is_none_is_replaced(model: ModelFile, tmp_path: Path, bad: bytes) -> None:
    first = hashes(model, tmp_path / "hashes")
    (file,) = (tmp_path / "hashes").iterdir()
    file.write_bytes(bad)
    assert hashes(model, tmp_path / "hashes") == first
    assert file.read_bytes() != bad


def test_those_that_a_worker_found_wrong_are_made_anew(model: ModelFile, tmp_path: Path) -> None:
    right = hashes(model, tmp_path / "hashes")
    (file,) = (tmp_path / "hashes").iterdir()
    file.write_bytes(file.read_bytes().replace(right[0][0].encode(), b"0" * 64))
    plan = Plan.make(SPEC, 4)
    slices = Slices(model, plan, tmp_path / "hashes")
    assert slices.known(1)[0] == "0" * 64
    slices.distrust()
    until(lambda: len(slices.known(3)) == len(plan.shard_tensors()))
    slices.close()
    assert [list(slices.known(node)) for node in range(1, 4)] == right
    assert b"0" * 64 not in file.read_bytes()


def test_a_folder_that_cannot_be_written_costs_only_the_next_start(model: ModelFile, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    plan = Plan.make(SPEC, 2)
    slices = Slices(model, plan, tmp_path / "file" / "hashes")
    until(lambda: len(slices.known(1)) == len(plan.shard_tensors()))
    slices.close()


def test_what_reading_the_model_raises_is_raised_to_who_asks(tmp_path: Path) -> None:
    spec = tiny_spec(dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.F32)
    write_tiny_model(tmp_path / "bad.m", spec).close()
    data = bytearray((tmp_path / "bad.m").read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    (tmp_path / "bad.m").write_bytes(data)
    with open_m(tmp_path / "bad.m") as model:
        slices = Slices(model, Plan.make(spec, 2))
        with pytest.raises(FormatError, match="infinite or NaN"):
            until(lambda: slices.known(1) is None)
        slices.close()
