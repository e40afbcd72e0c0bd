"""The KV cache over the kernels of `attention.py`, which says how it lies. Knows no numba."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from dllama_zmq.kernels.batch import Batch
from dllama_zmq.kernels.interface import CacheSpec, Linear, Rotation
from dllama_zmq.kernels.simd import layout
from dllama_zmq.kernels.simd.arrays import address, float_bits
from dllama_zmq.kernels.simd.chain import Chain
from dllama_zmq.kernels.simd.job import Job
from dllama_zmq.kernels.simd.layout import KV_ROWS, LANES, MOST_HEAD_DIM, PAGE
from dllama_zmq.kernels.simd.linear import Product
from dllama_zmq.kernels.simd.memory import own_pages
from dllama_zmq.kernels.simd.runtime import Runtime
from dllama_zmq.quants import F32

(
    _KEYS, _VALUES, _SPANS, _PAGE_IDS, _Q, _Q_STRIDE, _NEW_KEYS, _KEY_STRIDE, _NEW_VALUES, _VALUE_STRIDE, _OUT, _COS,
    _SIN, _NEIGHBOURS,
) = (
    place // 8 for place in (
        layout.KV_KEYS, layout.KV_VALUES, layout.KV_SPANS, layout.KV_PAGE_IDS, layout.KV_Q, layout.KV_Q_STRIDE,
        layout.KV_NEW_KEYS, layout.KV_KEY_STRIDE, layout.KV_NEW_VALUES, layout.KV_VALUE_STRIDE, layout.KV_OUT,
        layout.KV_COS, layout.KV_SIN, layout.KV_NEIGHBOURS,
    )
)  # fmt: skip


class SimdCache:
    """One node's KV heads. Memory is taken as pages are written."""

    def __init__(self, kernels: Runtime, spec: CacheSpec) -> None:
        head_dim, n_kv_heads = spec.head_dim, spec.n_kv_heads
        if head_dim > MOST_HEAD_DIM:
            raise ValueError(f"heads of {head_dim} values; this back end goes to {MOST_HEAD_DIM}: use kernels: numpy")
        room = spec.n_pages * PAGE * (2 if spec.kv_type == "f16" else 4)
        key_head_bytes, value_head_bytes = room * head_dim, room * -(-head_dim // LANES) * LANES
        self._keys_bytes = n_kv_heads * key_head_bytes
        self._layer_bytes = n_kv_heads * (key_head_bytes + value_head_bytes)
        self._memory = own_pages(spec.n_layers * self._layer_bytes)
        self._base = address(self._memory)
        self._n_kv_heads, width = n_kv_heads, len(spec.kv_of_head) * head_dim
        bounds = []
        for kv in range(n_kv_heads):
            heads = [h for h, of in enumerate(spec.kv_of_head) if of == kv]
            bounds += [heads[0], heads[-1] + 1] if heads else [0, 0]
        self._groups = Job(*bounds)
        self._most = max(last - first for first, last in zip(bounds[::2], bounds[1::2], strict=True))
        self._pool, at = kernels.pool, kernels.address_of
        self._take_in, self._attend = at(f"take_in_{spec.kv_type}"), at(f"attend_{spec.kv_type}")
        self._chain = Chain(kernels, ("attend_by_heads", (
            0, 0, key_head_bytes, value_head_bytes, head_dim, self._groups.address, n_kv_heads, self._most, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 4 * width, float_bits(1 / head_dim**0.5), spec.window or spec.n_pages * PAGE,
            float_bits(spec.softcap or 0.0), 0, 0, 0, self._take_in, self._attend,
        )))  # fmt: skip
        self._fields, self._results = self._chain.job(0), kernels.arrays(width)
        self._batch: Batch | None = None
        self._rotation: Rotation | None = None

    def attend(
        self, layer: int, batch: Batch, q: F32, k: F32, v: F32, rotation: Rotation | None = None,
        then: Linear | None = None,
    ) -> Any:  # fmt: skip
        job = self._fields
        if batch is not self._batch:
            self._begin(batch)
        if rotation is not self._rotation:
            self._turn_by(rotation)
        out, to = self._results.take(batch.n_rows)
        job[_OUT] = to
        keys = self._base + layer * self._layer_bytes
        job[_KEYS], job[_VALUES] = keys, keys + self._keys_bytes
        job[_Q], job[_NEW_KEYS], job[_NEW_VALUES] = address(q), address(k), address(v)
        job[_Q_STRIDE], job[_KEY_STRIDE], job[_VALUE_STRIDE] = q.strides[0], k.strides[0], v.strides[0]
        if self._n_items == self._n_spans * self._n_kv_heads:  # one a KV head: its thread does all that they need
            if isinstance(then, Product):
                return then.after(self._chain, out, to)
            self._chain.run()
        else:
            self._pool.run(self._take_in, ctypes.addressof(job), self._n_spans * self._n_kv_heads)
            self._pool.run(self._attend, ctypes.addressof(job), self._n_items)
        return out if then is None else then(out)

    def _begin(self, batch: Batch) -> None:
        """From now on for this batch."""
        self._batch, job = batch, self._fields
        job[_SPANS], job[_PAGE_IDS] = address(batch.table), address(batch.page_ids)
        self._n_spans = len(batch.spans)
        self._n_items = self._n_kv_heads * sum(-(-span.count * self._most // KV_ROWS) for span in batch.spans)
        self._chain.share(0, self._n_items, 1)

    def _turn_by(self, rotation: Rotation | None) -> None:
        """From now on by these angles."""
        job = self._fields
        self._rotation = rotation
        job[_COS] = 0
        if rotation is not None:
            self._angles = [np.ascontiguousarray(angles, np.float32) for angles in (rotation.cos, rotation.sin)]
            job[_COS], job[_SIN] = map(address, self._angles)
            job[_NEIGHBOURS] = rotation.layout == "interleaved"
