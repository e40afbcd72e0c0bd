"""Products as the interface has them, over the kernels of `products.py` and `rows.py`. Knows no numba.

Weights are repacked once into tiles (`packing.py`), by all threads, straight from wherever they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dllama_zmq.kernels.interface import Linear, Norm
from dllama_zmq.kernels.simd import layout
from dllama_zmq.kernels.simd.arrays import address, float_bits, rows_of
from dllama_zmq.kernels.simd.chain import Chain
from dllama_zmq.kernels.simd.host import host_target
from dllama_zmq.kernels.simd.job import Job
from dllama_zmq.kernels.simd.layout import AS_F16, AS_F32, AS_Q80, GATED, GATED_GELU, LANES, Q40, Q41, Q80, X_BLOCK
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.spec import FloatType

if TYPE_CHECKING:
    from dllama_zmq.kernels.simd.backend import Simd

_KINDS = {
    FloatType.F32: ("f32", "32", 2 * 64),
    FloatType.F16: ("f16", "16", 2 * 32),
    FloatType.BF16: ("bf16", "16", 2 * 32),
    FloatType.Q40: ("q40", "q40", Q40.nbytes),
    FloatType.Q41: ("q41", "q41", Q41.nbytes),
    FloatType.Q80: ("q80", "q80", Q80.nbytes),
}
"""The names of a type's product and packing kernels, and the bytes of a block (or column) of a pair of tiles."""
_PAIRS, _X, _OUT, _N_COLUMNS, _N_SEGMENTS, _N_TOKENS = (
    place // 8 for place in
    (layout.PAIRS, layout.X, layout.OUT, layout.N_COLUMNS, layout.N_SEGMENTS, layout.N_TOKENS)
)  # fmt: skip
_NORM_X, _NORM_OUT = layout.NORM_X // 8, layout.NORM_OUT // 8
_WIRE = {AS_F16: FloatType.F16, AS_Q80: FloatType.Q80}
"""The types of results that are no f32."""
_CHUNK_BYTES = 512 * 1024
"""Weights that one thread takes at a time: so many that the stop before the next ones, where its stream breaks off,
costs little, and so few that all end together."""
ALONE_TOKENS = 4
"""Up to so many tokens a norm, a rotation or a quantization is done by one thread: the others would come too late."""


