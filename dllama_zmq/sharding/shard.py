"""One node's weights and KV slots, made ready to run."""

from __future__ import annotations

from collections.abc import Callable

from dllama_zmq.kernels import Kernels, KVType, Needs, Sums
from dllama_zmq.models import Model, attention_softcap, build_model, tensor_table
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.sharding.plan import Plan
from dllama_zmq.spec import ModelSpec, Sync


def build_shard(
    plan: Plan, node: int, take: Callable[[str], BlockMatrix], kernels: Kernels, kv_type: KVType, seq_len: int,
    n_slots: int = 1, wire: Sync | None = None,
) -> Model:  # fmt: skip
    """The model of `node`, KV room for `seq_len` tokens a slot.

    take: the node's slice of a tensor, by name; each is asked for once and let go of when it is ready, so that nothing
    is in memory twice. wire: the type in which partial sums cross the bus, where they do.
    """
    spec = plan.spec
    cache = kernels.kv_cache(
        spec.n_layers, n_slots, plan.n_kv_heads(node), seq_len, spec.head_dim, plan.kv_of_head(node), kv_type,
        spec.window, attention_softcap(spec),
    )  # fmt: skip
    return build_model(spec, take, kernels, cache, Sums(plan.segments, wire))


def counted(
    take: Callable[[str], BlockMatrix], total_bytes: int, on_taken: Callable[[int, int], None]
) -> Callable[[str], BlockMatrix]:
    """`take` that calls on_taken(bytes taken and made ready before, total_bytes) each time."""
    done_bytes = 0

    def take_and_count(name: str) -> BlockMatrix:
        nonlocal done_bytes
        on_taken(done_bytes, total_bytes)
        matrix = take(name)
        done_bytes += matrix.data.nbytes
        return matrix

    return take_and_count


def kernel_needs(spec: ModelSpec, n_nodes: int, kv_type: KVType) -> Needs:
    """What each of `n_nodes` nodes of a model asks of its kernels."""
    matrices = [t for t in tensor_table(spec) if not t.root_only and t.axes[0] not in ("one", "experts")]
    experts = [t for t in matrices if ".experts." in t.name]
    types, of_experts = (frozenset(t.float_type for t in tensors) for tensors in (matrices, experts))
    return Needs(types, of_experts, kv_type, several=n_nodes > 1)
