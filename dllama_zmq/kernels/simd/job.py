"""A kernel's arguments: int64 fields, whose layout is written once, as a NamedTuple. Knows no numba.

Numba code reads a field at its byte offset (`load_i64(job + AT.width)` with `AT = offsets(...)`); Python writes
it by its index (`job.fields[AT.width] = ...` with `AT = indices(...)`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import TypeVar

_Layout = TypeVar("_Layout")


class Job:
    """The arguments of one kernel. `address` is where `fields` are."""

    def __init__(self, *values: int) -> None:
        self.fields = (ctypes.c_int64 * max(1, len(values)))(*values)
        self.address = ctypes.addressof(self.fields)

    def fill(self, values: Iterable[int]) -> None:
        """Set all fields."""
        self.fields[:] = list(values)


def offsets(layout: Callable[..., _Layout], first: int = 0) -> _Layout:
    """Each field's bytes from the start of the job, in which `first` other fields come before."""
    return layout(*range(8 * first, 8 * (first + n_fields(layout)), 8))


def indices(layout: Callable[..., _Layout], first: int = 0) -> _Layout:
    """Each field's index in the job, in which `first` other fields come before."""
    return layout(*range(first, first + n_fields(layout)))


def n_fields(layout: object) -> int:
    """Fields of a layout."""
    names: tuple[str, ...] = getattr(layout, "_fields")  # noqa: B009 - of a NamedTuple
    return len(names)
