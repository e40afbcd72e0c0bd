"""A layer's experts over the kernels of `mixture.py`, and of `products.py` where tokens are many. Knows no numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dllama_zmq.kernels.grouped import GroupedExperts
from dllama_zmq.kernels.simd.job import Job
from dllama_zmq.kernels.simd.layout import QUANTIZE_FIELDS, X_BLOCK
from dllama_zmq.quants import F32

if TYPE_CHECKING:
    from dllama_zmq.kernels.simd.backend import Simd
    from dllama_zmq.kernels.simd.linear import Product


class Apart:
    """A matrix's product, its segments' sums apart: x (T, columns) -> `segments` arrays (T, rows)."""

    def __init__(self, product: Product, segments: int) -> None:
        self.product = product
        self._segments = segments

    def __call__(self, x: F32) -> list[F32]:
        return [self.product.segment(x, i, self._segments) for i in range(self._segments)]


class SimdExperts:
    """Experts whose gated products are all of one type, and whose down products are too."""

    def __init__(self, kernels: Simd, gated: Sequence[Product], down: Sequence[Product], segments: int) -> None:
        self._kernels = kernels
        self._gated_at = np.array([product.base for product in gated], np.int64)
        self._down_at = np.array([product.base for product in down], np.int64)
        self._gated, self._down, self._segments = gated[0], down[0], segments
        width = self._down.columns // segments
        first, last = self._gated, self._down
        self._gated_job = Job(
            0, first.pair_bytes, 0, 4 * first.columns, 0, 4 * first.rows, first.rows, first.columns, 1, 0, first.form,
            0, 0, 0, first.n_items, 1, 0,
        )  # fmt: skip
        self._down_job = Job(
            0, last.pair_bytes, 0, 4 * width, 0, 4 * last.rows, last.rows, width, 1, 0, last.form,
            0, 0, 0, last.n_items, segments, last.pair_bytes // segments,
        )  # fmt: skip
        self._quantize = Job(*[0] * QUANTIZE_FIELDS)
        kernels.address_of(f"experts_gated_{first.kind}")  # loaded now, and not by the first token
        kernels.address_of(f"experts_down_{last.kind}")
        self._grouped = GroupedExperts(gated, [Apart(product, segments) for product in down])

    def __call__(self, x: F32, chosen: npt.NDArray[np.int64], weights: F32) -> F32:
        n_tokens, n_chosen = chosen.shape
        if chosen.size > len(self._down_at):  # tokens would read more experts than there are: let them share
            return self._grouped(x, chosen, weights)
        kernels, gated, down = self._kernels, self._gated_job.fields, self._down_job.fields
        uses = chosen.reshape(-1)
        table, weights = self._gated_at[uses], np.ascontiguousarray(weights, np.float32)
        hidden: F32
        hidden, gated[4] = kernels.array(len(uses), self._gated.rows)
        held, gated[2] = self._input(np.ascontiguousarray(x, np.float32), self._gated)
        gated[11], gated[12], gated[13] = table.ctypes.data, weights.ctypes.data, n_chosen
        self._run(f"experts_gated_{self._gated.kind}", self._gated_job, len(uses) * self._gated.n_items)
        table = self._down_at[uses]
        out: F32
        out, down[4] = kernels.array(n_tokens, self._down.rows)
        held, down[2] = self._input(hidden, self._down)
        down[11], down[13] = table.ctypes.data, n_chosen
        self._run(f"experts_down_{self._down.kind}", self._down_job, n_tokens * down[14])
        del held
        return out

    def _input(self, x: F32, product: Product) -> tuple[object, int]:
        """x, each of its rows as one group of one token: as it is, or quantized; and its address."""
        if not product.integer:
            return x, x.ctypes.data
        values, at = self._kernels.array(1, x.size // 32 * X_BLOCK, np.uint8)
        job = self._quantize.fields
        job[2], job[4], job[7], job[9] = x.ctypes.data, at, x.size, 1
        self._kernels.pool.run_alone(self._kernels.address_of("quantize"), self._quantize.address, 1)
        return values, at

    def _run(self, name: str, job: Job, n_items: int) -> None:
        chunk = max(1, n_items // (16 * self._kernels.pool.threads))
        self._kernels.pool.run(self._kernels.address_of(name), job.address, n_items, chunk)
