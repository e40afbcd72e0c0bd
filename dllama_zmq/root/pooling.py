"""Pool the hidden states of a text's tokens into one vector, chunk by chunk."""

from __future__ import annotations

import numpy as np

from dllama_zmq.errors import ClusterDefect, FormatError
from dllama_zmq.quants import F32
from dllama_zmq.sharding.candidates import F64


class MeanPooling:
    """The mean of the rows so far, in float64. Rows are added one after another, so the chunks do not change its
    bits."""

    def __init__(self, dim: int) -> None:
        self._sum: F64 = np.zeros(dim)
        self._n_rows = 0

    def add(self, start: int, rows: F32) -> None:
        """The hidden states (T, D) of the tokens from position `start` on: the next ones, or the first ones again.

        Raises FormatError for numbers that are infinite or NaN.
        """
        if not np.isfinite(rows).all():
            raise FormatError(
                "the hidden states are not finite numbers: the model's weights are damaged, or too large for this sync"
            )
        if start == 0:
            self._sum[:] = self._n_rows = 0
        if start != self._n_rows:
            raise ClusterDefect(f"hidden states of the position {start} were added after {self._n_rows} others")
        for row in rows:
            self._sum += row
        self._n_rows += len(rows)

    def vector(self) -> F32:
        """The mean (D,) divided by its length; zeros where it has none."""
        length = float(np.sqrt(np.square(self._sum).sum()))
        vector: F32 = (self._sum / (length or 1.0)).astype(np.float32)
        return vector
