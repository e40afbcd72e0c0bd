"""A layer's experts as products of tokens grouped by expert, for any back end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from dllama_zmq.kernels.reduction import tree_sum
from dllama_zmq.quants import F32

I64 = npt.NDArray[np.int64]


class GroupedExperts:
    """`Experts` from each expert's gated product and its down product, which returns one sum for each segment."""

    def __init__(self, gated: Sequence[Callable[[F32], F32]], down: Sequence[Callable[[F32], Sequence[F32]]]) -> None:
        self._gated, self._down = gated, down

    def __call__(self, x: F32, chosen: I64, weights: F32) -> F32:
        sums: list[F32] = []
        for expert in np.unique(chosen):  # ascending: the order in which a segment adds them
            rows, places = np.nonzero(chosen == expert)
            hidden = self._gated[expert](x[rows]) * weights[rows, places][:, None]
            for i, part in enumerate(self._down[expert](hidden)):
                if i == len(sums):
                    sums.append(np.zeros((len(x), part.shape[1]), np.float32))
                sums[i][rows] += part
        return tree_sum(sums)
