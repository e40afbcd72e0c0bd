"""Memory of a node, and the positions of its KV cache, estimated before anything is loaded.

Pages of a mapped model file, such as the embedding's, do not count: the operating system can take them back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct

from dllama_zmq.errors import ContextExceeded, RequestError
from dllama_zmq.kernels import KV_PAGE, KVType, pages_for
from dllama_zmq.sharding.plan import Plan
from dllama_zmq.spec import ModelSpec

DEFAULT_SEQ_LEN = 4096
"""Positions without max_seq_len: a KV cache for a model's 131,072 positions takes gigabytes that few people use."""
PREFILL_TOKENS = 128
"""Prompt tokens per step. With more, weights are read less often; but a request can be cancelled, and reports progress,
only between steps."""

_PROGRAM_BYTES, _ROOT_PROGRAM_BYTES = 42_000_000, 50_000_000  # interpreter, libraries and kernels
_RESERVED_SHARE = 0.1  # share of the free memory that stays free for other programs
_TOKEN_BYTES = 500  # of the root's tokenizer, per token of the vocabulary
_WIDE_ARRAYS, _FFN_ARRAYS = 5, 3  # float32 arrays of a step alive at once, (T, D) and (T, F); fitted to measurements


class NodeMemory(Struct, frozen=True):
    """Bytes of memory that one node needs.

    loading: the largest matrices while they are repacked, freed afterwards. step: arrays of the longest step.
    program: the process before it loads a model.
    """

    weights: int
    kv_cache: int
    loading: int
    step: int
    program: int

    @property
    def model(self) -> int:
        """The most bytes that the model adds to the process."""
        return self.weights + max(self.loading, self.kv_cache + self.step)

    @property
    def total(self) -> int:
        """The most bytes of the process."""
        return self.program + self.model


def context_length(spec: ModelSpec, max_seq_len: int | None = None) -> int:
    """Positions of a sequence: `max_seq_len` or DEFAULT_SEQ_LEN, at most the model's own."""
    return min(max_seq_len or DEFAULT_SEQ_LEN, spec.seq_len)


def check_prompt(n_tokens: int, max_tokens: int | None, seq_len: int, own_seq_len: int) -> None:
    """Raise RequestError where a prompt cannot be answered in `seq_len` positions, of the model's `own_seq_len`.

    It is ContextExceeded where the prompt is too long.
    """
    if not n_tokens:
        raise RequestError("the prompt is empty, and this tokenizer begins no text of itself; give some text")
    if n_tokens >= seq_len:
        raise ContextExceeded.of(n_tokens, seq_len, own_seq_len)
    if max_tokens is not None and max_tokens < 1:
        raise RequestError(f"max_tokens is {max_tokens}; expected 1 or more")


def check_ids(tokens: Collection[int], vocab_size: int) -> None:
    """Raise RequestError for an id that is no token of a vocabulary of `vocab_size`."""
    if len(tokens) and not 0 <= min(tokens) <= max(tokens) < vocab_size:
        wrong = next(token for token in tokens if not 0 <= token < vocab_size)
        raise RequestError(f"token {wrong}; this model's tokens are 0 to {vocab_size - 1}")


def node_memory(plan: Plan, node: int, n_positions: int, kv_type: KVType = "f16") -> NodeMemory:
    """The memory of `node` with room for `n_positions` positions of all sequences together.

    Within 5% of what simd nodes with one thread were measured to take, or up to 25 MB above that
    (tests/integration/test_memory.py).
    """
    spec, ffn, weights = plan.spec, plan.slices[node].ffn, plan.weights(node)
    ffn_width: int = ffn.stop - ffn.start
    step = PREFILL_TOKENS * 4 * (_WIDE_ARRAYS * spec.dim + _FFN_ARRAYS * ffn_width)
    if node == 0:
        step += PREFILL_TOKENS * 4 * spec.dim * (plan.n_nodes - 1)  # every worker's partial sum
    return NodeMemory(
        weights=weights.total,
        kv_cache=plan.kv_bytes(node, n_positions, kv_type),
        loading=max(weights.head, 2 * weights.largest),  # gate and up are repacked as one
        step=step,
        program=_ROOT_PROGRAM_BYTES + _TOKEN_BYTES * spec.vocab_size if node == 0 else _PROGRAM_BYTES,
    )


class KVBudget(Struct, frozen=True):
    """The number of pages of the KV cache that the nodes of a plan make room for: `n_sequences` of `n_positions` each
    or, if given, `most_bytes` on each node. trusted: most_bytes is free, even if a computer reports less memory.
    """

    plan: Plan
    kv_type: KVType
    n_positions: int
    n_sequences: int
    most_bytes: int | None = None
    trusted: bool = False

    @property
    def wanted(self) -> int:
        """Pages where memory is no limit."""
        if self.most_bytes is None:
            return self.n_sequences * pages_for(self.n_positions)
        return self.most_bytes // self.node_bytes(1)

    def node_bytes(self, n_pages: int) -> int:
        """Bytes of `n_pages` on the node that needs most for them."""
        return max(self.plan.kv_bytes(node, n_pages * KV_PAGE, self.kv_type) for node in range(self.plan.n_nodes))

    def pages(self, nodes: Sequence[int], free_bytes: int | None) -> int:
        """Pages if `nodes` share a computer that has `free_bytes` before they are loaded; None: not known. As many of
        the wanted pages as fit beside the weights into nine tenths of that; but always enough for one sequence, or for
        the part of it that most_bytes hold.
        """
        wanted = self.wanted
        if free_bytes is None or (self.trusted and self.most_bytes is not None):
            return wanted
        needed = sum(node_memory(self.plan, node, 0, self.kv_type).total for node in nodes)
        page_bytes = sum(self.plan.kv_bytes(node, KV_PAGE, self.kv_type) for node in nodes)
        left = (1 - _RESERVED_SHARE) * free_bytes - needed
        return min(wanted, max(pages_for(self.n_positions), int(left // page_bytes)))
