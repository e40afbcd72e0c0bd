"""The architectures, one file each: plain code that yields partial sums and is sent sums. Knows no file or socket.

ADDING_A_MODEL.md says how to add one; PARITY.md how close each is to its reference.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from msgspec.structs import replace

from dllama_zmq.kernels import Batch, Kernels, KVCache, Reduction
from dllama_zmq.models.comm import Comm, micro_batches
from dllama_zmq.models.gemma import Gemma2, Gemma3
from dllama_zmq.models.grok1 import Grok1
from dllama_zmq.models.llama import Llama, TensorSource
from dllama_zmq.models.mixtral import Mixtral
from dllama_zmq.models.qwen import Qwen2, Qwen3, Qwen3Moe
from dllama_zmq.quants import F32
from dllama_zmq.spec import Architecture, FloatType, ModelSpec, TensorSpec

__all__ = [
    "Comm",
    "Model",
    "attention_softcap",
    "build_model",
    "main_types",
    "micro_batches",
    "tensor_table",
    "types_in_words",
]

_MODELS: dict[Architecture, type[Llama]] = {
    "llama": Llama,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "qwen3moe": Qwen3Moe,
    "mixtral": Mixtral,
    "grok1": Grok1,
    "gemma2": Gemma2,
    "gemma3": Gemma3,
}


class Model(Protocol):
    """One node's shard of a model, ready to run."""

    def forward(self, x: F32, batch: Batch, comm: Comm) -> F32:
        """Embedded tokens (T, D), the rows of `batch` -> (T, D), before the final norm."""
        ...

    def logits(self, x: F32) -> F32:
        """Rows of forward's result (R, D) -> logits of this node's slice of the vocabulary (R, V / nodes)."""
        ...

    def hidden(self, x: F32) -> F32:
        """Rows of forward's result (R, D) -> (R, D) after the final norm."""
        ...


def tensor_table(spec: ModelSpec) -> list[TensorSpec]:
    """Every tensor of the model, in file order, with the names of its axes."""
    stored = dict(spec.stored)
    return [
        replace(tensor, float_type=stored[tensor.name]) if tensor.name in stored else tensor
        for tensor in _MODELS[spec.arch].tensors(spec)
    ]


def main_types(spec: ModelSpec) -> list[FloatType]:
    """The types that have a tenth or more of the bytes of the matrices that nodes multiply, the most bytes first."""
    n_bytes: Counter[FloatType] = Counter()
    for tensor in tensor_table(spec):
        if not tensor.root_only and tensor.axes[0] not in ("one", "experts"):
            n_bytes[tensor.float_type] += tensor.nbytes(spec)
    return [kind for kind, count in n_bytes.most_common() if 10 * count >= n_bytes.total()]


def types_in_words(spec: ModelSpec) -> str:
    """The main types of a model, such as "q4_k + q6_k"."""
    return " + ".join(kind.name.lower() for kind in main_types(spec))


def attention_softcap(spec: ModelSpec) -> float | None:
    """The limit of attention's scores (see `Llama`), or None."""
    return _MODELS[spec.arch].attention_softcap


def build_model(
    spec: ModelSpec, weights: TensorSource, kernels: Kernels, cache: KVCache, reduction: Reduction
) -> Model:
    """This node's shard of the model that `spec` describes; the arguments are those of `Llama`."""
    return _MODELS[spec.arch](spec, weights, kernels, cache, reduction)
