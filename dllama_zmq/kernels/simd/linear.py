"""Products as the interface has them, over the kernels of `products.py` and `rows.py`. Knows no numba.

Weights are repacked once into tiles (`repacking.py`), by all threads, straight from wherever they lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dllama_zmq.errors import FormatError
from dllama_zmq.kernels.interface import Linear, Norm
from dllama_zmq.kernels.simd.arrays import address, float_bits, rows_of
from dllama_zmq.kernels.simd.host import host_target
from dllama_zmq.kernels.simd.job import Job, indices
from dllama_zmq.kernels.simd.layout import (
    AS_F16,
    AS_F32,
    AS_Q80,
    BLOCKS,
    GATED_GELU,
    GATED_SILU,
    LANES,
    REPACKED_AS,
    X_BLOCK,
    NormJob,
    ProductJob,
    QuantizeJob,
    RepackJob,
)
from dllama_zmq.kernels.simd.runtime import Runtime
from dllama_zmq.kernels.simd.sequence import KernelSequence
from dllama_zmq.quants import F32, U8, BlockMatrix
from dllama_zmq.spec import FloatType

_COLUMN_BYTES = {FloatType.F32: 2 * 64, FloatType.F16: 2 * 32, FloatType.BF16: 2 * 32}
"""The bytes of a column of a pair of tiles."""
_EXPONENT = {FloatType.F32: 0x7F800000, FloatType.F16: 0x7C00, FloatType.BF16: 0x7F80}
_PRODUCT, _QUANTIZE, _NORM, _REPACK = indices(ProductJob), indices(QuantizeJob), indices(NormJob), indices(RepackJob)
_WIRE = {AS_F16: FloatType.F16, AS_Q80: FloatType.Q80}
"""The types of results that are not f32."""
_MIN_KEPT_BYTES = 256 * 1024
"""Smaller tiles are made as fast as a file is found and mapped."""
_CHUNK_BYTES = 512 * 1024
"""Weights that a thread takes at a time: enough that the pause between two chunks, which interrupts its stream of
memory, costs little; little enough that all threads end at about the same time."""


class Product:
    """One or several matrices as tiles: `Kernels.linear`, or `Kernels.gated` if `epilogue` says so, or one matrix's
    result as `Kernels.encode` makes it (AS_F16 or AS_Q80, if its rows are a multiple of 32).

    A call runs one or two kernels in one sequence. The product takes x quantized, if the weights are, else as f32. The
    kernel before it, if there is one, writes that into the workspace: `quantize`, with the norm in it, or `rms_norm`.
    """

    def __init__(
        self,
        runtime: Runtime,
        matrices: Sequence[BlockMatrix],
        segments: int,
        epilogue: int = AS_F32,
        norm: Norm | None = None,
    ) -> None:
        kind = matrices[0].float_type
        self._runtime = runtime
        self.kind, self.epilogue, self.integer = kind.name.lower(), epilogue, kind.is_quantized
        self.gated = epilogue in (GATED_SILU, GATED_GELU)
        self.columns, self.unit_columns = matrices[0].columns, kind.cut_values
        self.first_unit, n_units = matrices[0].before // self.unit_columns, self.columns // self.unit_columns
        n_tiles = [-(-matrix.rows // LANES) for matrix in matrices]
        self.n_items = -(-sum(n_tiles) // 2)
        if self.integer:
            self.pair_bytes = BLOCKS[self.kind].pair_bytes(self.first_unit + n_units)
        else:
            self.pair_bytes = n_units * _COLUMN_BYTES[kind]
        self._chunk = max(1, min(_CHUNK_BYTES // self.pair_bytes, self.n_items // (4 * runtime.pool.threads)))
        self._memory = self._tiles(matrices, n_tiles)
        self.base = address(self._memory)
        self.rows, self._cuts = matrices[0].rows, []
        if not self.gated and len(matrices) > 1:
            starts = [LANES * sum(n_tiles[:i]) for i in range(len(matrices) + 1)]
            self.rows = starts[-1]
            self._cuts = [(start, start + matrix.rows) for start, matrix in zip(starts, matrices, strict=False)]
        encoded = epilogue in _WIRE
        self._row_bytes = _WIRE.get(epilogue, FloatType.F32).row_bytes(self.rows)
        self._results = runtime.arrays(self._row_bytes, np.uint8) if encoded else runtime.arrays(self.rows)
        self._segments = segments
        self._gain = None if norm is None else np.ascontiguousarray(norm.gain, np.float32)
        self._sequence = KernelSequence(runtime, *self._jobs(0 if norm is None else float_bits(norm.eps)))
        self._n_tokens = 0
        self._fields, starts = self._sequence.fields, self._sequence.job_start
        self._product = starts[-1]
        self._out = self._product + _PRODUCT.out
        if self.integer:  # x is the argument of the first kernel
            self._x, self._x_stride = starts[0] + _QUANTIZE.x, starts[0] + _QUANTIZE.x_stride
        elif self._gain is not None:
            self._x, self._x_stride = starts[0] + _NORM.x, starts[0] + _NORM.x_stride
        else:
            self._x, self._x_stride = self._product + _PRODUCT.x, self._product + _PRODUCT.x_stride

    def _tiles(self, matrices: Sequence[BlockMatrix], n_tiles: Sequence[int]) -> U8:
        """The matrices' tiles: kept from an earlier start, or made now and kept for the next one."""
        runtime, n_bytes = self._runtime, self.n_items * self.pair_bytes
        if n_bytes < _MIN_KEPT_BYTES or not all(matrix.source for matrix in matrices):
            return self._repacked(matrices, n_tiles, n_bytes)
        parts = [f"{layout_hash()} {self.gated} {self.first_unit}"]
        parts += [f"{matrix.source} {matrix.float_type.name} {matrix.shape}" for matrix in matrices]
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        tiles = runtime.kept.find(name, n_bytes)
        if tiles is None:
            tiles = self._repacked(matrices, n_tiles, n_bytes)
            runtime.kept.add(name, tiles)
        return tiles

    def _repacked(self, matrices: Sequence[BlockMatrix], n_tiles: Sequence[int], n_bytes: int) -> U8:
        tiles = self._runtime.memory.allocate(n_bytes)
        # A gated product alternates the gate's and the up matrix's tiles: a pair has one of each.
        gated = self.gated
        first = 0
        for i, (matrix, count) in enumerate(zip(matrices, n_tiles, strict=True)):
            data = matrix.data if matrix.data.strides[1] == 1 else np.ascontiguousarray(matrix.data)
            values = RepackJob(
                pairs=address(tiles),
                pair_bytes=self.pair_bytes,
                tile=i if gated else first,
                step=2 if gated else 1,
                source=data.ctypes.data,
                source_stride=data.strides[0],
                n_rows=matrix.rows,
                n_units=data.shape[1] // matrix.float_type.block_bytes,
                exponent=_EXPONENT.get(matrix.float_type, 0),
            )
            job = Job(*values)
            self._runtime.parallel_for(f"repack_{REPACKED_AS[self.kind]}", job, count, 4)
            if matrix.unchecked and job.fields[_REPACK.not_finite]:
                raise FormatError(matrix.unchecked)
            first += count
        return tiles

    def _jobs(self, eps: int) -> list[tuple[str, Sequence[int]]]:
        columns, gain = self.columns, 0 if self._gain is None else address(self._gain)
        product = ProductJob(
            pairs=self.base,
            pair_bytes=self.pair_bytes,
            x_stride=4 * columns,
            out_stride=self._row_bytes,
            n_rows=self.rows,
            n_columns=columns,
            n_segments=self._segments,
            epilogue=self.epilogue,
            first_unit=self.first_unit,
        )
        first: list[tuple[str, Sequence[int]]] = []
        if self.integer:
            first = [("quantize", QuantizeJob(n_columns=columns, gain=gain, eps=eps))]
        elif gain:
            first = [("rms_norm", NormJob(gain=gain, width=columns, eps=eps))]
        return [*first, (f"product_{self.kind}", product)]

    def __call__(self, x: F32, /, then: Linear | None = None) -> Any:
        x, at, stride = rows_of(x)
        out, to = self._set_arguments(len(x), at, stride)
        if isinstance(then, Product):
            return then.after(self._sequence, out, to)
        self._sequence.run()
        if self._cuts:
            return [out[:, first:last] for first, last in self._cuts]
        return out if then is None else then(out)

    def after(self, sequence: KernelSequence, x: F32, at: int) -> Any:
        """The product of x (T, columns), which `sequence` writes to address `at`: both are run in one call."""
        out, _ = self._set_arguments(len(x), at, x.strides[0])
        sequence.run(self._sequence)
        return out

    def segment(self, x: F32, i: int, of: int) -> F32:
        """The sum of segment `i` of `of` equal segments of the columns, of a product without a norm."""
        width = self.columns // of
        self._set_columns(i * width, width, 1)
        x, at, stride = rows_of(x)
        out: F32
        out, _ = self._set_arguments(len(x), at + 4 * i * width, stride)
        self._sequence.run()
        self._set_columns(0, self.columns, self._segments)
        return out

    def _set_arguments(self, n_tokens: int, at: int, stride: int) -> tuple[Any, int]:
        """Let the next run take x (T, columns) from address `at`, `stride` bytes from row to row.

        Returns an array for its result, and the address of that.
        """
        if n_tokens != self._n_tokens:
            self._set_tokens(n_tokens)
        out, to = self._results.take(n_tokens)
        fields = self._fields
        fields[self._x], fields[self._x_stride], fields[self._out] = at, stride, to
        return out, to

    def _set_columns(self, first: int, n_columns: int, segments: int) -> None:
        """Let runs take `n_columns` columns from `first` on, in `segments` segments."""
        fields, product = self._fields, self._product
        fields[product + _PRODUCT.first_unit] = self.first_unit + first // self.unit_columns
        fields[product + _PRODUCT.n_segments] = segments
        fields[product + _PRODUCT.n_columns] = n_columns
        if self.integer:
            fields[self._sequence.job_start[0] + _QUANTIZE.n_columns] = n_columns

    def _set_tokens(self, n_tokens: int) -> None:
        """Let runs take `n_tokens` rows of x."""
        runtime, sequence, fields, product = self._runtime, self._sequence, self._fields, self._product
        first = sequence.job_start[0]
        if first != product:
            n_bytes = self.columns // 32 * X_BLOCK if self.integer else 4 * self.columns
            self._workspace, at = runtime.workspace(n_bytes * n_tokens)
            fields[first + (_QUANTIZE.out if self.integer else _NORM.out)] = fields[product + _PRODUCT.x] = at
            n_items = -(-n_tokens // host_target().tokens) if self.integer else n_tokens
            sequence.set_items(0, n_items, runtime.token_chunk(n_tokens, n_items))
        if self.integer:
            fields[first + _QUANTIZE.n_tokens] = n_tokens
        sequence.set_items(len(sequence.job_start) - 1, self.n_items, self._chunk if n_tokens < 8 else 1)
        fields[product + _PRODUCT.n_tokens] = n_tokens
        self._n_tokens = n_tokens


@cache
def layout_hash() -> str:
    """Of the code that says how tiles lie, which is the same on every CPU."""
    digest = hashlib.sha256()
    for name in ("layout.py", "repacking.py", "repacker.py"):
        digest.update(Path(__file__).with_name(name).read_bytes() + b"\0")
    return digest.hexdigest()
