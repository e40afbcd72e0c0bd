"""The size of a KV cache."""

from __future__ import annotations

from dllama_zmq.kernels import KVType


def kv_cache_bytes(
    n_layers: int, n_slots: int, n_kv_heads: int, seq_len: int, head_dim: int, kv_type: KVType = "f16"
) -> int:
    """Bytes of a full KV cache of these sizes."""
    return n_layers * n_slots * 2 * n_kv_heads * seq_len * head_dim * (2 if kv_type == "f16" else 4)
