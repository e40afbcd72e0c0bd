"""One node's shard, ready to run: its weights and its KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dllama_zmq.kernels import CacheSpec, Kernels, KVType, Needs, Reduction
from dllama_zmq.models import Model, attention_softcap, build_model, tensor_table
from dllama_zmq.models.llama import TensorSource
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.sharding.plan import Plan
from dllama_zmq.spec import ModelSpec, Sync


def build_shard(
    plan: Plan,
    node: int,
    weights: TensorSource,
    kernels: Kernels,
    kv_type: KVType,
    n_pages: int,
    wire: Sync | None = None,
) -> Model:
    """The shard of `node`, with a KV cache of `n_pages` pages.

    wire: the type of partial sums on the bus; None if there is only one node.
    """
    spec = plan.spec
    cache = kernels.kv_cache(
        CacheSpec(
            spec.n_layers,
            n_pages,
            plan.n_kv_heads(node),
            spec.head_dim,
            plan.kv_of_head(node),
            kv_type,
            spec.window,
            attention_softcap(spec),
            spec.full_layers,
            None if spec.query_scalar is None else spec.query_scalar**-0.5,
        )
    )
    return build_model(spec, weights, kernels, cache, Reduction(plan.segments, wire))


def counted(weights: TensorSource, total_bytes: int, on_bytes: Callable[[int, int], None]) -> TensorSource:
    """`weights` that calls on_bytes(bytes of the tensors before, total_bytes) before each tensor."""
    done_bytes = 0

    def counted_weights(name: str) -> BlockMatrix:
        nonlocal done_bytes
        on_bytes(done_bytes, total_bytes)
        matrix = weights(name)
        done_bytes += matrix.nbytes
        return matrix

    return counted_weights


def kernel_needs(spec: ModelSpec, n_nodes: int, kv_type: KVType, exchange: Sequence[str]) -> Needs:
    """The kernels that each of `n_nodes` nodes of a model needs. exchange: those that only several nodes need."""
    matrices = [t for t in tensor_table(spec) if not t.root_only and t.axes[0] not in ("one", "experts")]
    experts = [t for t in matrices if ".experts." in t.name]
    types, expert_types = (frozenset(t.float_type for t in tensors) for tensors in (matrices, experts))
    return Needs(types, expert_types, kv_type, tuple(exchange) if n_nodes > 1 else ())
