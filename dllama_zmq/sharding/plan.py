"""The plan: every tensor's slice on every node, from the names of its axes.

A split output axis gives a node rows. A split input axis gives it columns, and the product is a partial sum. Query
heads are split by whole heads, the FFN by `cut_values` of the types, the vocabulary anywhere. Every node has the KV
heads that its query heads read, so there may be more nodes than KV heads.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from msgspec import Struct

from dllama_zmq.errors import PlanError
from dllama_zmq.kernels import KV_PAGE, KVType, pages_for
from dllama_zmq.models import tensor_table
from dllama_zmq.spec import SYNC_FLOAT, Axis, ModelSpec, Sync, TensorSpec

MAX_NODES = 64


class NodeSlices(Struct, frozen=True):
    """One node's slice of each split axis, in values; `vocab` in rows of the head."""

    heads: slice
    kv_heads: slice
    ffn: slice
    vocab: slice

    def along(self, axis: Axis) -> slice:
        """This node's slice of `axis`; all of an axis that is not split."""
        split = {"heads": self.heads, "kv_heads": self.kv_heads, "ffn": self.ffn, "vocab": self.vocab}
        return split.get(axis, slice(None))


class NodeWeights(Struct, frozen=True):
    """Bytes of one node's regions: of all together, of the head's, and of the largest other one."""

    total: int
    head: int
    largest: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is split over its nodes; node 0 is the root. Made by `Plan.make`."""

    spec: ModelSpec
    slices: tuple[NodeSlices, ...]
    segments: int
    """Segments that a node adds up itself, so that the tree of additions is the same for any number of nodes."""
    _weights: dict[int, NodeWeights] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def make(cls, spec: ModelSpec, shares: int | Sequence[int], model: str = "") -> Plan:
        """Split `spec` over `shares` equal nodes, or in proportion to `shares`, one per node.

        Raises PlanError with the possible node counts, with shares that leave a node empty, or with a tensor whose rows
        are not whole blocks of its type; it begins with `model`.
        """
        prefix = f"{model}: " if model else ""
        if broken := _broken_rows(spec):
            raise PlanError(prefix + broken)
        n_nodes = shares if isinstance(shares, int) else len(shares)
        counts = possible_node_counts(spec)
        if n_nodes not in counts:
            raise PlanError(f"{prefix}{_obstacle(spec, n_nodes)} This model can be split over {_listed(counts)}.")
        shares = [1] * n_nodes if isinstance(shares, int) else list(shares)
        group = spec.n_heads // spec.n_kv_heads
        block = spec.cut_values
        unit = block // math.gcd(block, spec.head_dim)  # fewest heads that can be cut off, for uneven shares
        heads = [_scaled(units, unit) for units in _cut(spec.n_heads // unit, shares)]
        ffn = _cut(spec.hidden_dim // block, shares)
        vocab = _cut(spec.vocab_size, shares)
        for what, cuts in (("heads", heads), ("FFN", ffn), ("vocabulary", vocab)):
            if any(cut.start == cut.stop for cut in cuts):
                raise PlanError(
                    f"Shares of {', '.join(map(str, shares))} leave a node without any of the {what}; "
                    "make them more even."
                )
        slices = tuple(
            NodeSlices(
                heads=_scaled(h, spec.head_dim),
                kv_heads=slice(h.start // group * spec.head_dim, -(-h.stop // group) * spec.head_dim),
                ffn=_scaled(f, block),
                vocab=v,
            )
            for h, f, v in zip(heads, ffn, vocab, strict=True)
        )
        equal = len(set(shares)) == 1
        return cls(spec, slices, segments=max(counts) // n_nodes if equal else 1)

    @property
    def n_nodes(self) -> int:
        return len(self.slices)

    def region(self, tensor: TensorSpec, node: int) -> tuple[slice, slice]:
        """Rows and columns of `tensor` on `node`, as slices with bounds; no rows if only the root needs it."""
        rows, columns = tensor.shape(self.spec)
        if tensor.root_only:
            return (slice(0, rows), slice(0, columns)) if node == 0 else (slice(0, 0), slice(0, columns))
        own = self.slices[node]
        return _bounded(own.along(tensor.axes[0]), rows), _bounded(own.along(tensor.axes[1]), columns)

    def shard_tensors(self) -> list[TensorSpec]:
        """The tensors of which every node has a region, in file order."""
        return [tensor for tensor in tensor_table(self.spec) if not tensor.root_only]

    def region_bytes(self, tensor: TensorSpec, node: int) -> int:
        """Bytes of `node`'s region of `tensor`: all blocks in which its columns lie."""
        rows, columns = self.region(tensor, node)
        return _width(rows) * tensor.float_type.row_bytes(_width(tensor.float_type.whole_blocks(columns)))

    def weights(self, node: int) -> NodeWeights:
        """The weights in `node`'s memory (the embedding stays in the root's mapped file)."""
        if not self._weights:  # every status asks
            self._weights.update(enumerate(self._all_weights()))
        return self._weights[node]

    def _all_weights(self) -> list[NodeWeights]:
        """`weights` of each node. Tensors of equal axes and types have regions of equal size, and there are few such
        kinds where 128 experts a layer are 36,000 tensors."""
        tensors = {tensor.name: tensor for tensor in self.shard_tensors()}
        head = tensors.pop("head")
        kinds = Counter((tensor.axes, tensor.float_type) for tensor in tensors.values())
        found = []
        for node in range(self.n_nodes):
            each = {kind: self.region_bytes(TensorSpec("", *kind), node) for kind in kinds}
            head_bytes = self.region_bytes(head, node)
            total = head_bytes + sum(n * each[kind] for kind, n in kinds.items())
            found.append(NodeWeights(total, head_bytes, max(each.values())))
        return found

    def weight_bytes(self, node: int) -> int:
        """Bytes of all of `weights`."""
        return self.weights(node).total

    def n_kv_heads(self, node: int) -> int:
        """KV heads of `node`."""
        return _width(self.slices[node].kv_heads) // self.spec.head_dim

    def kv_bytes(self, node: int, n_positions: int, kv_type: KVType = "f16") -> int:
        """Bytes of `node`'s keys and values in the pages of `n_positions` positions."""
        values = 2 * self.spec.n_layers * self.n_kv_heads(node) * self.spec.head_dim  # of a position
        return pages_for(n_positions) * KV_PAGE * values * (2 if kv_type == "f16" else 4)

    def kv_of_head(self, node: int) -> list[int]:
        """For each query head of `node`, the index of its KV head among those of `node`."""
        head_dim, group = self.spec.head_dim, self.spec.n_heads // self.spec.n_kv_heads
        own = self.slices[node]
        first_kv = own.kv_heads.start // head_dim
        return [h // group - first_kv for h in range(own.heads.start // head_dim, own.heads.stop // head_dim)]


def possible_node_counts(spec: ModelSpec) -> list[int]:
    """The powers of two, up to MAX_NODES, over which `spec` can be split equally."""
    return [n_nodes for n_nodes, why in obstacles(spec).items() if not why]


def obstacles(spec: ModelSpec) -> dict[int, str]:
    """For each power of two up to MAX_NODES, why `spec` cannot be split over that number of nodes; empty if it can."""
    return {n_nodes: _obstacle(spec, n_nodes) for n_nodes in (1 << i for i in range(MAX_NODES.bit_length()))}


def check_sync(spec: ModelSpec, sync: Sync) -> None:
    """Raise PlanError if the model's width is not whole blocks of `sync`."""
    block = SYNC_FLOAT[sync].block_values
    if spec.dim % block:
        raise PlanError(f"sync {sync} needs whole blocks of {block}; this model is {spec.dim} wide: use f32 or f16")


def _obstacle(spec: ModelSpec, n_nodes: int) -> str:
    """A sentence on why `spec` cannot be split over `n_nodes`; empty if it can."""
    if n_nodes < 1 or n_nodes & (n_nodes - 1):
        return f"{n_nodes} nodes are not a power of two."
    if n_nodes > MAX_NODES:
        return f"This version runs at most {MAX_NODES} nodes, not {n_nodes}."
    if spec.n_heads % n_nodes:
        return f"{spec.n_heads} heads cannot be split over {n_nodes} nodes."
    block = spec.cut_values
    for what, width in (("heads", spec.q_dim), ("FFN", spec.hidden_dim)):
        if width % (n_nodes * block):
            return (
                f"{width} columns of {what} over {n_nodes} nodes are {width / n_nodes:g} each, "
                f"not a multiple of {block}."
            )
    if spec.vocab_size < n_nodes:
        return f"A vocabulary of {spec.vocab_size} cannot be split over {n_nodes} nodes."
    return ""


def _broken_rows(spec: ModelSpec) -> str:
    """A sentence on the first tensor whose rows are not whole blocks of its type; empty if there is none.

    `ModelSpec.check` sees to blocks of 32. Of a type of 256 the tensor's own columns must be a multiple.
    """
    if all(kind.block_values == kind.cut_values for kind in (spec.weight_type, *(kind for _, kind in spec.stored))):
        return ""
    for tensor in tensor_table(spec):
        columns, block = tensor.shape(spec)[1], tensor.float_type.block_values
        if columns % block:
            return f"{tensor.name} has {columns} columns, not whole {tensor.float_type.name} blocks of {block}."
    return ""


def _cut(total: int, shares: Sequence[int]) -> list[slice]:
    """Split `total` units in proportion to `shares`, in order, without a remainder."""
    bounds = [total * s // sum(shares) for s in accumulate(shares, initial=0)]
    return [slice(first, last) for first, last in pairwise(bounds)]


def _scaled(units: slice, width: int) -> slice:
    return slice(units.start * width, units.stop * width)


def _width(span: slice) -> int:
    first: int = span.start
    last: int = span.stop
    return last - first


def _bounded(span: slice, total: int) -> slice:
    first, last, _ = span.indices(total)
    return slice(first, last)


def _listed(counts: Sequence[int]) -> str:
    *most, last = map(str, counts)
    return f"{', '.join(most)} or {last} nodes" if most else f"{last} node"
