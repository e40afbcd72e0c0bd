"""The tensors of a Llama and the names of their axes: all that the plan and the file formats need to know of it."""

from __future__ import annotations

from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec


def llama_tensors(spec: ModelSpec) -> list[TensorSpec]:
    """Every tensor, in the order of a `.m` file (formats/FORMATS.md §2)."""
    weights, f32 = spec.weight_type, FloatType.F32
    tensors = [TensorSpec("embedding", ("vocab", "embed"), f32, root_only=True)]
    for i in range(spec.n_layers):
        layer = f"layers.{i}"
        tensors += [
            TensorSpec(f"{layer}.attention.q", ("heads", "embed"), weights),
            TensorSpec(f"{layer}.attention.k", ("kv_heads", "embed"), weights),
            TensorSpec(f"{layer}.attention.v", ("kv_heads", "embed"), weights),
            TensorSpec(f"{layer}.attention.o", ("embed", "heads"), weights),
            TensorSpec(f"{layer}.ffn.gate", ("ffn", "embed"), weights),
            TensorSpec(f"{layer}.ffn.down", ("embed", "ffn"), weights),
            TensorSpec(f"{layer}.ffn.up", ("ffn", "embed"), weights),
            TensorSpec(f"{layer}.attention_norm", ("one", "embed"), f32),
            TensorSpec(f"{layer}.ffn_norm", ("one", "embed"), f32),
        ]
    return [
        *tensors,
        TensorSpec("final_norm", ("one", "embed"), f32),
        TensorSpec("head", ("vocab", "embed"), weights),
    ]
