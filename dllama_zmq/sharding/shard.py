"""One node's weights and KV slots, made ready to run."""

from __future__ import annotations

from collections.abc import MutableMapping

from dllama_zmq.kernels import Kernels, KVType
from dllama_zmq.models import Model, build_model
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.sharding.plan import Plan


def build_shard(
    plan: Plan, node: int, weights: MutableMapping[str, BlockMatrix], kernels: Kernels, kv_type: KVType, seq_len: int,
    n_slots: int = 1,
) -> Model:  # fmt: skip
    """The model of `node` over its own slices: `weights` by tensor name, KV room for `seq_len` tokens a slot.

    Empties `weights`, so that nothing is in memory twice.
    """
    spec = plan.spec
    cache = kernels.kv_cache(
        spec.n_layers, n_slots, plan.n_kv_heads(node), seq_len, spec.head_dim, plan.kv_of_head(node), kv_type
    )
    return build_model(spec, weights, kernels, cache, plan.segments)
