"""The back end `simd`: NumPy arrays in and out, machine code from `library.py` in between. Knows no numba.

Weights are repacked once into tiles (`packing.py`), by all threads, straight from wherever they lie. Results live in
arrays that are used again as soon as nobody holds them: nothing is allocated from token to token.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dllama_zmq.kernels.grouped import GroupedExperts
from dllama_zmq.kernels.interface import Experts, KVType, Linear, Run
from dllama_zmq.kernels.reference import Reference, gate_times
from dllama_zmq.kernels.simd.experts import Apart, SimdExperts
from dllama_zmq.kernels.simd.host import host_target
from dllama_zmq.kernels.simd.layout import (
    AS_F16,
    AS_F32,
    AS_Q80,
    GATED,
    GATED_GELU,
    LANES,
    Q40,
    Q41,
    Q80,
    X_BLOCK,
)
from dllama_zmq.kernels.simd.library import library
from dllama_zmq.kernels.simd.memory import HugePages, own_pages
from dllama_zmq.kernels.simd.pool import Job, Pool
from dllama_zmq.quants import F32, U8, BlockMatrix
from dllama_zmq.spec import Activation, FloatType, Sync

_KINDS = {
    FloatType.F32: ("f32", "32", 2 * 64),
    FloatType.F16: ("f16", "16", 2 * 32),
    FloatType.BF16: ("bf16", "16", 2 * 32),
    FloatType.Q40: ("q40", "q40", Q40.nbytes),
    FloatType.Q41: ("q41", "q41", Q41.nbytes),
    FloatType.Q80: ("q80", "q80", Q80.nbytes),
}
"""The names of a type's product and packing kernels, and the bytes of a block (or column) of a pair of tiles."""
_FORMS: dict[Sync, int] = {"f32": AS_F32, "f16": AS_F16, "q80": AS_Q80}
_GATED: dict[Activation, int] = {"silu": GATED, "gelu": GATED_GELU}
_CHUNK_BYTES = 128 * 1024
"""Weights that one thread takes at a time: long enough for the memory's prefetching, short enough to share evenly."""
_ALONE_TOKENS = 4
"""Up to so many tokens a norm, a rotation or a quantization is done by one thread: the others would come too late."""
MOST_HEAD_DIM = 512


