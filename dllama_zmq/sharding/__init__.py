"""Which node holds what: slices from axis names, bytes per node. Knows no socket."""

from dllama_zmq.sharding.candidates import Ask, NodeCandidates, Reply, RowCandidates, best_candidates, merge_candidates
from dllama_zmq.sharding.memory import (
    DEFAULT_SEQ_LEN,
    PREFILL_TOKENS,
    KVBudget,
    NodeMemory,
    check_ids,
    check_prompt,
    context_length,
    node_memory,
)
from dllama_zmq.sharding.plan import MAX_NODES, Plan, check_sync, obstacles, possible_node_counts
from dllama_zmq.sharding.shard import build_shard, counted, kernel_needs

__all__ = [
    "DEFAULT_SEQ_LEN",
    "MAX_NODES",
    "PREFILL_TOKENS",
    "Ask",
    "KVBudget",
    "NodeCandidates",
    "NodeMemory",
    "Plan",
    "Reply",
    "RowCandidates",
    "best_candidates",
    "build_shard",
    "check_ids",
    "check_prompt",
    "check_sync",
    "context_length",
    "counted",
    "kernel_needs",
    "merge_candidates",
    "node_memory",
    "obstacles",
    "possible_node_counts",
]
