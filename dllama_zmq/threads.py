"""What threads need of libraries that know nothing of them. Knows no part of the package."""

from __future__ import annotations

from typing import TypeVar

import msgspec

ONE_BLAS_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""The environment in which NumPy's BLAS makes no threads. They would spin, and a node has its own."""
T = TypeVar("T")


def converted_by_threads(kind: type[T]) -> type[T]:
    """A class decorator: msgspec learns now what `kind` consists of, while the module is imported.

    It learns that at the first conversion to a type, else. While one thread does, another that converts to the same
    type reads fields that are not there yet: the process ends by SIGSEGV (msgspec 0.22, `StructInfo_Convert`).
    """
    msgspec.msgpack.Decoder(kind)
    return kind