class Simd:
    """Kernels compiled for this CPU, over `threads` threads. `crowded`: there are fewer cores than threads at work."""

    name = "simd"

    def __init__(self, threads: int = 1, crowded: bool = False) -> None:
        self._library = library()
        self.pool = Pool(self._library, threads, crowded)
        self.memory = HugePages()
        self._arrays: dict[tuple[int, str], list[tuple[npt.NDArray[Any], int]]] = {}
        at = self._library.addresses
        self.addresses = at
        self._most = host_target().tokens
        self._norm, self._rotate, self._add = Job(*[0] * 5), Job(*[0] * 8), Job(*[0] * 5)
        self._eps = (ctypes.c_float * 1).from_buffer(self._norm.fields, 32)

    def linear(self, *matrices: BlockMatrix, segments: int = 1) -> Linear:
        if len({matrix.float_type for matrix in matrices}) > 1:
            products = [Product(self, [matrix], segments) for matrix in matrices]
            return lambda x: [product(x) for product in products]
        return Product(self, matrices, segments)

    def gated(self, gate: BlockMatrix, up: BlockMatrix, activation: Activation = "silu") -> Linear:
        if gate.float_type is not up.float_type:
            gates, ups = self.linear(gate), self.linear(up)
            return lambda x: gate_times(gates(x), ups(x), activation)
        return Product(self, (gate, up), 1, _GATED[activation])

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
        x = np.ascontiguousarray(x, np.float32)
        out: F32
        out, to = self.array(*x.shape)
        job = self._norm.fields
        job[0], job[1], job[2], job[3] = address(x), to, address(gain), x.shape[1]
        self._eps[0] = eps
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
        if sync == "f32" or x.size % 32:
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

    def array(self, n_rows: int, width: int, dtype: Any = np.float32) -> tuple[Any, int]:
        """An array (n_rows, width) that nobody else holds, and its address."""
        key = (width, "" if dtype is np.float32 else "b")
        kept = self._arrays.setdefault(key, [])
        for i, (array, at) in enumerate(kept):
            if sys.getrefcount(array) == _FREE and len(array) >= n_rows:
                if i:
                    kept[0], kept[i] = kept[i], kept[0]
                return array[:n_rows], at
        array = np.empty((n_rows, width), dtype)
        kept[:] = [(a, at) for a, at in kept if len(a) >= n_rows or sys.getrefcount(a) > _FREE][:8]
        kept.insert(0, (array, array.ctypes.data))
        return array[:n_rows], kept[0][1]

    def over_rows(self, kernel: str, job: Job, n_rows: int) -> None:
        """A kernel whose items are tokens: by one thread while they are few."""
        if n_rows <= _ALONE_TOKENS:
            self.pool.run_alone(self.addresses[kernel], job.address, n_rows)
        else:
            self.pool.run(self.addresses[kernel], job.address, n_rows, -(-n_rows // (4 * self.pool.threads)))

    def _spread(self, kernel: str, job: Job, n_items: int, alone: int) -> None:
        if n_items <= alone:
            self.pool.run_alone(self.addresses[kernel], job.address, n_items)
        else:
            self.pool.run(self.addresses[kernel], job.address, n_items, alone)


class Product:
    """One or several matrices as tiles: `linear`, or `gated` where `form` says so."""

    def __init__(self, kernels: Simd, matrices: Sequence[BlockMatrix], segments: int, form: int = AS_F32) -> None:
        kind, columns = matrices[0].float_type, matrices[0].columns
        gated = form != AS_F32
        self._kernels = kernels
        self.integer = kind.block_values == 32
        self.columns = columns
        self._n_rows = [matrix.rows for matrix in matrices]
        tiles = [-(-rows // LANES) for rows in self._n_rows]
        self.n_items = -(-sum(tiles) // 2)
        self.kind, packing, unit_bytes = _KINDS[kind]
        self.pair_bytes = columns // kind.block_values * unit_bytes
        self._memory = kernels.memory.take(self.n_items * self.pair_bytes)
        self.base, self.form = address(self._memory), form
        first = 0
        for i, (matrix, count) in enumerate(zip(matrices, tiles, strict=True)):
            # Of a gated product the gate's and the up's tiles lie in turn: both of a pair are needed at once.
            data = matrix.data if matrix.data.strides[1] == 1 else np.ascontiguousarray(matrix.data)
            job = Job(
                self.base, self.pair_bytes, i if gated else first, 2 if gated else 1, data.ctypes.data, data.strides[0],
                matrix.rows, columns // kind.block_values,
            )  # fmt: skip
            kernels.pool.run(kernels.addresses[f"pack_{packing}"], job.address, count, 4)
            first += count
        self.rows = self._n_rows[0] if gated or len(matrices) == 1 else first * LANES
        self._cuts = [] if gated or len(matrices) == 1 else [LANES * t for t in tiles]
        self._segments = segments
        self._chunk = max(1, min(_CHUNK_BYTES // self.pair_bytes, self.n_items // (4 * kernels.pool.threads)))
        self._job = Job(
            self.base, self.pair_bytes, 0, 4 * columns, 0, 4 * self.rows, self.rows, columns, segments, 0, form
        )
        self._x_job = Job(0, 0, 0, 4 * columns, 0, 0, 0, columns, 0, 0)
        self._kernel = kernels.addresses[f"product_{self.kind}"]

    def __call__(self, x: F32) -> Any:
        out = self._run(x, 0, self.columns, self._segments)
        if not self._cuts:
            return out
        parts, first = [], 0
        for width, n_rows in zip(self._cuts, self._n_rows, strict=True):
            parts.append(out[:, first : first + n_rows])
            first += width
        return parts

    def segment(self, x: F32, i: int, of: int) -> F32:
        """The sum of part `i` of `of` equal parts of the columns alone."""
        width = self.columns // of
        out: F32
        out = self._run(x, i * width, width, 1)
        return out

    def _run(self, x: F32, first: int, width: int, segments: int) -> Any:
        """The product over `width` columns from `first` on."""
        kernels, job, n_tokens = self._kernels, self._job.fields, len(x)
        x = np.ascontiguousarray(x, np.float32)
        at = address(x) + 4 * first
        if self.integer:
            _held, values_at = kernels.array(n_tokens, width // 32 * X_BLOCK, np.uint8)
            fields = self._x_job.fields
            fields[2], fields[4], fields[7], fields[9] = at, values_at, width, n_tokens
            n_groups = -(-n_tokens // kernels._most)
            run = kernels.pool.run if n_tokens > _ALONE_TOKENS else kernels.pool.run_alone
            run(kernels.addresses["quantize"], self._x_job.address, n_groups)
            at = values_at
        out, to = kernels.array(n_tokens, self.rows)
        job[0], job[2], job[4], job[9] = self.base + self.pair_bytes * first // self.columns, at, to, n_tokens
        job[7], job[8] = width, segments
        kernels.pool.run(self._kernel, self._job.address, self.n_items, self._chunk if n_tokens < 8 else 1)
        return out


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
        (pool.run if run.count > _ALONE_TOKENS else pool.run_alone)(self._store, self._job.address, self._n_kv_heads)

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


def _count_when_free() -> int:
    """What getrefcount says of an array that only a list like `Simd._arrays` holds: it depends on the interpreter."""
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
