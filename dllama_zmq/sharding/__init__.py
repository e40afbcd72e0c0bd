"""Which node holds what: axis names turned into slices, bytes per node and bytes per token. Knows no socket."""

from dllama_zmq.sharding.candidates import (
    NodeCandidates,
    RowCandidates,
    best_candidates,
    merge_candidates,
)
from dllama_zmq.sharding.plan import MAX_NODES, NodePart, Plan, possible_node_counts
from dllama_zmq.sharding.shard import build_shard, counted, kernel_needs
from dllama_zmq.sharding.traffic import Traffic, candidate_bytes, step_traffic

__all__ = [
    "MAX_NODES",
    "NodeCandidates",
    "NodePart",
    "Plan",
    "RowCandidates",
    "Traffic",
    "best_candidates",
    "build_shard",
    "candidate_bytes",
    "counted",
    "kernel_needs",
    "merge_candidates",
    "possible_node_counts",
    "step_traffic",
]
