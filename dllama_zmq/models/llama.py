"""Llama 2 and 3 (arXiv:2302.13971, arXiv:2407.21783), Mistral and TinyLlama. The other architectures reuse its classes.

Every node runs this code over its own heads, FFN columns and vocabulary rows; `comm` adds the partial sums.
Knows no files, plans or sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from dllama_zmq.kernels import Batch, Kernels, KVCache, Norm, Reduction, Rotation
from dllama_zmq.models.alike import norm_alike
from dllama_zmq.models.comm import Comm, Layers, micro_batches, run_micro_batches
from dllama_zmq.models.rope import rope_angles, rope_frequencies
from dllama_zmq.models.tensors import attention_tensors, decoder_tensors, network_tensors, norm_tensor
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.spec import ModelSpec, TensorSpec

TensorSource = Callable[[str], BlockMatrix]
"""This node's slice of a tensor, by name. Each is asked for once, and is not kept afterwards."""


class Half:
    """Half of a layer: attention, or a feed-forward network."""

    out_norm: str | None = None
    """The name of the norm behind it, where there is one."""

    def __init__(self, spec: ModelSpec, weights: TensorSource, kernels: Kernels, reduction: Reduction) -> None:
        self._spec, self._kernels = spec, kernels
        self._out_gain = None if self.out_norm is None else vector(weights(self.out_norm))

    def finish(self, total: F32) -> F32:
        """What is added to x: made from `total` (T, D), the sum over all nodes."""
        return total if self._out_gain is None else norm_alike(total, self._out_gain, self._spec.norm_eps)


class Attention(Half):
    """A layer's attention over this node's heads."""

    vectors: Sequence[TensorSpec] = ()
    """Its tensors besides q, k, v, o and norms of x."""

    def __init__(self, spec: ModelSpec, weights: TensorSource, kernels: Kernels, reduction: Reduction) -> None:
        super().__init__(spec, weights, kernels, reduction)
        norm = Norm(vector(weights("attention_norm")), spec.norm_eps)
        self._qkv = kernels.linear(weights("attention.q"), weights("attention.k"), weights("attention.v"), norm=norm)
        self._o = kernels.linear(weights("attention.o"), segments=reduction.segments, wire=reduction.wire)

    def heads(self, x: F32) -> tuple[F32, F32, F32]:
        """x (T, D) before its norm -> queries (T, H * Hd), keys and values (T, K * Hd) before RoPE."""
        q, k, v = self._qkv(x)
        return q, k, v

    def __call__(self, x: F32, layer: int, cache: KVCache, batch: Batch, rotation: Rotation) -> F32:
        """x (T, D), the rows of `batch` -> this node's partial sum of attention (T, D)."""
        out: F32 = cache.attend(layer, batch, *self.heads(x), rotation, self._o)
        return out


class FeedForwardBlock(Protocol):
    """A layer's second half: dense or a mixture of experts."""

    def __init__(self, spec: ModelSpec, weights: TensorSource, kernels: Kernels, reduction: Reduction) -> None: ...

    @classmethod
    def tensors(cls, spec: ModelSpec) -> list[TensorSpec]:
        """Its matrices, in file order."""
        ...

    def __call__(self, x: F32) -> F32:
        """x (T, D) -> this node's partial sum (T, D)."""
        ...

    def finish(self, total: F32) -> F32:
        """What is added to x: made from `total` (T, D), the sum over all nodes."""
        ...


class FeedForward(Half):
    """A dense feed-forward network's columns on this node."""

    def __init__(self, spec: ModelSpec, weights: TensorSource, kernels: Kernels, reduction: Reduction) -> None:
        super().__init__(spec, weights, kernels, reduction)
        norm = Norm(vector(weights("ffn_norm")), spec.norm_eps)
        self._gated = kernels.gated(weights("ffn.gate"), weights("ffn.up"), spec.activation, norm)
        self._down = kernels.linear(weights("ffn.down"), segments=reduction.segments, wire=reduction.wire)

    @classmethod
    def tensors(cls, spec: ModelSpec) -> list[TensorSpec]:
        return network_tensors(spec, "ffn", ("gate", "down", "up"))

    def __call__(self, x: F32) -> F32:
        out: F32 = self._gated(x, self._down)
        return out


class Llama:
    """One node's shard of a Llama. reduction: how this node makes its partial sums."""

    attention: type[Attention] = Attention
    feed_forward: type[FeedForwardBlock] = FeedForward
    norms: Sequence[str] = ("attention_norm", "ffn_norm")
    """A layer's norms of x, in file order."""
    attention_softcap: float | None = None
    """The limit c of attention's scores s, which become c * tanh(s / c); None without one."""

    def __init__(
        self, spec: ModelSpec, weights: TensorSource, kernels: Kernels, cache: KVCache, reduction: Reduction
    ) -> None:
        self._spec, self._cache = spec, cache
        ropes = [spec.rope_of(i) for i in range(spec.n_layers)]
        self._ropes = [(rope, rope_frequencies(rope, spec.head_dim)) for rope in dict.fromkeys(ropes)]
        self._rope_of_layer = [list(dict.fromkeys(ropes)).index(rope) for rope in ropes]
        self._layers = []
        for i in range(spec.n_layers):

            def layer_weights(name: str, i: int = i) -> BlockMatrix:
                return weights(f"layers.{i}.{name}")

            arguments = (spec, layer_weights, kernels, reduction)
            self._layers.append((self.attention(*arguments), self.feed_forward(*arguments)))
        self._norm = Norm(vector(weights("final_norm")), spec.norm_eps)
        self._rms_norm = kernels.rms_norm
        self._head = kernels.linear(weights("head"), norm=self._norm)

    @classmethod
    def tensors(cls, spec: ModelSpec) -> list[TensorSpec]:
        """Every tensor of the model, in file order: of a layer the matrices, then the vectors."""
        matrices = [*attention_tensors(spec), *cls.feed_forward.tensors(spec)]
        return decoder_tensors(spec, [*matrices, *cls.attention.vectors, *map(norm_tensor, cls.norms)])

    def forward(self, x: F32, batch: Batch, comm: Comm) -> F32:
        """Embedded tokens x (T, D), the rows of `batch` -> (T, D), before the final norm."""
        parts = micro_batches(self._spec, len(x))
        if len(parts) == 1:
            (result,) = run_micro_batches([self._run_layers(x, batch)], comm)
            return result
        return np.concatenate(
            run_micro_batches([self._run_layers(x[rows], batch.within(rows)) for rows in parts], comm)
        )

    def _run_layers(self, x: F32, batch: Batch) -> Layers:
        """All layers over x (T, D), the rows of `batch`."""
        rotations = [
            Rotation(*rope_angles(frequencies, batch.positions), rope.layout) for rope, frequencies in self._ropes
        ]
        x = x.copy()
        for i, (attention, feed_forward) in enumerate(self._layers):
            rotation = rotations[self._rope_of_layer[i]]
            x += attention.finish((yield attention(x, i, self._cache, batch, rotation)))
            x += feed_forward.finish((yield feed_forward(x)))
        return x

    def logits(self, x: F32) -> F32:
        """Rows of forward's result (R, D) -> logits of this node's slice of the vocabulary (R, V / nodes)."""
        logits: F32 = self._head(x)
        return logits

    def hidden(self, x: F32) -> F32:
        """Rows of forward's result (R, D) -> (R, D) after the final norm."""
        return self._rms_norm(x, self._norm.gain, self._norm.eps)


def vector(matrix: BlockMatrix) -> F32:
    """A tensor of one row (1, N) as an array (N,)."""
    values: F32 = matrix.dequantize()[0]
    return values
