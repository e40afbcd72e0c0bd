"""Llama: Llama 2 and 3 (arXiv:2302.13971, arXiv:2407.21783), Mistral and TinyLlama alike.

Every node runs this same code over its own heads, FFN columns and vocabulary rows; `comm` adds the partial sums.
Knows nothing of files, plans and sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dllama_zmq.kernels import Kernels, KVCache, Run
from dllama_zmq.models.comm import Comm
from dllama_zmq.models.rope import rope_angles, rope_frequencies
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.spec import ModelSpec


class _Layer:
    """One layer's weights on this node."""

    def __init__(self, take: Callable[[str], BlockMatrix], kernels: Kernels, segments: int) -> None:
        self.attention_norm = take("attention_norm").dequantize()[0]
        self.ffn_norm = take("ffn_norm").dequantize()[0]
        self.qkv = kernels.linear(take("attention.q"), take("attention.k"), take("attention.v"))
        self.o = kernels.linear(take("attention.o"), segments=segments)
        self.gated = kernels.gated(take("ffn.gate"), take("ffn.up"))
        self.down = kernels.linear(take("ffn.down"), segments=segments)


class Llama:
    """One node's share of a Llama.

    take: this node's slice of a tensor, by its name in `llama_tensors`; asked for once, and held by nobody afterwards.
    segments: the parts of this node in the tree of partial sums (`Kernels.linear`).
    """

    def __init__(
        self,
        spec: ModelSpec,
        take: Callable[[str], BlockMatrix],
        kernels: Kernels,
        cache: KVCache,
        segments: int,
    ) -> None:
        self._spec = spec
        self._kernels = kernels
        self._cache = cache
        self._frequencies = rope_frequencies(spec.rope, spec.head_dim)
        self._layers = [
            _Layer(lambda name, i=i: take(f"layers.{i}.{name}"), kernels, segments)  # type: ignore[misc]
            for i in range(spec.n_layers)
        ]
        self._final_norm = take("final_norm").dequantize()[0]
        self._head = kernels.linear(take("head"))

    def forward(self, x: F32, runs: Sequence[Run], comm: Comm) -> F32:
        """Embedded tokens x (T, D), `runs` covering its rows in order -> (T, D), before the final norm."""
        positions = np.concatenate([np.arange(run.start, run.start + run.count) for run in runs])
        angles = rope_angles(self._frequencies, positions)
        x = x.copy()
        for i, layer in enumerate(self._layers):
            x += comm.all_reduce(self._attention(i, layer, self._norm(x, layer.attention_norm), runs, angles))
            x += comm.all_reduce(layer.down(layer.gated(self._norm(x, layer.ffn_norm))))
        return x

    def logits(self, x: F32) -> F32:
        """Rows of forward's result (R, D) -> this node's part of the vocabulary (R, V / nodes)."""
        logits: F32 = self._head(self._norm(x, self._final_norm))
        return logits

    def _attention(self, i: int, layer: _Layer, x: F32, runs: Sequence[Run], angles: tuple[F32, F32]) -> F32:
        heads = (x.shape[0], -1, self._spec.head_dim)
        rotate, layout = self._kernels.rotate, self._spec.rope.layout
        q, k, v = (rows.reshape(heads) for rows in layer.qkv(x))  # (T, H, Hd), (T, K, Hd), (T, K, Hd)
        q, k = rotate(q, *angles, layout), rotate(k, *angles, layout)
        attended = []
        row = 0
        for run in runs:
            rows = slice(row, row + run.count)
            self._cache.append(i, run, k[rows], v[rows])
            attended.append(self._cache.attend(i, run, q[rows]))
            row += run.count
        out: F32 = layer.o(attended[0] if len(attended) == 1 else np.concatenate(attended))
        return out

    def _norm(self, x: F32, gain: F32) -> F32:
        return self._kernels.rms_norm(x, gain, self._spec.norm_eps)
