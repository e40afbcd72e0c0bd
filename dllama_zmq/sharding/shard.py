"""One node's weights and KV slots, made ready to run."""

from __future__ import annotations

from collections.abc import Mapping

from dllama_zmq.kernels import Kernels
from dllama_zmq.models import KVCache, Model, build_model
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.sharding.plan import Plan


def build_shard(
    plan: Plan, node: int, weights: Mapping[str, BlockMatrix], kernels: Kernels, seq_len: int, n_slots: int = 1
) -> Model:
    """The model of `node` over its own slices: `weights` by tensor name, KV room for `seq_len` tokens a slot."""
    spec = plan.spec
    cache = KVCache(spec.n_layers, n_slots, plan.n_kv_heads(node), seq_len, spec.head_dim)
    return build_model(spec, weights, kernels, cache, plan.kv_of_head(node), plan.segments)
