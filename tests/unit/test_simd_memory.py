"""Where weights lie: one after another on whole huge pages, and gone when nobody holds them."""

from __future__ import annotations

import mmap
import weakref
from itertools import pairwise
from typing import Any

from dllama_zmq.kernels.simd.memory import HugePages
from dllama_zmq.quants import U8

HUGE = 2 << 20


def test_matrices_lie_one_after_another_on_the_same_huge_pages() -> None:
    memory = HugePages()
    sizes = [2_359_296, 100, 6_488_064, 2_949_120]
    at = [memory.allocate(size).ctypes.data for size in sizes]
    assert at[0] % HUGE == 0
    assert [b - a for a, b in pairwise(at)] == [2_359_296, 128, 6_488_064]


def test_pieces_are_zero_and_their_own() -> None:
    memory = HugePages()
    pieces = [memory.allocate(size) for size in (1000, 140 << 20, 3000, 200 << 20, 1)]
    assert [len(piece) for piece in pieces] == [1000, 140 << 20, 3000, 200 << 20, 1]
    assert not any(piece[:1000].any() or piece[-1000:].any() for piece in pieces)
    for i, piece in enumerate(pieces, start=1):
        piece[:1000], piece[-1000:] = i, i
    assert [{*piece[:1000].tolist(), *piece[-1000:].tolist()} for piece in pieces] == [{i} for i in range(1, 6)]
    assert all(piece.ctypes.data % 64 == 0 for piece in pieces)


def test_a_large_matrix_has_huge_pages_of_its_own() -> None:
    memory = HugePages()
    memory.allocate(5)
    assert memory.allocate(300 << 20).ctypes.data % HUGE == 0


def test_a_region_is_given_back_with_its_last_piece() -> None:
    memory = HugePages()
    first, second = memory.allocate(160 << 20), memory.allocate(160 << 20)
    region = weakref.ref(_owner(first))
    kept = first[:10]
    del first
    assert region() is not None
    del kept
    assert _owner(second) is not region()
    memory.allocate(300 << 20)  # what was left of the second region is let go of too
    assert region() is None
    assert not second[:1000].any()


def _owner(piece: U8) -> mmap.mmap:
    """The mapping that a piece is a part of."""
    base: Any = piece
    while not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else base.base
    return base
