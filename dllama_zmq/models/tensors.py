"""Pieces of the architectures' tensor tables (`Llama.tensors`). The table is all that plan and file formats know of a
model.

Names of a layer's tensors lack their prefix "layers.i."; the order is that of a `.m` file (formats/FORMATS.md §2).
"""

from __future__ import annotations

from collections.abc import Sequence

from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec


def decoder_tensors(spec: ModelSpec, layer: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Embedding, `layer` once for each layer, final norm and head."""
    return [
        TensorSpec("embedding", ("vocab", "embed"), FloatType.F32, root_only=True),
        *(
            TensorSpec(f"layers.{i}.{tensor.name}", tensor.axes, tensor.float_type, tensor.root_only)
            for i in range(spec.n_layers)
            for tensor in layer
        ),
        norm_tensor("final_norm"),
        TensorSpec("head", ("vocab", "embed"), spec.weight_type),
    ]


def attention_tensors(spec: ModelSpec) -> list[TensorSpec]:
    """q, k, v and o."""
    return [
        TensorSpec("attention.q", ("heads", "embed"), spec.weight_type),
        TensorSpec("attention.k", ("kv_heads", "embed"), spec.weight_type),
        TensorSpec("attention.v", ("kv_heads", "embed"), spec.weight_type),
        TensorSpec("attention.o", ("embed", "heads"), spec.weight_type),
    ]


def network_tensors(spec: ModelSpec, name: str, order: Sequence[str]) -> list[TensorSpec]:
    """gate, down and up of a feed-forward network in `order`."""
    return [
        TensorSpec(f"{name}.{part}", ("embed", "ffn") if part == "down" else ("ffn", "embed"), spec.weight_type)
        for part in order
    ]


def norm_tensor(name: str) -> TensorSpec:
    """The gain of a norm (D,)."""
    return TensorSpec(name, ("one", "embed"), FloatType.F32)
