"""The back end `simd`: NumPy arrays in and out, machine code from `library.py` in between. Knows no numba.

Results live in arrays that are used again as soon as nobody holds them: nothing is allocated from token to token.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dllama_zmq.kernels.grouped import GroupedExperts
from dllama_zmq.kernels.interface import CacheSpec, Experts, Linear, Norm
from dllama_zmq.kernels.linked import Linked
from dllama_zmq.kernels.reference import Reference, gate_times
from dllama_zmq.kernels.simd.arrays import Arrays, address, float_bits, rows_of
from dllama_zmq.kernels.simd.cache import SimdCache
from dllama_zmq.kernels.simd.experts import Apart, SimdExperts
from dllama_zmq.kernels.simd.job import Job
from dllama_zmq.kernels.simd.layout import AS_F16, AS_F32, AS_Q80, GATED, GATED_GELU, MAX_SERIAL_RUNS, SumJob
from dllama_zmq.kernels.simd.library import library
from dllama_zmq.kernels.simd.linear import ALONE_TOKENS, Product
from dllama_zmq.kernels.simd.memory import HugePages, own_pages
from dllama_zmq.kernels.simd.pool import Pool
from dllama_zmq.quants import F32, U8, BlockMatrix
from dllama_zmq.spec import SYNC_FLOAT, Activation, Sync

_FORMS: dict[Sync, int] = {"f32": AS_F32, "f16": AS_F16, "q80": AS_Q80}
_GATED: dict[Activation, int] = {"silu": GATED, "gelu": GATED_GELU}
_ROOM_BYTES = 16 << 20
"""Of addresses: memory is taken for what is written."""


class Simd:
    """Kernels compiled for this CPU, over `threads` threads. `crowded`: there are fewer cores than threads at work."""

    name = "simd"

    def __init__(self, threads: int = 1, crowded: bool = False) -> None:
        self._library = library()
        self.pool = Pool(self._library, threads, crowded)
        self.memory = HugePages()
        self._arrays: dict[tuple[int, str], Arrays] = {}
        self._room = own_pages(_ROOM_BYTES)
        self.address_of = self._library.address
        self.entry = self._library.entry
        self.run_chains = self.entry("run_chains", 2)
        self.native = self
        self._norm, self._add = Job(*[0] * 6), Job(*SumJob())

    def linear(
        self, *matrices: BlockMatrix, segments: int = 1, norm: Norm | None = None, wire: Sync | None = None
    ) -> Linear:
        if wire is not None:
            return self._packed(matrices[0], segments, norm, wire)
        if len({matrix.float_type for matrix in matrices}) > 1:
            products = [Product(self, [matrix], segments, norm=norm) for matrix in matrices]
            return Linked(lambda x: [product(x) for product in products])
        return Product(self, matrices, segments, norm=norm)

    def _packed(self, matrix: BlockMatrix, segments: int, norm: Norm | None, wire: Sync) -> Linear:
        """A product that writes what crosses the bus: by itself, where that is whole runs of 32 values."""
        if wire != "f32" and matrix.rows % 32 == 0:
            return Product(self, [matrix], segments, _FORMS[wire], norm)
        product = Product(self, [matrix], segments, norm=norm)
        return Linked(lambda x: self.pack(product(x), wire))

    def gated(
        self, gate: BlockMatrix, up: BlockMatrix, activation: Activation = "silu", norm: Norm | None = None
    ) -> Linear:
        if gate.float_type is not up.float_type:
            gates, ups = self.linear(gate, norm=norm), self.linear(up, norm=norm)
            return Linked(lambda x: gate_times(gates(x), ups(x), activation))
        return Product(self, (gate, up), 1, _GATED[activation], norm)

    def experts(
        self, experts: Iterable[tuple[BlockMatrix, BlockMatrix, BlockMatrix]], segments: int = 1,
        activation: Activation = "silu",
    ) -> Experts:  # fmt: skip
        gated, downs = [], []
        for gate, up, down in experts:
            gated.append(self.gated(gate, up, activation))
            downs.append(Product(self, [down], 1))
        compiled = [product for product in gated if isinstance(product, Product)]
        alike = len({p.kind for p in compiled}) == 1 and len({p.kind for p in downs}) == 1
        if alike and len(compiled) == len(gated):
            return SimdExperts(self, compiled, downs, segments)
        return GroupedExperts(gated, [Apart(product, segments) for product in downs])

    def kv_cache(self, spec: CacheSpec) -> SimdCache:
        return SimdCache(self, spec)

    def rms_norm(self, x: F32, gain: F32, eps: float) -> F32:
        x, at, stride = rows_of(x)
        out: F32
        out, to = self.array(*x.shape)
        job = self._norm.fields
        job[0], job[1], job[2], job[3], job[4], job[5] = at, stride, to, address(gain), x.shape[1], float_bits(eps)
        self.over_rows("rms_norm", self._norm, len(x))
        return out

    def add_up(self, parts: Sequence[U8], sync: Sync, packed: bool) -> tuple[U8 | None, F32]:
        n_tokens, n_bytes = parts[0].shape
        width = SYNC_FLOAT[sync].values_in(n_bytes)
        out, to = self.array(n_tokens, width)
        wire, wire_at = self.array(n_tokens, n_bytes, np.uint8) if packed else (None, 0)
        if sync != "q80" and n_tokens * width % 32:
            wire, total = Reference().add_up(parts, sync, packed)  # rare and small
            return wire, total.copy()  # it may be the only part itself, which is not ours to give
        sources = (ctypes.c_int64 * len(parts))(*map(address, parts))
        self._add.fill(SumJob(ctypes.addressof(sources), len(parts), wire_at, to, _FORMS[sync]))
        self._spread("add_up", self._add, n_tokens * width // 32)
        return wire, out

    def pack(self, x: F32, sync: Sync) -> U8:
        if sync == "f32":
            return np.ascontiguousarray(x, np.float32).view(np.uint8)
        if x.size % 32:
            return Reference().pack(x, sync)
        x = np.ascontiguousarray(x, np.float32)
        n_bytes = SYNC_FLOAT[sync].row_bytes(x.shape[1])
        wire: U8
        wire, wire_at = self.array(len(x), n_bytes, np.uint8)
        self._add.fill(SumJob(wire=wire_at, out=address(x), form=_FORMS[sync]))
        self._spread("add_up", self._add, x.size // 32)
        return wire

    def sum_kernel(self, sync: Sync, parts: int, n_parts: int) -> tuple[int, Job]:
        return self.address_of("add_up"), Job(*SumJob(parts, n_parts, form=_FORMS[sync]))

    def parallel_for(self, kernel: str, job: Job, n_items: int, chunk: int = 1) -> None:
        self.pool.run(self.address_of(kernel), job.address, n_items, chunk)

    def arrays(self, width: int, dtype: Any = np.float32) -> Arrays:
        """The results of one width and type: all that have it share them."""
        key = (width, "" if dtype is np.float32 else "b")
        if key not in self._arrays:
            self._arrays[key] = Arrays(width, dtype)
        return self._arrays[key]

    def array(self, n_rows: int, width: int, dtype: Any = np.float32) -> tuple[Any, int]:
        """An array (n_rows, width) that nobody else holds, and its address."""
        return self.arrays(width, dtype).take(n_rows)

    def room(self, n_bytes: int) -> tuple[U8, int]:
        """Memory for what lies between the kernels of one call, and its address. Everybody's: nothing stays in it."""
        if n_bytes > len(self._room):
            self._room = own_pages(2 * n_bytes)
        return self._room, address(self._room)

    def over_rows(self, kernel: str, job: Job, n_rows: int) -> None:
        """A kernel whose items are tokens: by one thread while they are few."""
        if n_rows <= ALONE_TOKENS:
            self.pool.run_alone(self.address_of(kernel), job.address, n_rows)
        else:
            self.pool.run(self.address_of(kernel), job.address, n_rows, -(-n_rows // (4 * self.pool.threads)))

    def _spread(self, kernel: str, job: Job, n_runs: int) -> None:
        """A kernel whose items are runs of 32 values: by one thread while they are few."""
        self.parallel_for(kernel, job, n_runs, MAX_SERIAL_RUNS)
