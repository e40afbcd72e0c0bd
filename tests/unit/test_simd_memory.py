"""Where weights lie: one after another on whole huge pages, and gone when nobody holds them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from dllama_zmq.kernels.simd.memory import HugePages

HUGE = 2 << 20


def _mapped_at(address: int) -> bool:
    spans = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ", Path("/proc/self/maps").read_text(), re.MULTILINE)
    return any(int(first, 16) <= address < int(last, 16) for first, last in spans)


def test_matrices_lie_one_after_another_on_the_same_huge_pages() -> None:
    memory = HugePages()
    sizes = [2_359_296, 100, 6_488_064, 2_949_120]
    at = [memory.take(size).ctypes.data for size in sizes]
    assert at[0] % HUGE == 0
    assert [b - a for a, b in pairwise(at)] == [2_359_296, 128, 6_488_064]


def test_pieces_are_zero_and_their_own() -> None:
    memory = HugePages()
    pieces = [memory.take(size) for size in (1000, 40 << 20, 3000, 31 << 20, 1)]
    assert [len(piece) for piece in pieces] == [1000, 40 << 20, 3000, 31 << 20, 1]
    assert not any(piece.any() for piece in pieces)
    for i, piece in enumerate(pieces, start=1):
        piece.fill(i)
    assert [(int(piece.min()), int(piece.max())) for piece in pieces] == [(i, i) for i in range(1, 6)]
    assert all(piece.ctypes.data % 64 == 0 for piece in pieces)


def test_a_large_matrix_has_huge_pages_of_its_own() -> None:
    memory = HugePages()
    memory.take(5)
    assert memory.take(100 << 20).ctypes.data % HUGE == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of what is mapped")
def test_a_region_is_given_back_with_its_last_piece() -> None:
    memory = HugePages()
    first, second = memory.take(20 << 20), memory.take(20 << 20)
    at = first.ctypes.data
    kept = first[:10]
    del first
    assert _mapped_at(at)
    del kept
    memory.take(40 << 20)  # the rest of the first region is dropped too
    assert not _mapped_at(at)
    assert not second.any()
