"""Tiles that were kept are used as if they had been made now, in place of weights that are not even read."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contract.back_ends import activations, weights

from dllama_zmq.kept_files import KeptFiles
from dllama_zmq.kernels import KeptTiles, Kernels, choose_kernels, tiles
from dllama_zmq.kernels.simd import linear
from dllama_zmq.quants import U8, BlockMatrix, Later
from dllama_zmq.spec import FloatType

COLUMNS, ROWS = 512, 80


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles are kept too, by a node that has been idle for no time."""
    monkeypatch.setattr(linear, "_MIN_KEPT_BYTES", 0)
    monkeypatch.setattr(tiles, "_IDLE_S", 0)


def a_start(folder: Path) -> tuple[Kernels, KeptTiles]:
    kept = KeptTiles(KeptFiles(folder))
    return choose_kernels("simd", 1, kept=kept), kept


def written(kept: KeptTiles) -> None:
    """Let the node be idle until all its tiles are written."""
    kept.idle()
    kept._thread.join(20)
    assert not kept._thread.is_alive()
    kept.close()


def named(kind: FloatType, seed: int = 0, source: str = "", columns: int = COLUMNS) -> BlockMatrix:
    return replace(weights(ROWS, columns, kind, seed), source=source or f"matrix {seed}")


def unread(matrix: BlockMatrix) -> BlockMatrix:
    """The same matrix, whose bytes cannot be read any more."""

    def read() -> U8:
        raise AssertionError("it is read although its tiles are kept")

    return replace(matrix, content=Later(matrix.data.shape, read))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("kind", list(FloatType))
def test_a_product_of_kept_tiles_has_the_same_bits_and_reads_no_weights(
    kind: FloatType, n_tokens: int, tmp_path: Path
) -> None:
    x, matrices = activations(n_tokens, COLUMNS), [named(kind, seed) for seed in range(3)]
    kernels, kept = a_start(tmp_path)
    first = kernels.linear(*matrices)(x)
    first_gated = kernels.gated(*matrices[:2])(x)
    written(kept)
    again, _ = a_start(tmp_path)
    for one, other in zip(first, again.linear(*map(unread, matrices))(x), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first_gated, again.gated(*map(unread, matrices[:2]))(x))
    assert len(files(tmp_path)) == 2


def test_a_mixture_of_experts_is_kept_matrix_by_matrix(tmp_path: Path) -> None:
    def experts(*, read: bool) -> list[tuple[BlockMatrix, BlockMatrix, BlockMatrix]]:
        made = []
        for i in range(3):
            gate, up, down = (weights(*shape, FloatType.Q40, i) for shape in ((96, 256), (96, 256), (256, 96)))
            three = [replace(m, source=f"{i} {name}") for m, name in ((gate, "gate"), (up, "up"), (down, "down"))]
            made.append(tuple(three if read else map(unread, three)))
        return made  # type: ignore[return-value]

    x, chosen, share = activations(2, 256), np.array([[0, 2], [1, 2]]), np.full((2, 2), 0.5, np.float32)
    kernels, kept = a_start(tmp_path)
    first = kernels.experts(experts(read=True))(x, chosen, share)
    written(kept)
    assert len(files(tmp_path)) == 6
    again, _ = a_start(tmp_path)
    np.testing.assert_array_equal(first, again.experts(experts(read=False))(x, chosen, share))


