"""The needs of a cluster's nodes where they run: memory, by the plan, and the model's files."""

from __future__ import annotations

from dataclasses import dataclass

from dllama_zmq.cluster import ClusterFile
from dllama_zmq.formats import open_model
from dllama_zmq.kernels import KV_PAGE
from dllama_zmq.render.deployed import ModelFiles
from dllama_zmq.root.fitting import check_kv_memory
from dllama_zmq.sharding import KVBudget, Plan, context_length, node_memory

MIB = 1 << 20
_KEPT_FREE = 0.1  # a node leaves this share of its memory free, so it must get more than it uses
_COMPILING_BYTES = 512 * MIB
"""The first start compiles kernels in three processes of 120 MiB each; the root's front and API server take 50."""


@dataclass(frozen=True, slots=True)
class Needs:
    """root_mib, worker_mib: memory of a node with a full KV cache. worker_weight_bytes: of the largest worker."""

    root_mib: int
    worker_mib: int
    worker_weight_bytes: int
    model: ModelFiles


def needs_of(file: ClusterFile) -> Needs:
    """Raises ConfigError, FormatError, PlanError if the model cannot be read or split like this."""
    cluster = file.cluster
    with open_model(file.model_path(), cluster.weight_type) as model:
        plan = Plan.make(model.spec, cluster.n_nodes, str(model.path))
        seq_len = context_length(model.spec, cluster.max_seq_len)
        budget = KVBudget(plan, cluster.kv_cache, seq_len, cluster.max_sequences, cluster.kv_bytes)
        check_kv_memory(budget)
        files = ModelFiles.of(file, model.paths)
    positions = budget.wanted * KV_PAGE
    nodes = [node_memory(plan, node, positions, cluster.kv_cache) for node in range(cluster.n_nodes)]
    mib = [int((node.total / (1 - _KEPT_FREE) + _COMPILING_BYTES) / MIB) + 1 for node in nodes]
    return Needs(mib[0], max(mib[1:], default=0), max((node.weights for node in nodes[1:]), default=0), files)
