"""The one order in which partial sums are added, within a node and between nodes."""

from __future__ import annotations

from collections.abc import Sequence

from dllama_zmq.quants import F32


def tree_sum(parts: Sequence[F32]) -> F32:
    """Add arrays of equal shape as a balanced tree over their order: ((0 + 1) + (2 + 3)) + ...

    Floating-point addition is not associative, so its order must not depend on how many nodes share the work. With
    2^n equal parts, any 2^m nodes holding 2^(n-m) neighbouring parts each compute sub-trees of this same tree.
    """
    level = list(parts)
    while len(level) > 1:
        pairs = [level[i] + level[i + 1] for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]
