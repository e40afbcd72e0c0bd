"""A mixture of experts: a router chooses a few feed-forward networks for each token. Each is split over all nodes.

All nodes must choose alike, whatever their CPUs and back ends, so the choice rests on whole numbers: see `Router`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dllama_zmq.kernels import Kernels, Sums
from dllama_zmq.models.llama import Take, vector
from dllama_zmq.quants import F32
from dllama_zmq.spec import ModelSpec

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Router:
    """Chooses experts for x before its norm: router (E, D), the norm's gain (D,).

    Rounding differs between CPUs; x itself does not. So x * gain and the router's rows become whole numbers of so many
    bits that a product's sum stays below 2^53: float64 adds those exactly, in whatever order. The norm's scale is
    positive and changes no order; it comes in afterwards, for the experts' weights alone.
    """

    def __init__(self, spec: ModelSpec, router: F32, gain: F32) -> None:
        self._n_chosen, self._norm_topk, self._eps = spec.n_active_experts, spec.norm_topk, spec.norm_eps
        self._bits = (53 - math.ceil(math.log2(spec.dim))) // 2
        rows, self._steps = _whole(router, self._bits)
        self._columns = np.ascontiguousarray(rows.T)
        self._gain = gain

    def __call__(self, x: F32) -> tuple[I64, F32]:
        """x (T, D) -> chosen experts (T, k), ascending, and their weights (T, k). Of equals the lower is chosen."""
        values, steps = _whole(x * self._gain, self._bits)
        logits: F64 = values @ self._columns * self._steps * steps[:, None]
        chosen = np.sort(np.argsort(-logits, axis=1, kind="stable")[:, : self._n_chosen], axis=1)
        mean_square = np.mean(np.square(x, dtype=np.float64), axis=1, keepdims=True)
        logits /= np.sqrt(mean_square + self._eps)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        of_chosen = np.take_along_axis(weights, chosen, axis=1)
        of_chosen /= (of_chosen if self._norm_topk else weights).sum(axis=1, keepdims=True)
        return chosen, of_chosen.astype(np.float32)


def norm_alike(x: F32, gain: F32, eps: float) -> F32:
    """x (T, D) divided by the root of its mean square, times the norm's gain (D,): the same bits on every CPU.

    For a norm whose result goes into x, which all nodes must have alike. The mean is of x as whole numbers, whose
    squares float64 adds exactly in any order; what remains is one rounding a step, which IEEE 754 prescribes.
    """
    values, steps = _whole(x, (53 - math.ceil(math.log2(x.shape[1]))) // 2)
    squares: F64 = np.square(values).sum(axis=1) * np.square(steps)
    scale = (1.0 / np.sqrt(squares / x.shape[1] + eps)).astype(np.float32)
    normed: F32 = x * scale[:, None] * gain
    return normed


def _whole(rows: F32, bits: int) -> tuple[F64, F64]:
    """Rows as whole numbers up to 2^bits, and the power of two that one of them is worth in each row."""
    exponents = np.frexp(np.abs(rows).max(axis=1))[1] - bits
    return np.rint(np.ldexp(rows.astype(np.float64), -exponents[:, None])), np.ldexp(1.0, exponents)


class MixtureOfExperts:
    """A layer's experts: this node's columns of each of them."""

    norm = "ffn_norm"

    def __init__(self, spec: ModelSpec, take: Take, kernels: Kernels, sums: Sums) -> None:
        self._eps, self._kernels = spec.norm_eps, kernels
        self._norm = vector(take(self.norm))
        self._router = Router(spec, take("router").dequantize(), self._norm)
        names = [[f"experts.{e}.{part}" for part in ("gate", "up", "down")] for e in range(spec.n_experts)]
        self._experts = kernels.experts(
            ((take(gate), take(up), take(down)) for gate, up, down in names), sums.segments, spec.activation
        )

    def __call__(self, x: F32) -> F32:
        return self._experts(self._kernels.rms_norm(x, self._norm, self._eps), *self._router(x))

    def finish(self, total: F32) -> F32:
        return total
