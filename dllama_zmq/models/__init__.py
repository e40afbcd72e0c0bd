"""The architectures: one file each, plain code over `comm.all_reduce`. Knows no file format and no socket."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from dllama_zmq.kernels import Kernels, KVCache, Run
from dllama_zmq.models.cache import kv_cache_bytes
from dllama_zmq.models.comm import Comm
from dllama_zmq.models.llama import Llama
from dllama_zmq.models.llama_tensors import llama_tensors
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.spec import ModelSpec, TensorSpec

__all__ = ["Comm", "Model", "Run", "build_model", "kv_cache_bytes", "tensor_table"]

_TENSORS: dict[str, Callable[[ModelSpec], list[TensorSpec]]] = {"llama": llama_tensors}
_MODELS = {"llama": Llama}


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
        for tensor in _TENSORS[spec.arch](spec)
    ]


def build_model(
    spec: ModelSpec,
    take: Callable[[str], BlockMatrix],
    kernels: Kernels,
    cache: KVCache,
    segments: int,
) -> Model:
    """This node's share of the model that `spec` names; the arguments are those of `Llama`."""
    return _MODELS[spec.arch](spec, take, kernels, cache, segments)
