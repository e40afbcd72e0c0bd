"""A mixture of experts: a router chooses a few feed-forward networks for each token. Each is split over all nodes.

All nodes must choose the same experts on any CPU and back end, so the choice is made in whole numbers: see `Router`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dllama_zmq.kernels import Kernels, Reduction
from dllama_zmq.models.alike import F64, whole_bits, whole_rows
from dllama_zmq.models.llama import Half, TensorSource, vector
from dllama_zmq.models.tensors import network_tensors
from dllama_zmq.quants import F32
from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec

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
        self._bits = whole_bits(spec.dim)
        rows, self._steps = whole_rows(router, self._bits)
        self._columns = np.ascontiguousarray(rows.T)
        self._gain = gain

    def __call__(self, x: F32) -> tuple[I64, F32]:
        """x (T, D) -> chosen experts (T, k), ascending, and their weights (T, k). Ties go to the lower number."""
        values, steps = whole_rows(x * self._gain, self._bits)
        logits: F64 = values @ self._columns * self._steps * steps[:, None]
        chosen = np.sort(np.argsort(-logits, axis=1, kind="stable")[:, : self._n_chosen], axis=1)
        mean_square = np.mean(np.square(x, dtype=np.float64), axis=1, keepdims=True)
        logits /= np.sqrt(mean_square + self._eps)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        chosen_weights = np.take_along_axis(weights, chosen, axis=1)
        chosen_weights /= (chosen_weights if self._norm_topk else weights).sum(axis=1, keepdims=True)
        return chosen, chosen_weights.astype(np.float32)


class MixtureOfExperts(Half):
    """A layer's experts: this node's columns of each."""

    norm = "ffn_norm"
    order: Sequence[str] = ("up", "gate", "down")
    """An expert's matrices, in file order."""
    router_type: FloatType | None = None
    """The router's type; None: that of the weights."""

    def __init__(self, spec: ModelSpec, weights: TensorSource, kernels: Kernels, reduction: Reduction) -> None:
        super().__init__(spec, weights, kernels, reduction)
        self._norm = vector(weights(self.norm))
        self._router = Router(spec, weights("router").dequantize(), self._norm)
        names = [[f"experts.{e}.{part}" for part in ("gate", "up", "down")] for e in range(spec.n_experts)]
        self._experts = kernels.experts(
            ((weights(gate), weights(up), weights(down)) for gate, up, down in names),
            reduction.segments,
            spec.activation,
        )

    @classmethod
    def tensors(cls, spec: ModelSpec) -> list[TensorSpec]:
        """The router, then each expert's matrices. Every expert is split over all nodes."""
        router_type = spec.weight_type if cls.router_type is None else cls.router_type
        experts = [one for e in range(spec.n_experts) for one in network_tensors(spec, f"experts.{e}", cls.order)]
        return [TensorSpec("router", ("experts", "embed"), router_type), *experts]

    def __call__(self, x: F32) -> F32:
        return self._experts(self._kernels.rms_norm(x, self._norm, self._spec.norm_eps), *self._router(x))
