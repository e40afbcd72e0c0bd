"""Several kernels as one call into machine code: the call costs more than many a kernel. Knows no numba."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from dllama_zmq.kernels.simd.job import indices, n_fields
from dllama_zmq.kernels.simd.layout import Call, SequenceHead
from dllama_zmq.kernels.simd.runtime import Runtime

_HEAD_FIELDS, _CALL_FIELDS = n_fields(SequenceHead), n_fields(Call)
_CALL = indices(Call)


class KernelSequence:
    """Kernels that run one after another, and their arguments, in one block of memory.

    jobs: each kernel's name and its arguments. Argument k of job i is `fields[job_start[i] + k]`.
    """

    def __init__(self, runtime: Runtime, *jobs: tuple[str, Sequence[int]]) -> None:
        first = _HEAD_FIELDS + _CALL_FIELDS * len(jobs)
        self.job_start = [first + sum(len(args) for _, args in jobs[:i]) for i in range(len(jobs))]
        self.fields = (ctypes.c_int64 * (first + sum(len(args) for _, args in jobs)))()
        self.address = ctypes.addressof(self.fields)
        self._run = runtime.run_sequences
        self._pool = runtime.pool  # its memory must outlive the address of it
        values: list[int] = [*SequenceHead(runtime.pool.address, len(jobs))]
        for start, (name, _) in zip(self.job_start, jobs, strict=True):
            values += Call(runtime.address_of(name), self.address + 8 * start)
        self.fields[:] = [*values, *(value for _, args in jobs for value in args)]

    def run(self, then: KernelSequence | None = None) -> None:
        """Run the jobs, and then those of `then`: one call takes less than two, whose code has left the caches."""
        self._run(self.address, 0 if then is None else then.address)

    def job(self, i: int) -> ctypes.Array[ctypes.c_int64]:
        """The arguments of job i, from the first on."""
        return (ctypes.c_int64 * (len(self.fields) - self.job_start[i])).from_buffer(self.fields, 8 * self.job_start[i])

    def set_items(self, i: int, n_items: int, chunk: int) -> None:
        """Job i has `n_items`; a thread takes `chunk` at a time. A single chunk is done by the caller's thread."""
        call = _HEAD_FIELDS + _CALL_FIELDS * i
        self.fields[call + _CALL.n_items], self.fields[call + _CALL.chunk] = n_items, max(1, chunk)
