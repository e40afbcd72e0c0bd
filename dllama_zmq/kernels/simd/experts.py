"""A layer's experts over the kernels of `mixture.py`, or of `products.py` for many tokens. Knows no numba."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dllama_zmq.kernels.grouped import GroupedExperts
from dllama_zmq.kernels.simd.arrays import address
from dllama_zmq.kernels.simd.job import Job, indices, n_fields
from dllama_zmq.kernels.simd.layout import X_BLOCK, ExpertsPart, ProductJob, QuantizeJob
from dllama_zmq.kernels.simd.linear import Product
from dllama_zmq.kernels.simd.runtime import Runtime
from dllama_zmq.quants import F32

_AT, _EXPERTS = indices(ProductJob), indices(ExpertsPart, n_fields(ProductJob))


class PerSegment:
    """A matrix's product with one sum for each segment: x (T, columns) -> `segments` arrays (T, rows)."""

    def __init__(self, product: Product, segments: int) -> None:
        self.product = product
        self._segments = segments

    def __call__(self, x: F32) -> list[F32]:
        return [self.product.segment(x, i, self._segments) for i in range(self._segments)]


class SimdExperts:
    """Experts whose gated products are all of one type, and whose down products are too."""

    def __init__(self, runtime: Runtime, gated: Sequence[Product], down: Sequence[Product], segments: int) -> None:
        self._runtime = runtime
        self._gated_pairs = np.array([product.base for product in gated], np.int64)
        self._down_pairs = np.array([product.base for product in down], np.int64)
        self._gated, self._down, self._segments = gated[0], down[0], segments
        self._gated_job, self._down_job = _job(gated[0], 1), _job(down[0], segments)
        self._quantize = Job(*QuantizeJob())
        runtime.address_of(f"experts_gated_{self._gated.kind}")  # loaded now, and not by the first token
        runtime.address_of(f"experts_down_{self._down.kind}")
        self._grouped = GroupedExperts(gated, [PerSegment(product, segments) for product in down])

    def __call__(self, x: F32, chosen: npt.NDArray[np.int64], weights: F32) -> F32:
        n_tokens, n_chosen = chosen.shape
        if chosen.size > len(self._down_pairs):  # tokens would read more experts than there are: let them share
            return self._grouped(x, chosen, weights)
        runtime, gated, down = self._runtime, self._gated_job.fields, self._down_job.fields
        uses = chosen.reshape(-1)
        table, weights = self._gated_pairs[uses], np.ascontiguousarray(weights, np.float32)
        hidden: F32
        hidden, gated[_AT.out] = runtime.array(len(uses), self._gated.rows)
        held, gated[_AT.x] = self._input(np.ascontiguousarray(x, np.float32), self._gated)
        gated[_EXPERTS.table], gated[_EXPERTS.weights] = address(table), address(weights)
        gated[_EXPERTS.n_chosen] = n_chosen
        self._run(f"experts_gated_{self._gated.kind}", self._gated_job, len(uses) * self._gated.n_items)
        table = self._down_pairs[uses]
        out: F32
        out, down[_AT.out] = runtime.array(n_tokens, self._down.rows)
        held, down[_AT.x] = self._input(hidden, self._down)
        down[_EXPERTS.table], down[_EXPERTS.n_chosen] = address(table), n_chosen
        self._run(f"experts_down_{self._down.kind}", self._down_job, n_tokens * self._down.n_items)
        del held
        return out

    def _input(self, x: F32, product: Product) -> tuple[object, int]:
        """x as a product takes it, each row as a group of one token, and its address."""
        if not product.integer:
            return x, address(x)
        values, at = self._runtime.array(1, x.size // 32 * X_BLOCK, np.uint8)
        self._quantize.fill(QuantizeJob(x=address(x), out=at, n_columns=x.size, n_tokens=1))
        self._runtime.parallel_for("quantize", self._quantize, 1)
        return values, at

    def _run(self, name: str, job: Job, n_items: int) -> None:
        self._runtime.parallel_for(name, job, n_items, max(1, n_items // (16 * self._runtime.pool.threads)))


def _job(product: Product, segments: int) -> Job:
    """The arguments of `experts_*` for experts like `product`."""
    width = product.columns // segments
    part = ExpertsPart(items_each=product.n_items, n_segments=segments, segment_units=width // product.unit_columns)
    return Job(
        *ProductJob(
            pair_bytes=product.pair_bytes,
            x_stride=4 * width,
            out_stride=4 * product.rows,
            n_rows=product.rows,
            n_columns=width,
            n_segments=1,
            epilogue=product.epilogue,
            first_unit=product.first_unit,
        ),
        *part,
    )
