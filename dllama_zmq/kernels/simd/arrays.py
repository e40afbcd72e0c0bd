"""Arrays between NumPy and kernels: where they are, and results whose memory is used again. Knows no kernel."""

from __future__ import annotations

import ctypes
import struct
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_zmq.quants import F32


class Arrays:
    """Arrays of one width and type, each used again as soon as nobody else holds it."""

    def __init__(self, width: int, dtype: Any) -> None:
        self._width, self._dtype = width, dtype
        self._kept: list[tuple[npt.NDArray[Any], int]] = []

    def take(self, n_rows: int) -> tuple[Any, int]:
        """An array (n_rows, width) that nobody else holds, and its address."""
        kept = self._kept
        for i, (array, at) in enumerate(kept):
            if sys.getrefcount(array) == _FREE and len(array) >= n_rows:
                if i:
                    kept[0], kept[i] = kept[i], kept[0]
                return array if len(array) == n_rows else array[:n_rows], at
        array = np.empty((n_rows, self._width), self._dtype)
        kept[:] = [(a, at) for a, at in kept if len(a) >= n_rows or sys.getrefcount(a) > _FREE][:8]
        kept.insert(0, (array, array.ctypes.data))
        return array, kept[0][1]


def _count_when_free() -> int:
    """What getrefcount says of an array that only a list like `Arrays` has holds: it depends on the interpreter."""
    for array, _ in [(np.empty(0), 0)]:
        return sys.getrefcount(array)
    return 0


_FREE = _count_when_free()


def address(array: npt.NDArray[Any]) -> int:
    """Where an array's first value is."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]  # three times as fast as what follows
    except (TypeError, ValueError, BufferError):  # read-only, or not in one piece
        return array.ctypes.data


def in_one_piece(x: F32) -> tuple[F32, int]:
    """x as rows that lie one after another, and their address: x itself where it lies so."""
    try:
        return x, ctypes.addressof(ctypes.c_char.from_buffer(x))  # type: ignore[arg-type]  # it fails where x does not
    except (TypeError, ValueError, BufferError):
        x = np.ascontiguousarray(x, np.float32)
        return x, x.ctypes.data


def float_bits(value: float) -> int:
    """A float32 as an integer field holds it."""
    return int.from_bytes(struct.pack("<f", value), "little")
