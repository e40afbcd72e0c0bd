"""The back end `simd`: NumPy arrays in and out, machine code in between. Knows no numba."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence

import numpy as np

from dllama_zmq.kernels.function_linear import FunctionLinear
from dllama_zmq.kernels.grouped import GroupedExperts
from dllama_zmq.kernels.interface import CacheSpec, Experts, Linear, Norm
from dllama_zmq.kernels.reference import Reference, gate_times
from dllama_zmq.kernels.simd.arrays import address, float_bits, rows_of
from dllama_zmq.kernels.simd.cache import SimdCache
from dllama_zmq.kernels.simd.experts import PerSegment, SimdExperts
from dllama_zmq.kernels.simd.job import Job
from dllama_zmq.kernels.simd.layout import GATED_GELU, GATED_SILU, MAX_SERIAL_RUNS, WIRE_TYPES, NormJob, SumJob
from dllama_zmq.kernels.simd.linear import Product
from dllama_zmq.kernels.simd.runtime import Runtime
from dllama_zmq.kernels.tiles import KeptTiles
from dllama_zmq.quants import F32, U8, BlockMatrix
from dllama_zmq.spec import SYNC_FLOAT, Activation, Sync

_GATED: dict[Activation, int] = {"silu": GATED_SILU, "gelu": GATED_GELU}


class Simd:
    """Kernels compiled for this CPU, over `threads` threads. oversubscribed: cores are fewer than threads at work."""

    name = "simd"

    def __init__(self, threads: int = 1, oversubscribed: bool = False, kept: KeptTiles | None = None) -> None:
        self.native = Runtime(threads, oversubscribed, kept or KeptTiles())
        self._norm, self._add = Job(*NormJob()), Job(*SumJob())

    def linear(
        self, *matrices: BlockMatrix, segments: int = 1, norm: Norm | None = None, wire: Sync | None = None
    ) -> Linear:
        if wire is not None:
            return self._encoded_product(matrices[0], segments, norm, wire)
        if len({(matrix.float_type, matrix.before) for matrix in matrices}) > 1:
            products = [Product(self.native, [matrix], segments, norm=norm) for matrix in matrices]
            return FunctionLinear(lambda x: [product(x) for product in products])
        return Product(self.native, matrices, segments, norm=norm)

    def _encoded_product(self, matrix: BlockMatrix, segments: int, norm: Norm | None, wire: Sync) -> Linear:
        """A product whose result is as `encode` makes it. Its kernel writes it so if rows are a multiple of 32."""
        if wire != "f32" and matrix.rows % 32 == 0:
            return Product(self.native, [matrix], segments, WIRE_TYPES[wire], norm)
        product = Product(self.native, [matrix], segments, norm=norm)
        return FunctionLinear(lambda x: self.encode(product(x), wire))

    def gated(
        self, gate: BlockMatrix, up: BlockMatrix, activation: Activation = "silu", norm: Norm | None = None
    ) -> Linear:
        if (gate.float_type, gate.before) != (up.float_type, up.before):
            gates, ups = self.linear(gate, norm=norm), self.linear(up, norm=norm)
            return FunctionLinear(lambda x: gate_times(gates(x), ups(x), activation))
        return Product(self.native, (gate, up), 1, _GATED[activation], norm)

    def experts(
        self,
        experts: Iterable[tuple[BlockMatrix, BlockMatrix, BlockMatrix]],
        segments: int = 1,
        activation: Activation = "silu",
    ) -> Experts:
        gated, downs = [], []
        for gate, up, down in experts:
            gated.append(self.gated(gate, up, activation))
            downs.append(Product(self.native, [down], 1))
        compiled = [product for product in gated if isinstance(product, Product)]
        alike = all(len({(p.kind, p.first_unit) for p in products}) == 1 for products in (compiled, downs))
        if alike and len(compiled) == len(gated):
            return SimdExperts(self.native, compiled, downs, segments)
        return GroupedExperts(gated, [PerSegment(product, segments) for product in downs])

    def kv_cache(self, spec: CacheSpec) -> SimdCache:
        return SimdCache(self.native, spec)

    def rms_norm(self, x: F32, gain: F32, eps: float) -> F32:
        x, at, stride = rows_of(x)
        out: F32
        out, to = self.native.array(*x.shape)
        self._norm.fill(NormJob(at, stride, to, address(gain), x.shape[1], float_bits(eps)))
        self.native.parallel_for("rms_norm", self._norm, len(x), self.native.token_chunk(len(x), len(x)))
        return out

    def add_up(self, parts: Sequence[U8], sync: Sync, encoded: bool) -> tuple[U8 | None, F32]:
        n_tokens, n_bytes = parts[0].shape
        width = SYNC_FLOAT[sync].values_in(n_bytes)
        out, to = self.native.array(n_tokens, width)
        wire, wire_at = self.native.array(n_tokens, n_bytes, np.uint8) if encoded else (None, 0)
        if sync != "q80" and n_tokens * width % 32:
            wire, total = Reference().add_up(parts, sync, encoded)  # rare and small
            return wire, total.copy()  # it may be the only part itself, which is not ours to give
        sources = (ctypes.c_int64 * len(parts))(*map(address, parts))
        self._add.fill(SumJob(ctypes.addressof(sources), len(parts), wire_at, to, WIRE_TYPES[sync]))
        self.native.parallel_for("add_up", self._add, n_tokens * width // 32, MAX_SERIAL_RUNS)
        return wire, out

    def encode(self, x: F32, sync: Sync) -> U8:
        if sync == "f32":
            return np.ascontiguousarray(x, np.float32).view(np.uint8)
        if x.size % 32:
            return Reference().encode(x, sync)
        x = np.ascontiguousarray(x, np.float32)
        n_bytes = SYNC_FLOAT[sync].row_bytes(x.shape[1])
        wire: U8
        wire, wire_at = self.native.array(len(x), n_bytes, np.uint8)
        self._add.fill(SumJob(wire=wire_at, out=address(x), wire_type=WIRE_TYPES[sync]))
        self.native.parallel_for("add_up", self._add, x.size // 32, MAX_SERIAL_RUNS)
        return wire
