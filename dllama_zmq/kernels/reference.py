"""The reference back end: NumPy, simple on purpose. Every faster back end must agree with this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_zmq.kernels.batch import KV_PAGE, Batch, Span
from dllama_zmq.kernels.function_linear import FunctionLinear
from dllama_zmq.kernels.grouped import GroupedExperts
from dllama_zmq.kernels.interface import CacheSpec, Kernels, Linear, Norm, Rotation
from dllama_zmq.kernels.reduction import tree_sum
from dllama_zmq.quants import F32, U8, BlockMatrix, Parts, dequantize, quantize, split
from dllama_zmq.spec import SYNC_FLOAT, Activation, FloatType, Sync

_GELU_SLOPE, _GELU_CUBE = np.float32(2 * (2 / np.pi) ** 0.5), np.float32(0.044715)
_TILE_VALUES = 1 << 18  # dequantized at a time: 1 MB, which fits a core's cache; never the whole matrix


class Reference:
    """NumPy kernels. `threads` share the rows of a product; their number never changes its bits."""

    name = "numpy"
    native = None

    def __init__(self, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, "kernels") if threads > 1 else None

    def linear(
        self, *matrices: BlockMatrix, segments: int = 1, norm: Norm | None = None, wire: Sync | None = None
    ) -> Linear:
        products = [self._product(matrix, segments) for matrix in matrices]

        def apply(x: F32) -> Any:
            x = normed(self, x, norm)
            if wire is not None:
                return self.encode(products[0](x), wire)
            return products[0](x) if len(products) == 1 else [product(x) for product in products]

        return FunctionLinear(apply)

    def gated(
        self, gate: BlockMatrix, up: BlockMatrix, activation: Activation = "silu", norm: Norm | None = None
    ) -> Linear:
        gate_product, up_product = self._product(gate, 1), self._product(up, 1)

        def apply(x: F32) -> F32:
            x = normed(self, x, norm)
            return gate_times(gate_product(x), up_product(x), activation)

        return FunctionLinear(apply)

    def experts(
        self,
        experts: Iterable[tuple[BlockMatrix, BlockMatrix, BlockMatrix]],
        segments: int = 1,
        activation: Activation = "silu",
    ) -> GroupedExperts:
        gated, downs = [], []
        for gate, up, down in experts:
            gated.append(self.gated(gate, up, activation))
            downs.append(self.per_segment(down, segments))
        return GroupedExperts(gated, downs)

    def per_segment(self, matrix: BlockMatrix, segments: int) -> Callable[[F32], list[F32]]:
        """x (T, columns) -> one sum (T, rows) for each of `segments` equal parts of the columns."""
        width = matrix.columns // segments
        products = [
            self._product(matrix.cut(slice(None), slice(i, i + width)), 1) for i in range(0, matrix.columns, width)
        ]
        return lambda x: [product(x[:, i * width : (i + 1) * width]) for i, product in enumerate(products)]

    def kv_cache(self, spec: CacheSpec) -> ReferenceCache:
        return ReferenceCache(spec)

    def _product(self, matrix: BlockMatrix, segments: int) -> Callable[[F32], F32]:
        matrix.check()
        product = _integer_product if matrix.float_type.is_quantized else _float_product
        n_rows = max(1, _TILE_VALUES // matrix.columns)
        matrix = matrix.contiguous()
        tiles = [matrix.cut(slice(first, first + n_rows), slice(None)) for first in range(0, matrix.rows, n_rows)]

        def apply(x: F32) -> F32:
            ready = _quantized(x) if product is _integer_product else (x, x)
            parts = self._each(lambda tile: product(tile, *ready, segments), tiles)
            return np.ascontiguousarray(np.concatenate(parts, axis=0).T)

        return apply

    def rms_norm(self, x: F32, gain: F32, eps: float) -> F32:
        mean_square: F32 = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
        mean_square += np.float32(eps)
        root_mean_square: F32 = np.sqrt(mean_square)
        return x / root_mean_square * gain

    def encode(self, x: F32, sync: Sync) -> U8:
        return quantize(x, SYNC_FLOAT[sync])

    def add_up(self, parts: Sequence[U8], sync: Sync, encoded: bool) -> tuple[U8 | None, F32]:
        total = tree_sum([dequantize(part, SYNC_FLOAT[sync]) for part in parts])
        if not encoded:
            return None, total
        wire = quantize(total, SYNC_FLOAT[sync])
        return wire, dequantize(wire, SYNC_FLOAT[sync])

    def _each(self, work: Callable[[BlockMatrix], F32], tiles: list[BlockMatrix]) -> list[F32]:
        if self._pool is None or len(tiles) == 1:
            return [work(tile) for tile in tiles]
        return list(self._pool.map(work, tiles))


class ReferenceCache:
    """Keys and values (layers, pages, 2, K, 64, Hd). Memory is taken as pages are written: it begins untouched."""

    def __init__(self, spec: CacheSpec) -> None:
        shape = (spec.n_layers, spec.n_pages, 2, spec.n_kv_heads, KV_PAGE, spec.head_dim)
        self._store = np.zeros(shape, np.float16 if spec.kv_type == "f16" else np.float32)
        self._spec = spec

    def attend(
        self,
        layer: int,
        batch: Batch,
        q: F32,
        k: F32,
        v: F32,
        rotation: Rotation | None = None,
        then: Linear | None = None,
    ) -> Any:
        store = self._store[layer]  # (pages, 2, K, 64, Hd)
        q, k, v = (rows.reshape(len(rows), -1, store.shape[-1]) for rows in (q, k, v))  # views: rows lie in one piece
        if rotation is not None:
            _rotate(q, rotation)
            _rotate(k, rotation)
        parts, first = [], 0
        for span in batch.spans:
            rows = slice(first, first + span.count)
            parts.append(self._attend_span(store, span, q[rows], k[rows], v[rows], self._spec.window_of(layer)))
            first += span.count
        out = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return out if then is None else then(out)

    def _attend_span(self, store: npt.NDArray[Any], span: Span, q: F32, k: F32, v: F32, window: int | None) -> F32:
        ids, end = np.asarray(span.pages), span.start + span.count
        page, place = np.divmod(np.arange(span.start, end), KV_PAGE)
        for which, new in enumerate((k, v)):
            if store.dtype == np.float16:
                new = np.clip(new, np.float32(-65504), np.float32(65504))
            store[ids[page], which, :, place] = new
        first = 0 if window is None else max(0, span.start - window + 1)
        seen = store[ids[first // KV_PAGE :]].transpose(1, 2, 0, 3, 4)  # (2, K, pages, 64, Hd)
        before = first // KV_PAGE * KV_PAGE
        seen = seen.reshape(*seen.shape[:2], -1, seen.shape[-1])[:, :, first - before : end - before]
        keys, values = np.ascontiguousarray(seen, dtype=np.float32)
        return _attention(q, keys, values, self._spec, window)


def normed(kernels: Kernels, x: F32, norm: Norm | None) -> F32:
    """x (T, D), normed if there is a norm."""
    return x if norm is None else kernels.rms_norm(x, norm.gain, norm.eps)


def gate_times(gate: F32, up: F32, activation: Activation) -> F32:
    """The activation of `gate`, times `up`."""
    steep = gate
    if activation == "gelu":  # (1 + tanh(u)) / 2 is the logistic function of 2u
        steep = _GELU_SLOPE * (gate + _GELU_CUBE * gate * gate * gate)
    with np.errstate(over="ignore"):  # exp of a large -gate is inf, and gate / inf is the 0 that is meant
        out: F32 = np.multiply(gate / (np.float32(1) + np.exp(-steep)), up, dtype=np.float32)
    return out


def _rotate(x: F32, rotation: Rotation) -> None:
    """Rotate the pairs of x (T, H, Hd), in place."""
    half = x.shape[-1] // 2
    interleaved = rotation.layout == "interleaved"
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]  # the same angles for every head
    turned_first, turned_second = first * cos - second * sin, first * sin + second * cos
    first[...] = turned_first
    second[...] = turned_second


def _attention(q: F32, keys: F32, values: F32, spec: CacheSpec, window: int | None) -> F32:
    n_tokens, n_heads, head_dim = q.shape
    kv_of_head, softcap = spec.kv_of_head, spec.softcap
    n_positions = keys.shape[1]
    ago = np.arange(n_positions - n_tokens, n_positions)[:, None] - np.arange(n_positions)  # (T, S)
    hidden = ago < 0 if window is None else (ago < 0) | (ago >= window)
    scale = np.float32(spec.score_scale)
    out = np.empty((n_tokens, n_heads, head_dim), np.float32)
    bounds = [0, *(h for h in range(1, n_heads) if kv_of_head[h] != kv_of_head[h - 1]), n_heads]
    for first, last in pairwise(bounds):
        kv = kv_of_head[first]
        # One product per query head, of a shape that no split over nodes changes: the same bits on any of them.
        scores = np.matmul(q[:, first:last].transpose(1, 0, 2) * scale, keys[kv].T)  # (G, T, S)
        if softcap is not None:
            scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
        scores[:, hidden] = -np.inf
        weights = _softmax(scores)
        out[:, first:last] = np.matmul(weights, values[kv]).transpose(1, 0, 2)
    return out.reshape(n_tokens, n_heads * head_dim)


def _quantized(x: F32) -> tuple[F32, F32]:
    """x (T, n) as Q80: whole numbers as float32 (n, T), and the scales of each 32 of them (n / 32, T)."""
    q, d, _ = split(quantize(x, FloatType.Q80), FloatType.Q80)
    return np.ascontiguousarray(q.reshape(len(x), -1).T, dtype=np.float32), np.ascontiguousarray(d.T)


def _integer_product(tile: BlockMatrix, x: F32, x_scales: F32, segments: int) -> F32:
    """One tile of rows (R, n) times quantized `x` -> (R, T)."""
    q, d, m = _parts(tile)  # (R, b, width), (R, b), and (R, b) where the type has offsets
    width = q.shape[2]
    x = x.reshape(-1, width, x.shape[1])
    x_scales = np.repeat(x_scales, 32 // width, axis=0)[:, None]
    # At most 32 * 127 * 127 < 2^24: float32 holds these integer sums exactly, in whatever order BLAS adds them.
    sums = np.matmul(q.astype(np.float32).transpose(1, 0, 2), x)  # (b, R, T)
    sums *= d.T[:, :, None] * x_scales
    if m is not None:
        sums += m.T[:, :, None] * (x_scales * x.sum(1, keepdims=True))
    parts = sums.reshape(segments, -1, *sums.shape[1:])
    totals = parts[:, 0] + np.float32(0)  # sums begin at 0: of nothing but -0 they are 0
    for i in range(1, parts.shape[1]):  # np.add.reduce adds in another order where a tile is one row by one token
        totals += parts[:, i]
    return tree_sum(totals)


def _parts(tile: BlockMatrix) -> Parts:
    """Those of the tile's own columns, without the others of its first and last block."""
    q, d, m = split(tile.data, tile.float_type)
    width = q.shape[2]
    own = slice(tile.before // width, q.shape[1] - tile.behind // width)
    return Parts(q[:, own], d[:, own], None if m is None else m[:, own])


def _float_product(tile: BlockMatrix, x: F32, _: F32, segments: int) -> F32:
    """One tile of F32, F16 or BF16 rows (R, n) times `x` (T, n) -> (R, T)."""
    weights = dequantize(tile.data, tile.float_type)
    width = weights.shape[1] // segments
    return tree_sum([weights[:, i : i + width] @ x[:, i : i + width].T for i in range(0, weights.shape[1], width)])


def _softmax(scores: F32) -> F32:
    """Over the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True, dtype=np.float32)
    return scores
