"""Check whether a model fits into this computer's memory, before any of it is read."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from dllama_zmq.errors import PlanError
from dllama_zmq.kernels import KV_PAGE, KVType, pages_for
from dllama_zmq.reporting import human_bytes, plural
from dllama_zmq.sharding import KVBudget, Plan, node_memory, possible_node_counts

_MIN_POSITIONS = 512


class Wish(Struct, frozen=True):
    """The nodes to run on this computer: `nodes` of a plan, with room for `seq_len` positions; `model` is its name."""

    plan: Plan
    nodes: Sequence[int]
    seq_len: int
    kv_type: KVType
    model: str

    def each_bytes(self, plan: Plan | None = None) -> int:
        """Bytes of memory that the largest node needs, under `plan` if one is given."""
        plan = plan or self.plan
        return max(node_memory(plan, i, self.seq_len, kv_type=self.kv_type).total for i in range(plan.n_nodes))

    def all_bytes(self, seq_len: int) -> int:
        """Bytes of memory that the nodes here need together, with room for `seq_len` positions."""
        return sum(node_memory(self.plan, i, seq_len, kv_type=self.kv_type).total for i in self.nodes)


def kv_room(n_pages: int, seq_len: int, n_sequences: int, each_bytes: int) -> str:
    """The room of a KV cache of `n_pages`, in words. each_bytes: its size on the largest node. n_sequences: how many
    may run."""
    n_full = n_pages // pages_for(seq_len)
    answers = f"{plural(n_full, 'answer')} of {seq_len:,}"
    if n_full < n_sequences:
        answers += f"; max_sequences is {n_sequences}"
    return f"KV cache: room for {n_pages * KV_PAGE:,} positions ({answers}), {human_bytes(each_bytes)} on each node"


def check_kv_memory(budget: KVBudget) -> None:
    """Raise PlanError where `kv_memory` has no room for one sequence."""
    one = pages_for(budget.n_positions)
    if budget.most_bytes is None or budget.wanted >= one:
        return
    fits = budget.wanted * KV_PAGE
    shorter = f", or max_seq_len to {fits}" if fits else ""
    raise PlanError(
        f"kv_memory is {human_bytes(budget.most_bytes)}, and one answer of {budget.n_positions:,} positions needs "
        f"{human_bytes(budget.node_bytes(one))} on each of {plural(budget.plan.n_nodes, 'node')}: set kv_memory to at "
        f"least that{shorter}"
    )


def check_fits(wish: Wish, free_bytes: int | None, force: str = "--force") -> None:
    """Raise PlanError if that needs more memory than the `free_bytes` that this computer has.

    free_bytes None: not known, and nothing is refused. force: what to do to start it nevertheless.
    """
    if words := shortage(wish, free_bytes):
        raise PlanError(f"{words}; {force} starts it nevertheless")


def shortage(wish: Wish, free_bytes: int | None) -> str:
    """The memory that this computer lacks, and with how many nodes or positions the model would fit; empty if it has
    enough."""
    needed = wish.all_bytes(wish.seq_len)
    if free_bytes is None or needed <= free_bytes:
        return ""
    words = [f"{wish.model} needs {human_bytes(wish.each_bytes())} on each of {wish.plan.n_nodes} nodes"]
    if len(wish.nodes) > 1:
        words[0] += f", {human_bytes(needed)} for the {len(wish.nodes)} of them on this computer"
    words.append(f"this computer has {human_bytes(free_bytes)} free")
    words.append(_by_nodes(wish, free_bytes))
    seq_len = wish.seq_len
    while (seq_len := seq_len // 2) >= _MIN_POSITIONS:
        if wish.all_bytes(seq_len) <= free_bytes:
            words.append(f"with max_seq_len: {seq_len} it fits")
            break
    return "; ".join(words)


def _by_nodes(wish: Wish, free_bytes: int) -> str:
    """The number of nodes with which the model would fit, each on a computer like this one."""
    counts = possible_node_counts(wish.plan.spec)
    for n_nodes in counts:
        each = wish.each_bytes(Plan.make(wish.plan.spec, n_nodes))
        if each <= free_bytes:
            break
    if each > free_bytes:
        return f"even {n_nodes} nodes need {human_bytes(each)} each"
    if n_nodes == 1:
        return f"1 node needs {human_bytes(each)}"
    where = "" if len(wish.nodes) == 1 else " on computers of their own"
    return f"{n_nodes} nodes{where} need {human_bytes(each)} each"
