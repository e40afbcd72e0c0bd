"""Llama: Llama 2 and 3 (arXiv:2302.13971, arXiv:2407.21783), Mistral and TinyLlama alike.

Every node runs this same code over its own heads, FFN columns and vocabulary rows; `comm` adds the partial sums.
Knows nothing of files, plans and sockets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dllama_zmq.kernels import Kernels
from dllama_zmq.models.cache import KVCache, Run
from dllama_zmq.models.comm import Comm
from dllama_zmq.models.rope import rope_angles, rope_frequencies
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.spec import ModelSpec


class _Layer:
    """One layer's weights on this node."""

    def __init__(self, weights: Mapping[str, BlockMatrix], prefix: str, kernels: Kernels, segments: int) -> None:
        self.attention_norm = weights[f"{prefix}.attention_norm"].dequantize()[0]
        self.ffn_norm = weights[f"{prefix}.ffn_norm"].dequantize()[0]
        self.q, self.k, self.v = (kernels.linear(weights[f"{prefix}.attention.{name}"]) for name in "qkv")
        self.o = kernels.linear(weights[f"{prefix}.attention.o"], segments)
        self.gate = kernels.linear(weights[f"{prefix}.ffn.gate"])
        self.up = kernels.linear(weights[f"{prefix}.ffn.up"])
        self.down = kernels.linear(weights[f"{prefix}.ffn.down"], segments)


class Llama:
    """One node's share of a Llama. `weights` holds this node's slices under the names of `llama_tensors`.

    kv_of_head: for each of this node's query heads, which of this node's KV heads it reads.
    segments: the parts of this node in the tree of partial sums (`Kernels.linear`).
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, BlockMatrix],
        kernels: Kernels,
        cache: KVCache,
        kv_of_head: Sequence[int],
        segments: int,
    ) -> None:
        self._spec = spec
        self._kernels = kernels
        self._cache = cache
        self._kv_of_head = kv_of_head
        self._frequencies = rope_frequencies(spec.rope, spec.head_dim)
        self._layers = [_Layer(weights, f"layers.{i}", kernels, segments) for i in range(spec.n_layers)]
        self._final_norm = weights["final_norm"].dequantize()[0]
        self._head = kernels.linear(weights["head"])

    def forward(self, x: F32, runs: Sequence[Run], comm: Comm) -> F32:
        """Embedded tokens x (T, D), `runs` covering its rows in order -> (T, D), before the final norm."""
        positions = np.concatenate([np.arange(run.start, run.start + run.count) for run in runs])
        angles = rope_angles(self._frequencies, positions)
        for i, layer in enumerate(self._layers):
            x = x + comm.all_reduce(self._attention(i, layer, self._norm(x, layer.attention_norm), runs, angles))
            x = x + comm.all_reduce(self._feed_forward(layer, self._norm(x, layer.ffn_norm)))
        return x

    def logits(self, x: F32) -> F32:
        """Rows of forward's result (R, D) -> this node's part of the vocabulary (R, V / nodes)."""
        return self._head(self._norm(x, self._final_norm))

    def _attention(self, i: int, layer: _Layer, x: F32, runs: Sequence[Run], angles: tuple[F32, F32]) -> F32:
        heads = (x.shape[0], -1, self._spec.head_dim)
        rotate, layout = self._kernels.rotate, self._spec.rope.layout
        q = rotate(layer.q(x).reshape(heads), *angles, layout)  # (T, H, Hd)
        k = rotate(layer.k(x).reshape(heads), *angles, layout)  # (T, K, Hd)
        v = layer.v(x).reshape(heads)
        attended = []
        row = 0
        for run in runs:
            rows = slice(row, row + run.count)
            keys, values = self._cache.extend(i, run, k[rows], v[rows])
            attended.append(self._kernels.attend(q[rows], keys, values, self._kv_of_head))
            row += run.count
        return layer.o(attended[0] if len(attended) == 1 else np.concatenate(attended))

    def _feed_forward(self, layer: _Layer, x: F32) -> F32:
        return layer.down(self._kernels.silu_times(layer.gate(x), layer.up(x)))

    def _norm(self, x: F32, gain: F32) -> F32:
        return self._kernels.rms_norm(x, gain, self._spec.norm_eps)
