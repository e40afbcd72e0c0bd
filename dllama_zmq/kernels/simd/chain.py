"""Several jobs as one call into machine code: a call costs more than what many a kernel does. Knows no numba."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dllama_zmq.kernels.simd.layout import LINK_BYTES, LINKS

if TYPE_CHECKING:
    from dllama_zmq.kernels.simd.backend import Simd

_HEAD, _LINK = LINKS // 8, LINK_BYTES // 8
_ITEMS, _CHUNK = 2, 3


class Chain:
    """Kernels that run one after another, and their arguments, all in one piece of memory.

    jobs: each kernel's name and its arguments. Argument k of job i is `fields[place[i] + k]`. `run` runs
    them, and then those of another chain.
    """

    def __init__(self, kernels: Simd, *jobs: tuple[str, Sequence[int]]) -> None:
        self.place = [_HEAD + _LINK * len(jobs) + sum(len(args) for _, args in jobs[:i]) for i in range(len(jobs))]
        self.fields = (ctypes.c_int64 * (_HEAD + sum(_LINK + len(args) for _, args in jobs)))()
        self.address = ctypes.addressof(self.fields)
        self._run = kernels.run_chains
        self._pool = kernels.pool  # its memory must outlive the address of it
        self.fields[:_HEAD] = [kernels.pool.address, len(jobs)]
        for i, (place, (name, args)) in enumerate(zip(self.place, jobs, strict=True)):
            self.fields[_HEAD + _LINK * i : _HEAD + _LINK * i + 2] = [
                kernels.address_of(name),
                self.address + 8 * place,
            ]
            self.fields[place : place + len(args)] = list(args)

    def run(self, then: Chain | None = None) -> None:
        """Run the jobs, and then those of `then`: one call takes less than two, whose code has left the caches."""
        self._run(self.address, 0 if then is None else then.address)

    def job(self, i: int) -> ctypes.Array[ctypes.c_int64]:
        """The arguments of job i, from the first on."""
        return (ctypes.c_int64 * (len(self.fields) - self.place[i])).from_buffer(self.fields, 8 * self.place[i])

    def share(self, i: int, n_items: int, chunk: int) -> None:
        """Job i has so many items, a chunk of them at a time to a thread. One chunk is done by the caller's thread."""
        link = _HEAD + _LINK * i
        self.fields[link + _ITEMS], self.fields[link + _CHUNK] = n_items, max(1, chunk)