class Product:
    """One or several matrices as tiles: `linear`, or `gated` where `form` says so, or one matrix's result as `pack`
    makes it (AS_F16, AS_Q80; its rows are whole runs of 32).

    A call is one chain: of x, what the product takes, into the back end's room, and the product. It takes x quantized,
    by the norm first where there is one; of weights that are floats, x as it is or its norm.
    """

    def __init__(
        self, kernels: Simd, matrices: Sequence[BlockMatrix], segments: int, form: int = AS_F32,
        norm: Norm | None = None,
    ) -> None:  # fmt: skip
        kind = matrices[0].float_type
        self._kernels = kernels
        self.kind, self.form, self.integer = _KINDS[kind][0], form, kind.block_values == 32
        self.gated = form in (GATED, GATED_GELU)
        self.columns = matrices[0].columns
        n_tiles = [-(-matrix.rows // LANES) for matrix in matrices]
        self.n_items = -(-sum(n_tiles) // 2)
        self.pair_bytes = self.columns // kind.block_values * _KINDS[kind][2]
        self._chunk = max(1, min(_CHUNK_BYTES // self.pair_bytes, self.n_items // (4 * kernels.pool.threads)))
        self._memory = kernels.memory.take(self.n_items * self.pair_bytes)
        self.base = address(self._memory)
        self._pack(matrices, n_tiles)
        self.rows, self._cuts = matrices[0].rows, []
        if not self.gated and len(matrices) > 1:
            starts = [LANES * sum(n_tiles[:i]) for i in range(len(matrices) + 1)]
            self.rows = starts[-1]
            self._cuts = [(start, start + matrix.rows) for start, matrix in zip(starts, matrices, strict=False)]
        packed = form in _WIRE
        self._row_bytes = _WIRE.get(form, FloatType.F32).row_bytes(self.rows)
        self._results = kernels.arrays(self._row_bytes, np.uint8) if packed else kernels.arrays(self.rows)
        self._segments = segments
        self._gain = None if norm is None else np.ascontiguousarray(norm.gain, np.float32)
        self._chain = Chain(kernels, *self._jobs(0 if norm is None else float_bits(norm.eps)))
        self._n_tokens = 0
        self._fields = self._chain.fields
        self._x = self._chain.place[0] + (_NORM_X if self._gain is not None and not self.integer else _X)
        self._out = self._chain.place[-1] + _OUT

    def _pack(self, matrices: Sequence[BlockMatrix], n_tiles: Sequence[int]) -> None:
        kind = matrices[0].float_type
        kernel = self._kernels.address_of(f"pack_{_KINDS[kind][1]}")
        # Of a gated product the gate's and the up's tiles lie in turn: both of a pair are needed at once.
        gated = self.gated
        first = 0
        for i, (matrix, count) in enumerate(zip(matrices, n_tiles, strict=True)):
            data = matrix.data if matrix.data.strides[1] == 1 else np.ascontiguousarray(matrix.data)
            job = Job(
                self.base, self.pair_bytes, i if gated else first, 2 if gated else 1, data.ctypes.data, data.strides[0],
                matrix.rows, self.columns // kind.block_values,
            )  # fmt: skip
            self._kernels.pool.run(kernel, job.address, count, 4)
            first += count

    def _jobs(self, eps: int) -> list[tuple[str, Sequence[int]]]:
        columns, gain = self.columns, 0 if self._gain is None else address(self._gain)
        first: list[tuple[str, Sequence[int]]] = []
        if self.integer:
            first = [("quantize", (0, 0, 0, 0, 0, 0, 0, columns, 0, 0, 0, gain, eps))]
        elif gain:
            first = [("rms_norm", (0, 0, 0, gain, columns, eps))]
        tiles, out = (self.base, self.pair_bytes), (0, self._row_bytes, self.rows)
        product = (*tiles, 0, 4 * columns, *out, columns, self._segments, 0, self.form)
        return [*first, (f"product_{self.kind}", product)]

    def __call__(self, x: F32, /, then: Linear | None = None) -> Any:
        x, at, stride = rows_of(x)
        out, to = self._between(len(x), at, stride)
        if isinstance(then, Product):
            return then.after(self._chain, out, to)
        self._chain.run()
        if self._cuts:
            return [out[:, first:last] for first, last in self._cuts]
        return out if then is None else then(out)

    def after(self, chain: Chain, x: F32, at: int) -> Any:
        """The product of x (T, columns), which lies at `at` and is what `chain` computes: both are run in one call."""
        out, _ = self._between(len(x), at, x.strides[0])
        chain.run(self._chain)
        return out

    def segment(self, x: F32, i: int, of: int) -> F32:
        """The sum of part `i` of `of` equal parts of the columns alone, of a product without a norm."""
        width = self.columns // of
        self._take_columns(i * width, width, 1)
        x, at, stride = rows_of(x)
        out: F32
        out, _ = self._between(len(x), at + 4 * i * width, stride)
        self._chain.run()
        self._take_columns(0, self.columns, self._segments)
        return out

    def _between(self, n_tokens: int, at: int, stride: int) -> tuple[Any, int]:
        """Make the chain's next run take x (T, columns), whose rows are `stride` bytes apart from `at` on: an array for
        its result, and where that lies."""
        if n_tokens != self._n_tokens:
            self._expect(n_tokens)
        out, to = self._results.take(n_tokens)
        fields = self._fields
        fields[self._x], fields[self._x + 1], fields[self._out] = at, stride, to
        return out, to

    def _take_columns(self, first: int, n_columns: int, segments: int) -> None:
        """From now on `n_columns` from `first` on count."""
        fields, product = self._fields, self._chain.place[-1]
        fields[product + _PAIRS] = self.base + self.pair_bytes * first // self.columns
        fields[product + _N_SEGMENTS] = segments
        for place in self._chain.place:
            fields[place + _N_COLUMNS] = n_columns

    def _expect(self, n_tokens: int) -> None:
        """From now on x has so many rows."""
        kernels, chain, fields = self._kernels, self._chain, self._fields
        product = len(chain.place) - 1
        if product:
            n_bytes = self.columns // 32 * X_BLOCK if self.integer else 4 * self.columns
            self._room, at = kernels.room(n_bytes * n_tokens)
            fields[chain.place[0] + (_OUT if self.integer else _NORM_OUT)] = fields[chain.place[1] + _X] = at
            n_items = -(-n_tokens // host_target().tokens) if self.integer else n_tokens
            chain.share(0, n_items, n_items if n_tokens <= ALONE_TOKENS else -(-n_items // (4 * kernels.pool.threads)))
        if self.integer:
            fields[chain.place[0] + _N_TOKENS] = n_tokens
        chain.share(product, self.n_items, self._chunk if n_tokens < 8 else 1)
        fields[chain.place[-1] + _N_TOKENS] = n_tokens
        self._n_tokens = n_tokens
