"""The KV cache over the kernels of `attention.py`, which has its layout. Knows no numba."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from dllama_zmq.kernels.batch import Batch
from dllama_zmq.kernels.interface import CacheSpec, Linear, Rotation
from dllama_zmq.kernels.simd.arrays import address, float_bits
from dllama_zmq.kernels.simd.job import Job, indices
from dllama_zmq.kernels.simd.layout import KV_ROWS, LANES, MAX_HEAD_DIM, PAGE, AttentionJob
from dllama_zmq.kernels.simd.linear import Product
from dllama_zmq.kernels.simd.memory import anonymous_pages
from dllama_zmq.kernels.simd.runtime import Runtime
from dllama_zmq.kernels.simd.sequence import KernelSequence
from dllama_zmq.quants import F32

_AT = indices(AttentionJob)


class SimdCache:
    """One node's KV heads. Memory is taken as pages are written."""

    def __init__(self, runtime: Runtime, spec: CacheSpec) -> None:
        head_dim, n_kv_heads = spec.head_dim, spec.n_kv_heads
        if head_dim > MAX_HEAD_DIM:
            raise ValueError(f"heads of {head_dim} values; this back end goes to {MAX_HEAD_DIM}: use kernels: numpy")
        head_bytes = spec.n_pages * PAGE * (2 if spec.kv_type == "f16" else 4)
        key_head_bytes, value_head_bytes = head_bytes * head_dim, head_bytes * -(-head_dim // LANES) * LANES
        self._keys_bytes = n_kv_heads * key_head_bytes
        self._layer_bytes = n_kv_heads * (key_head_bytes + value_head_bytes)
        self._memory = anonymous_pages(spec.n_layers * self._layer_bytes)
        self._base = address(self._memory)
        self._n_kv_heads, width = n_kv_heads, len(spec.kv_of_head) * head_dim
        bounds = []
        for kv in range(n_kv_heads):
            heads = [h for h, of in enumerate(spec.kv_of_head) if of == kv]
            bounds += [heads[0], heads[-1] + 1] if heads else [0, 0]
        self._groups = Job(*bounds)
        self._max_group = max(last - first for first, last in zip(bounds[::2], bounds[1::2], strict=True))
        self._pool, at = runtime.pool, runtime.address_of
        self._store_kv, self._attend = at(f"store_kv_{spec.kv_type}"), at(f"attend_{spec.kv_type}")
        arguments = AttentionJob(
            key_head_bytes=key_head_bytes,
            value_head_bytes=value_head_bytes,
            head_dim=head_dim,
            groups=self._groups.address,
            n_kv_heads=n_kv_heads,
            max_group=self._max_group,
            out_stride=4 * width,
            scale=float_bits(spec.score_scale),
            softcap=float_bits(spec.softcap or 0.0),
            store_kv=self._store_kv,
            attend=self._attend,
        )
        self._windows = [spec.window_of(layer) or spec.n_pages * PAGE for layer in range(spec.n_layers)]
        self._sequence = KernelSequence(runtime, ("attend_by_heads", arguments))
        self._fields, self._results = self._sequence.job(0), runtime.arrays(width)
        self._batch: Batch | None = None
        self._rotation: Rotation | None = None

    def attend(
        self,
        layer: int,
        batch: Batch,
        q: F32,
        k: F32,
        v: F32,
        rotation: Rotation | None = None,
        then: Linear | None = None,
    ) -> Any:
        job = self._fields
        if batch is not self._batch:
            self._begin(batch)
        if rotation is not self._rotation:
            self._rotate_by(rotation)
        out, to = self._results.take(batch.n_rows)
        job[_AT.out], job[_AT.window] = to, self._windows[layer]
        keys = self._base + layer * self._layer_bytes
        job[_AT.keys], job[_AT.values] = keys, keys + self._keys_bytes
        job[_AT.q], job[_AT.new_keys], job[_AT.new_values] = address(q), address(k), address(v)
        job[_AT.q_stride], job[_AT.key_stride], job[_AT.value_stride] = q.strides[0], k.strides[0], v.strides[0]
        if self._n_items == self._n_stores:  # one per KV head, whose thread stores and attends
            if isinstance(then, Product):
                return then.after(self._sequence, out, to)
            self._sequence.run()
        else:
            self._pool.run(self._store_kv, ctypes.addressof(job), self._n_stores)
            self._pool.run(self._attend, ctypes.addressof(job), self._n_items)
        return out if then is None else then(out)

    def _begin(self, batch: Batch) -> None:
        """Let calls attend for this batch."""
        self._batch, job = batch, self._fields
        job[_AT.spans], job[_AT.page_ids] = address(batch.table), address(batch.page_ids)
        job[_AT.n_spans] = len(batch.spans)
        self._n_stores = len(batch.spans) * self._n_kv_heads
        self._n_items = self._n_kv_heads * sum(-(-span.count * self._max_group // KV_ROWS) for span in batch.spans)
        self._sequence.set_items(0, self._n_items, 1)

    def _rotate_by(self, rotation: Rotation | None) -> None:
        """Let calls rotate by these angles."""
        job = self._fields
        self._rotation = rotation
        job[_AT.cos] = 0
        if rotation is not None:
            self._angles = [np.ascontiguousarray(angles, np.float32) for angles in (rotation.cos, rotation.sin)]
            job[_AT.cos], job[_AT.sin] = map(address, self._angles)
            job[_AT.interleaved] = rotation.layout == "interleaved"
