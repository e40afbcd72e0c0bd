"""The architectures: one file each, plain code that yields partial sums and is sent sums. No file format, no socket.

ADDING_A_MODEL.md says how another one joins; PARITY.md how near each is to its reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from dllama_zmq.kernels import Kernels, KVCache, Run, Sums
from dllama_zmq.models.cache import kv_cache_bytes
from dllama_zmq.models.comm import Comm, micro_batches
from dllama_zmq.models.grok1 import SOFTCAP, Grok1, grok1_tensors
from dllama_zmq.models.llama import Llama, Take, llama_tensors
from dllama_zmq.models.mixtral import Mixtral, mixtral_tensors
from dllama_zmq.models.qwen import Qwen2, Qwen3, Qwen3Moe, qwen2_tensors, qwen3_moe_tensors, qwen3_tensors
from dllama_zmq.quants import F32
from dllama_zmq.spec import Architecture, ModelSpec, TensorSpec

__all__ = [
    "Comm", "Model", "Run", "attention_softcap", "build_model", "kv_cache_bytes", "micro_batches", "tensor_table",
]  # fmt: skip

_MODELS: dict[Architecture, tuple[type[Llama], Callable[[ModelSpec], list[TensorSpec]]]] = {
    "llama": (Llama, llama_tensors),
    "qwen2": (Qwen2, qwen2_tensors),
    "qwen3": (Qwen3, qwen3_tensors),
    "qwen3moe": (Qwen3Moe, qwen3_moe_tensors),
    "mixtral": (Mixtral, mixtral_tensors),
    "grok1": (Grok1, grok1_tensors),
}


class Model(Protocol):
    """One node's share of a model, ready to run."""

    def forward(self, x: F32, runs: Sequence[Run], comm: Comm) -> F32:
        """Embedded tokens (T, D) -> (T, D), before the final norm; `runs` cover the rows in order."""
        ...

    def logits(self, x: F32) -> F32:
        """Rows of forward's result (R, D) -> this node's part of the vocabulary (R, V / nodes)."""
        ...


def tensor_table(spec: ModelSpec) -> list[TensorSpec]:
    """Every tensor of the model, in file order, with the names of its axes."""
    stored = dict(spec.stored)
    return [
        dataclasses.replace(tensor, float_type=stored[tensor.name]) if tensor.name in stored else tensor
        for tensor in _MODELS[spec.arch][1](spec)
    ]


def attention_softcap(spec: ModelSpec) -> float | None:
    """What the scores of attention are kept within (`Kernels.kv_cache`), where the architecture does that."""
    return SOFTCAP if spec.arch == "grok1" else None


def build_model(spec: ModelSpec, take: Take, kernels: Kernels, cache: KVCache, sums: Sums) -> Model:
    """This node's share of the model that `spec` names; the arguments are those of `Llama`."""
    return _MODELS[spec.arch][0](spec, take, kernels, cache, sums)
