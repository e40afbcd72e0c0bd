"""Qwen2 and 2.5 (arXiv:2407.10671): biases on q, k, v. Qwen3 (arXiv:2505.09388): a norm of each head's q and k."""

from __future__ import annotations

from dllama_zmq.kernels import Kernels, Reduction
from dllama_zmq.models.experts import MixtureOfExperts
from dllama_zmq.models.llama import Attention, Llama, TensorSource, vector
from dllama_zmq.quants import F32
from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec


class _BiasedAttention(Attention):
    vectors = (
        TensorSpec("attention.q_bias", ("one", "heads"), FloatType.F32),
        TensorSpec("attention.k_bias", ("one", "kv_heads"), FloatType.F32),
        TensorSpec("attention.v_bias", ("one", "kv_heads"), FloatType.F32),
    )

    def __init__(self, spec: ModelSpec, weights: TensorSource, kernels: Kernels, reduction: Reduction) -> None:
        super().__init__(spec, weights, kernels, reduction)
        self._biases = [vector(weights(f"attention.{letter}_bias")) for letter in "qkv"]

    def heads(self, x: F32) -> tuple[F32, F32, F32]:
        q, k, v = (rows + bias for rows, bias in zip(super().heads(x), self._biases, strict=True))
        return q, k, v


class HeadNormedAttention(Attention):
    """Attention with a norm of each head of q and k."""

    vectors = tuple(TensorSpec(f"attention.{letter}_norm", ("one", "head_dim"), FloatType.F32) for letter in "qk")

    def __init__(self, spec: ModelSpec, weights: TensorSource, kernels: Kernels, reduction: Reduction) -> None:
        super().__init__(spec, weights, kernels, reduction)
        self._q_norm, self._k_norm = vector(weights("attention.q_norm")), vector(weights("attention.k_norm"))

    def heads(self, x: F32) -> tuple[F32, F32, F32]:
        q, k, v = super().heads(x)
        return self._normed(q, self._q_norm), self._normed(k, self._k_norm), v

    def _normed(self, rows: F32, gain: F32) -> F32:
        heads = rows.reshape(-1, len(gain))
        return self._kernels.rms_norm(heads, gain, self._spec.norm_eps).reshape(rows.shape)


class _Experts(MixtureOfExperts):
    order = ("gate", "down", "up")
    router_type = FloatType.F32


class Qwen2(Llama):
    attention = _BiasedAttention


class Qwen3(Llama):
    attention = HeadNormedAttention


class Qwen3Moe(Llama):
    attention = HeadNormedAttention
    feed_forward = _Experts
