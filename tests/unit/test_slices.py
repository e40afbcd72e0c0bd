"""The hashes of slices are made once for a model, kept for the next start, and made anew where they do not hold."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import arrays_of, write_hf
from gguf_writer import write_llama
from msgspec.structs import replace
from tiny import tiny_spec, tiny_tensors, write_tiny_model

from dllama_zmq.errors import FormatError
from dllama_zmq.formats import ModelFile, open_m, open_model
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


@pytest.mark.parametrize("n_nodes", [2, 8])
def test_they_are_of_the_whole_block_for_columns_within_it(tmp_path: Path, n_nodes: int) -> None:
    spec = tiny_spec(dim=256, hidden_dim=768, n_heads=8, n_kv_heads=2, weight_type=FloatType.Q5_K)
    whole = dict(tiny_tensors(spec))
    with open_model(write_llama(tmp_path / "k.gguf", spec, whole.items())) as model:
        found, plan = hashes(model, None, n_nodes), Plan.make(model.spec, n_nodes)
    for node in range(1, n_nodes):
        for tensor, sha256 in zip(plan.shard_tensors(), found[node - 1], strict=True):
            rows, columns = plan.region(tensor, node)
            size = tensor.float_type.block_values
            blocks = whole[tensor.name].data.reshape(len(whole[tensor.name].data), -1, tensor.float_type.block_bytes)
            sent = blocks[rows, columns.start // size : (columns.stop - 1) // size + 1]
            assert sha256 == hashlib.sha256(sent.tobytes()).hexdigest(), tensor.name


def test_at_the_next_start_the_model_is_not_read_for_them(model: ModelFile, tmp_path: Path) -> None:
    first = hashes(model, tmp_path / "hashes")
    again = open_m(model.path)
    again.close()  # reading raises now
    assert hashes(again, tmp_path / "hashes") == first


def test_they_are_made_anew_when_the_model_was_changed(model: ModelFile, tmp_path: Path) -> None:
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
    assert len(list((tmp_path / "hashes").iterdir())) == 2


def test_weights_that_are_read_as_another_type_have_their_own(tmp_path: Path) -> None:
    with write_tiny_model(tmp_path / "tiny.m", replace(SPEC, weight_type=FloatType.F32)) as floats:
        write_hf(tmp_path / "hf", floats.spec, arrays_of(floats))
    made = []
    for weight_type in (FloatType.F32, FloatType.Q40):
        with open_model(tmp_path / "hf", weight_type) as model:
            made.append(hashes(model, tmp_path / "hashes"))
            assert made[-1] == hashes(model, None)
    assert made[0] != made[1]


def test_only_those_that_were_made_last_are_kept(model: ModelFile, tmp_path: Path) -> None:
    folder = tmp_path / "hashes"
    folder.mkdir()
    for age in range(70):
        (folder / f"{age:02}.json").write_bytes(b"[]")
        os.utime(folder / f"{age:02}.json", (1000 + age, 1000 + age))
    hashes(model, folder)
    left = sorted(path.name for path in folder.iterdir())
    assert [name for name in left if len(name) == 7] == [f"{age:02}.json" for age in range(7, 70)]
    assert len(left) == 64


def test_the_end_of_a_root_does_not_wait_until_a_large_model_is_hashed(model: ModelFile) -> None:
    n_read, reads, may_read = [], threading.Event(), threading.Event()

    class SlowDisk:
        """The model on a disk that gives its second piece when the test lets it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def read(self, *what: Any) -> Any:
            n_read.append(what)
            reads.set()
            assert may_read.wait(20)
            return model.read(*what)

    slices = Slices(SlowDisk(), Plan.make(SPEC, 2))  # type: ignore[arg-type]
    assert reads.wait(20)
    ending = threading.Thread(target=slices.close)
    ending.start()
    until(slices._closed.is_set)
    may_read.set()
    ending.join(20)
    assert not ending.is_alive()
    assert len(n_read) == 1


@pytest.mark.parametrize("bad", [b"", b"{", b"[[],[]]", b'[["../x"]]', b"\xff" * 100, "one that is no hash"])
def test_a_file_of_hashes_that_is_none_is_replaced(model: ModelFile, tmp_path: Path, bad: bytes | str) -> None:
    first = hashes(model, tmp_path / "hashes")
    (file,) = (tmp_path / "hashes").iterdir()
    whole = file.read_bytes()
    file.write_bytes(bad if isinstance(bad, bytes) else whole.replace(first[0][0].encode(), b"../x"))
    assert hashes(model, tmp_path / "hashes") == first
    assert file.read_bytes() == whole


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


def test_an_error_of_reading_the_model_is_raised_to_who_asks_for_hashes(tmp_path: Path) -> None:
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
