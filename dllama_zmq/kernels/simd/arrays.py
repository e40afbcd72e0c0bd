"""NumPy arrays for kernels: their addresses, and buffers for results that are reused. Knows no kernel."""

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
    """The getrefcount of an array that only the list of `Arrays` holds; it depends on the interpreter."""
    for array, _ in [(np.empty(0), 0)]:
        return sys.getrefcount(array)
    return 0


_FREE = _count_when_free()


def address(array: npt.NDArray[Any]) -> int:
    """Where an array's first value is."""
    if _DATA == 0:
        return array.ctypes.data
    return ctypes.c_int64.from_address(id(array) + _DATA).value


def _data_offset() -> int:
    """The offset in an array object of its data's address, in bytes; 0 if it cannot be found.

    `ctypes.data` takes 1 us, or 3 with cold caches; this takes a tenth. The object is NumPy's PyArrayObject, whose
    fields are part of its binary interface; the offset is searched for all the same.
    """
    if sys.implementation.name != "cpython":  # elsewhere id() is no address
        return 0
    arrays = [np.empty(size, np.float32)[size // 2 :] for size in (1, 100, 10000)]
    for offset in range(8, np.ndarray.__basicsize__, 8):
        if all(ctypes.c_int64.from_address(id(array) + offset).value == array.ctypes.data for array in arrays):
            return offset
    return 0


_DATA = _data_offset()


def rows_of(x: F32) -> tuple[F32, int, int]:
    """x with contiguous rows, the address of the first, and bytes from one to the next."""
    stride, step = x.strides
    if step != 4:
        x = np.ascontiguousarray(x, np.float32)
        stride = x.strides[0]
    return x, address(x), stride


def float_bits(value: float) -> int:
    """A float32's bits, for an integer field."""
    return int.from_bytes(struct.pack("<f", value), "little")
