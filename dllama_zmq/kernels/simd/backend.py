"""The back end `simd`: NumPy arrays in and out, machine code from `library.py` in between. Knows no numba.

Results live in arrays that are used again as soon as nobody holds them: nothing is allocated from token to token.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from dllama_zmq.kernels.grouped import GroupedExperts
from dllama_zmq.kernels.interface import Experts, KVType, Linear, Norm, Run
from dllama_zmq.kernels.reference import Reference, gate_times
from dllama_zmq.kernels.simd.arrays import Arrays, address, float_bits, in_one_piece
from dllama_zmq.kernels.simd.experts import Apart, SimdExperts
from dllama_zmq.kernels.simd.layout import AS_F16, AS_F32, AS_Q80, GATED, GATED_GELU, LANES
from dllama_zmq.kernels.simd.library import library
from dllama_zmq.kernels.simd.linear import ALONE_TOKENS, Product
from dllama_zmq.kernels.simd.memory import HugePages, own_pages
from dllama_zmq.kernels.simd.pool import Job, Pool
from dllama_zmq.quants import F32, U8, BlockMatrix
from dllama_zmq.spec import Activation, Sync

__all__ = ["Product", "Simd", "address"]

_FORMS: dict[Sync, int] = {"f32": AS_F32, "f16": AS_F16, "q80": AS_Q80}
_GATED: dict[Activation, int] = {"silu": GATED, "gelu": GATED_GELU}
MOST_HEAD_DIM = 512


class Simd:
    """Kernels compiled for this CPU, over `threads` threads. `crowded`: there are fewer cores than threads at work."""

    name = "simd"

    def __init__(self, threads: int = 1, crowded: bool = False) -> None:
        self._library = library()
        self.pool = Pool(self._library, threads, crowded)
        self.memory = HugePages()
        self._arrays: dict[tuple[int, str], Arrays] = {}
        self._room = own_pages(1)
        self.addresses = self._library.addresses
        self.run_chain = ctypes.CFUNCTYPE(None, ctypes.c_int64)(self.addresses["run_chain"])
        self._norm, self._rotate, self._add = Job(*[0] * 5), Job(*[0] * 8), Job(*[0] * 5)

    def linear(
        self, *matrices: BlockMatrix, segments: int = 1, norm: Norm | None = None, wire: Sync | None = None
    ) -> Linear:
        if wire is not None:
            return self._packed(matrices[0], segments, norm, wire)
        if len({matrix.float_type for matrix in matrices}) > 1:
            products = [Product(self, [matrix], segments, norm=norm) for matrix in matrices]
            return lambda x: [product(x) for product in products]
        return Product(self, matrices, segments, norm=norm)

    def _packed(self, matrix: BlockMatrix, segments: int, norm: Norm | None, wire: Sync) -> Linear:
        """A product that writes what crosses the bus: by itself, where that is whole runs of 32 values."""
        if wire != "f32" and matrix.rows % 32 == 0:
            return Product(self, [matrix], segments, _FORMS[wire], norm)
        product = Product(self, [matrix], segments, norm=norm)
        return lambda x: self.pack(product(x), wire)

    def gated(
        self, gate: BlockMatrix, up: BlockMatrix, activation: Activation = "silu", norm: Norm | None = None
    ) -> Linear:
        if gate.float_type is not up.float_type:
            gates, ups = self.linear(gate, norm=norm), self.linear(up, norm=norm)
            return lambda x: gate_times(gates(x), ups(x), activation)
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

    def kv_cache(
        self, n_layers: int, n_slots: int, n_kv_heads: int, seq_len: int, head_dim: int, kv_of_head: Sequence[int],
        kv_type: KVType, window: int | None = None, softcap: float | None = None,
    ) -> _Cache:  # fmt: skip
        sizes = (n_layers, n_slots, n_kv_heads, seq_len, head_dim)
        return _Cache(self, *sizes, kv_of_head, kv_type, window or seq_len, softcap or 0.0)

    def rms_norm(self, x: F32, gain: F32, eps: float) -> F32:
        x, at = in_one_piece(x)
        out: F32
        out, to = self.array(*x.shape)
        job = self._norm.fields
        job[0], job[1], job[2], job[3], job[4] = at, to, address(gain), x.shape[1], float_bits(eps)
        self.over_rows("rms_norm", self._norm, len(x))
        return out

    def rotate(self, x: F32, cos: F32, sin: F32, layout: Literal["interleaved", "half"]) -> F32:
        half = x.shape[2] // 2
        job = self._rotate.fields
        job[0], job[1], job[2], job[3], job[4], job[5] = (
            address(x),
            x.strides[0],
            x.shape[1],
            half,
            address(cos),
            address(sin),
        )
        job[6], job[7] = (4, 8) if layout == "interleaved" else (4 * half, 4)
        self.over_rows("rotate", self._rotate, len(x))
        return x

    def add_up(self, parts: Sequence[U8], sync: Sync, packed: bool) -> tuple[U8 | None, F32]:
        n_tokens, n_bytes = parts[0].shape
        width = n_bytes // 34 * 32 if sync == "q80" else n_bytes // (2 if sync == "f16" else 4)
        out, to = self.array(n_tokens, width)
        wire, wire_at = self.array(n_tokens, n_bytes, np.uint8) if packed else (None, 0)
        if sync != "q80" and n_tokens * width % 32:
            return Reference().add_up(parts, sync, packed)  # rare and small
        sources = (ctypes.c_int64 * len(parts))(*map(address, parts))
        job = self._add.fields
        job[0], job[1], job[2], job[3], job[4] = ctypes.addressof(sources), len(parts), wire_at, to, _FORMS[sync]
        self._spread("add_up", self._add, n_tokens * width // 32, 512)
        return wire, out

    def pack(self, x: F32, sync: Sync) -> U8:
        if sync == "f32":
            return np.ascontiguousarray(x, np.float32).view(np.uint8)
        if x.size % 32:
            return Reference().pack(x, sync)
        x = np.ascontiguousarray(x, np.float32)
        n_bytes = x.shape[1] // 32 * 34 if sync == "q80" else 2 * x.shape[1]
        wire: U8
        wire, wire_at = self.array(len(x), n_bytes, np.uint8)
        job = self._add.fields
        job[0], job[1], job[2], job[3], job[4] = 0, 0, wire_at, address(x), _FORMS[sync]
        self._spread("add_up", self._add, x.size // 32, 512)
        return wire

    def adding(self, sync: Sync, parts: int, n_parts: int) -> tuple[int, Job]:
        """The kernel behind `add_up`, and a job for it that adds the `n_parts` parts whose addresses are at `parts`."""
        return self.addresses["add_up"], Job(parts, n_parts, 0, 0, _FORMS[sync])

    def entry(self, name: str) -> Callable[..., None]:
        """A kernel as a function of integers."""
        return self._library.entries[name]

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
            self._room = own_pages(n_bytes)
        return self._room, address(self._room)

    def over_rows(self, kernel: str, job: Job, n_rows: int) -> None:
        """A kernel whose items are tokens: by one thread while they are few."""
        if n_rows <= ALONE_TOKENS:
            self.pool.run_alone(self.addresses[kernel], job.address, n_rows)
        else:
            self.pool.run(self.addresses[kernel], job.address, n_rows, -(-n_rows // (4 * self.pool.threads)))

    def _spread(self, kernel: str, job: Job, n_items: int, alone: int) -> None:
        if n_items <= alone:
            self.pool.run_alone(self.addresses[kernel], job.address, n_items)
        else:
            self.pool.run(self.addresses[kernel], job.address, n_items, alone)


class _Cache:
    """One node's KV heads: see `attention.py` for how they lie. Memory is taken as positions fill."""

    def __init__(
        self, kernels: Simd, n_layers: int, n_slots: int, n_kv_heads: int, seq_len: int, head_dim: int,
        kv_of_head: Sequence[int], kv_type: KVType, window: int, softcap: float,
    ) -> None:  # fmt: skip
        if head_dim > MOST_HEAD_DIM:
            raise ValueError(f"heads of {head_dim} values; this back end goes to {MOST_HEAD_DIM}: use kernels: numpy")
        self._kernels = kernels
        self._n_heads, self._head_dim, self._n_kv_heads = len(kv_of_head), head_dim, n_kv_heads
        value_bytes = 2 if kv_type == "f16" else 4
        room = -(-seq_len // LANES) * LANES
        self._key_bytes = room * head_dim * value_bytes
        self._value_bytes = room * -(-head_dim // LANES) * LANES * value_bytes
        self._slot_bytes = n_kv_heads * (self._key_bytes + self._value_bytes)
        self._layer_bytes = n_slots * self._slot_bytes
        self._memory = own_pages(n_layers * self._layer_bytes)
        self._base = address(self._memory)
        bounds = []
        for kv in range(n_kv_heads):
            heads = [h for h, of in enumerate(kv_of_head) if of == kv]
            bounds += [heads[0], heads[-1] + 1] if heads else [0, 0]
        self._groups = Job(*bounds)
        self._widest = max(last - first for first, last in zip(bounds[::2], bounds[1::2], strict=True))
        self._job = Job(
            0, 0, self._key_bytes, self._value_bytes, head_dim, 0, 0, 0, 0, 0, 4 * len(kv_of_head) * head_dim,
            self._groups.address, 0, 0, 0, 0, 0, window, 0,
        )  # fmt: skip
        (ctypes.c_float * 1).from_buffer(self._job.fields, 18 * 8)[0] = softcap
        (ctypes.c_float * 1).from_buffer(self._job.fields, 13 * 8)[0] = 1 / head_dim**0.5
        self._store, self._attend = kernels.addresses[f"store_kv_{kv_type}"], kernels.addresses[f"attend_{kv_type}"]

    def append(self, layer: int, run: Run, keys: F32, values: F32) -> None:
        if keys.strides[0] != values.strides[0]:  # the kernel knows one distance between rows
            keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
        job = self._job.fields
        self._place(layer, run)
        job[14], job[15], job[16] = address(keys), address(values), keys.strides[0]
        pool = self._kernels.pool
        (pool.run if run.count > ALONE_TOKENS else pool.run_alone)(self._store, self._job.address, self._n_kv_heads)

    def attend(self, layer: int, run: Run, q: F32) -> F32:
        job = self._job.fields
        self._place(layer, run)
        out: F32
        out, to = self._kernels.array(run.count, self._n_heads * self._head_dim)
        per_group = -(-run.count * self._widest // 8)
        job[7], job[8], job[9], job[12] = address(q), q.strides[0], to, per_group
        self._kernels.pool.run(self._attend, self._job.address, self._n_kv_heads * per_group)
        return out

    def _place(self, layer: int, run: Run) -> None:
        keys = self._base + layer * self._layer_bytes + run.slot * self._slot_bytes
        job = self._job.fields
        job[0], job[1] = keys, keys + self._n_kv_heads * self._key_bytes
        job[5], job[6] = run.start, run.count
