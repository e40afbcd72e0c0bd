"""A mixture of experts: a router chooses a few feed-forward networks for each token. Each is split over all nodes.

All nodes must choose alike, whatever their CPUs and back ends, so the choice is made in whole numbers: see `Router`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dllama_zmq.kernels import Kernels, Reduction
from dllama_zmq.models.llama import TensorSource, vector
from dllama_zmq.quants import F32
from dllama_zmq.spec import ModelSpec

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Router:
    """Chooses experts for x before its norm. router (E, D), gain of the norm (D,).

    x is the same on all nodes, but the rounding of sums differs between CPUs. So x * gain and the router's rows become
    whole numbers with few enough bits that the sum of a product stays below 2^53: float64 adds those exactly, in any
    order. The norm's scale is positive and does not change which experts are chosen; it is applied afterwards, for the
    experts' weights.
    """

    def __init__(self, spec: ModelSpec, router: F32, gain: F32) -> None:
        self._n_chosen, self._norm_topk, self._eps = spec.n_active_experts, spec.norm_topk, spec.norm_eps
        self._bits = (53 - math.ceil(math.log2(spec.dim))) // 2
        rows, self._steps = _whole(router, self._bits)
        self._columns = np.ascontiguousarray(rows.T)
        self._gain = gain

    def __call__(self, x: F32) -> tuple[I64, F32]:
        """x (T, D) -> chosen experts (T, k), ascending, and their weights (T, k). Ties go to the lower number."""
        values, steps = _whole(x * self._gain, self._bits)
        logits: F64 = values @ self._columns * self._steps * steps[:, None]
        chosen = np.sort(np.argsort(-logits, axis=1, kind="stable")[:, : self._n_chosen], axis=1)
        mean_square = np.mean(np.square(x, dtype=np.float64), axis=1, keepdims=True)
        logits /= np.sqrt(mean_square + self._eps)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        chosen_weights = np.take_along_axis(weights, chosen, axis=1)
        chosen_weights /= (chosen_weights if self._norm_topk else weights).sum(axis=1, keepdims=True)
        return chosen, chosen_weights.astype(np.float32)


def norm_alike(x: F32, gain: F32, eps: float) -> F32:
    """RMS norm of x (T, D) with gain (D,), the same bits on every CPU.

    For a norm whose result goes into x, which must be equal on all nodes. x becomes whole numbers, whose squares
    float64 adds exactly in any order. Each remaining operation rounds once, as IEEE 754 prescribes.
    """
    values, steps = _whole(x, (53 - math.ceil(math.log2(x.shape[1]))) // 2)
    squares: F64 = np.square(values).sum(axis=1) * np.square(steps)
    scale = (1.0 / np.sqrt(squares / x.shape[1] + eps)).astype(np.float32)
    normed: F32 = x * scale[:, None] * gain
    return normed


def _whole(rows: F32, bits: int) -> tuple[F64, F64]:
    """Rows (T, D) as whole numbers up to 2^bits, and each row's unit (T,), a power of two."""
    exponents = np.frexp(np.abs(rows).max(axis=1))[1] - bits
    return np.rint(np.ldexp(rows.astype(np.float64), -exponents[:, None])), np.ldexp(1.0, exponents)


class MixtureOfExperts:
    """A layer's experts: this node's columns of each."""

    norm = "ffn_norm"

    def __init__(self, spec: ModelSpec, weights: TensorSource, kernels: Kernels, reduction: Reduction) -> None:
        self._eps, self._kernels = spec.norm_eps, kernels
        self._norm = vector(weights(self.norm))
        self._router = Router(spec, weights("router").dequantize(), self._norm)
        names = [[f"experts.{e}.{part}" for part in ("gate", "up", "down")] for e in range(spec.n_experts)]
        self._experts = kernels.experts(
            ((weights(gate), weights(up), weights(down)) for gate, up, down in names),
            reduction.segments,
            spec.activation,
        )

    def __call__(self, x: F32) -> F32:
        return self._experts(self._kernels.rms_norm(x, self._norm, self._eps), *self._router(x))

    def finish(self, total: F32) -> F32:
        return total
