"""What a node keeps in memory, and how many positions it makes room for: the same arithmetic for everybody who asks.

Counted is what the kernel cannot take back: the pages of a mapped model file, the embedding's too, are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from dllama_zmq.kernels import KVType
from dllama_zmq.sharding.plan import Plan
from dllama_zmq.spec import ModelSpec

DEFAULT_SEQ_LEN = 4096
"""Positions where max_seq_len is not given: a model of 131072 would ask for gigabytes of KV cache that few use."""
PREFILL_TOKENS = 128
"""Prompt tokens in one step: between two of them a request can be cancelled and its progress told. More make weights
read less often, but a slow cluster silent for longer."""

_PROGRAM_BYTES, _ROOT_PROGRAM_BYTES = 42_000_000, 50_000_000  # the interpreter's, libraries' and kernels' own
_TOKEN_BYTES = 500  # of the root's tokenizer, for each token of the vocabulary
_WIDE_ARRAYS, _FFN_ARRAYS = 5, 3  # of a step's tokens, float32, alive at once; both fitted to what was measured


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """Bytes of memory that one node needs.

    loading: beside the weights while the last of them are packed, gone afterwards. step: what the longest step takes.
    program: what the process has before it holds anything of the model.
    """

    weights: int
    kv_cache: int
    loading: int
    step: int
    program: int

    @property
    def model(self) -> int:
        """Bytes that the model adds to the process, at most."""
        return self.weights + max(self.loading, self.kv_cache + self.step)

    @property
    def total(self) -> int:
        """Bytes of the process, at most."""
        return self.program + self.model


def context_length(spec: ModelSpec, max_seq_len: int | None = None) -> int:
    """Positions that a slot has room for: `max_seq_len`, or DEFAULT_SEQ_LEN; never more than the model's own."""
    return min(max_seq_len or DEFAULT_SEQ_LEN, spec.seq_len)


def node_memory(plan: Plan, node: int, seq_len: int, n_slots: int = 1, kv_type: KVType = "f16") -> NodeMemory:
    """What `node` of `plan` needs, with room for `seq_len` positions in each slot.

    Within 5% and 25 MB above what simd nodes of one thread were measured to take (tests/integration/test_memory.py).
    """
    spec, part = plan.spec, plan.parts[node]
    region = {tensor.name: plan.region_bytes(tensor, node) for tensor in plan.shard_tensors()}
    widest_pair = 2 * max(nbytes for name, nbytes in region.items() if name != "head")  # gate and up are packed as one
    ffn_width: int = part.ffn.stop - part.ffn.start
    step = PREFILL_TOKENS * 4 * (_WIDE_ARRAYS * spec.dim + _FFN_ARRAYS * ffn_width)
    if node == 0:
        step += PREFILL_TOKENS * 4 * spec.dim * (plan.n_nodes - 1)  # every worker's partial sum
    return NodeMemory(
        weights=plan.weight_bytes(node),
        kv_cache=plan.kv_bytes(node, seq_len, n_slots, kv_type),
        loading=max(region["head"], widest_pair),
        step=step,
        program=_ROOT_PROGRAM_BYTES + _TOKEN_BYTES * spec.vocab_size if node == 0 else _PROGRAM_BYTES,
    )


def largest_node(plan: Plan, seq_len: int, n_slots: int = 1, kv_type: KVType = "f16") -> NodeMemory:
    """The memory of the node that needs most."""
    every = (node_memory(plan, node, seq_len, n_slots, kv_type) for node in range(plan.n_nodes))
    return max(every, key=lambda memory: memory.total)