@pytest.mark.parametrize("other", ["source", "type", "rows", "first column", "gated", "order", "layout"])
def test_tiles_of_anything_else_are_not_taken(other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, second = named(FloatType.Q4_K), named(FloatType.Q4_K, 1)
    kernels, kept = a_start(tmp_path)
    kernels.linear(matrix, second)
    written(kept)
    again, _ = a_start(tmp_path)
    asked = {
        "source": (matrix, replace(second, source="another")),
        "type": (named(FloatType.Q5_K), named(FloatType.Q5_K, 1)),
        "rows": (replace(matrix.cut(slice(0, 79), slice(None)), source=matrix.source), second),
        "first column": tuple(replace(m, before=32, behind=m.behind - 32) for m in (matrix, second)),
        "order": (second, matrix),
    }.get(other, (matrix, second))
    if other == "layout":
        monkeypatch.setattr(linear, "layout_hash", lambda: "of another version")
    product = again.gated if other == "gated" else again.linear
    with pytest.raises(AssertionError, match="it is read"):
        product(*map(unread, asked))


def test_weights_of_which_nothing_is_known_are_not_kept(tmp_path: Path) -> None:
    kernels, kept = a_start(tmp_path)
    kernels.linear(named(FloatType.Q40), weights(ROWS, COLUMNS, FloatType.Q40, 1))
    kept.idle()
    assert kept._thread.ident is None


def test_small_tiles_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    kernels, kept = a_start(tmp_path)
    kernels.linear(named(FloatType.F32, columns=256))
    assert not kept._unwritten
    kernels.linear(*(named(FloatType.F32, seed) for seed in range(4)))
    assert len(kept._unwritten) == 1


def test_without_a_folder_nothing_is_kept_or_looked_for() -> None:
    kept = KeptTiles()
    choose_kernels("simd", 1, kept=kept).linear(named(FloatType.Q40))
    kept.idle()
    assert kept._thread.ident is None
    kept.close()


def test_nothing_is_written_while_the_node_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_IDLE_S", 3600)
    kernels, kept = a_start(tmp_path)
    kernels.linear(named(FloatType.Q40))
    assert kept._thread.ident is None
    kept.idle()  # for less than an hour
    kept.busy()
    begun = time.monotonic()
    kept.close()
    assert time.monotonic() - begun < 2
    assert not files(tmp_path)


def test_a_node_that_ends_while_it_writes_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_PIECE_BYTES", 100)
    kernels, kept = a_start(tmp_path)
    kernels.linear(named(FloatType.Q40))
    looks = iter([True, True, True])  # whether to write: the tiles, two pieces; then it is over
    monkeypatch.setattr(kept, "_may_write", lambda: next(looks, False))
    written(kept)
    assert not files(tmp_path)


def test_what_a_power_cut_left_of_a_file_is_written_anew(tmp_path: Path) -> None:
    kernels, kept = a_start(tmp_path / "whole")
    kernels.linear(named(FloatType.Q40))
    written(kept)
    ((name, content),) = files(tmp_path / "whole").items()
    (tmp_path / "cut").mkdir(mode=0o700)
    (tmp_path / "cut" / f"{name}.part").write_bytes(bytes(len(content) // 2))
    kernels, kept = a_start(tmp_path / "cut")
    kernels.linear(named(FloatType.Q40))
    written(kept)
    assert files(tmp_path / "cut") == {name: content}


def test_each_piece_is_on_the_disk_before_the_next_and_the_name_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_PIECE_BYTES", 10_000)
    synced: list[tuple[str, int]] = []

    def to_disk(descriptor: int) -> None:
        synced.extend((path.suffix, os.fstat(descriptor).st_size) for path in tmp_path.iterdir())

    monkeypatch.setattr(os, "fdatasync", to_disk)
    kernels, kept = a_start(tmp_path)
    kernels.linear(named(FloatType.Q40))
    written(kept)
    ((_, content),) = files(tmp_path).items()
    assert len(content) > 20_000
    assert synced == [(".part", min(end, len(content))) for end in range(10_000, len(content) + 10_000, 10_000)]


def test_kept_tiles_of_another_size_are_made_again(tmp_path: Path) -> None:
    x = activations(1, COLUMNS)
    kernels, kept = a_start(tmp_path)
    first = kernels.linear(named(FloatType.Q40))(x)
    written(kept)
    ((name, content),) = files(tmp_path).items()
    (tmp_path / name).write_bytes(content[:-1])
    kernels, kept = a_start(tmp_path)
    np.testing.assert_array_equal(kernels.linear(named(FloatType.Q40))(x), first)
    written(kept)
    assert files(tmp_path) == {name: content}
