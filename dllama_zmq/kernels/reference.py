"""The reference back end: NumPy, simple on purpose. Every faster back end must agree with this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Literal

import numpy as np

from dllama_zmq.kernels.reduction import tree_sum
from dllama_zmq.quants import F32, BlockMatrix, dequantize, quantize, split_q40, split_q80
from dllama_zmq.spec import FloatType

_TILE_VALUES = 1 << 18  # dequantized at a time: 1 MB, which stays in a core's cache; never the matrix


class Reference:
    """NumPy kernels. `threads` share the rows of a product; they change its speed, never its bits."""

    name = "numpy"

    def __init__(self, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, "kernels") if threads > 1 else None

    def linear(self, matrix: BlockMatrix, segments: int = 1) -> Callable[[F32], F32]:
        product = _integer_product if matrix.float_type.block_values == 32 else _float_product
        n_rows = max(1, _TILE_VALUES // matrix.columns)
        tiles = [
            BlockMatrix(matrix.data[first : first + n_rows], matrix.float_type)
            for first in range(0, matrix.rows, n_rows)
        ]

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

    def rotate(self, x: F32, cos: F32, sin: F32, layout: Literal["interleaved", "half"]) -> F32:
        half = x.shape[-1] // 2
        interleaved = layout == "interleaved"
        first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
        c, s = cos[:, None], sin[:, None]  # the same angles for every head
        turned = np.empty_like(x)
        turned_first = turned[..., 0::2] if interleaved else turned[..., :half]
        turned_second = turned[..., 1::2] if interleaved else turned[..., half:]
        turned_first[...] = first * c - second * s
        turned_second[...] = first * s + second * c
        return turned

    def attend(self, q: F32, keys: F32, values: F32, kv_of_head: Sequence[int]) -> F32:
        n_tokens, n_heads, head_dim = q.shape
        n_positions = keys.shape[1]
        future = np.arange(n_positions) > np.arange(n_positions - n_tokens, n_positions)[:, None]  # (T, S)
        scale = np.float32(1 / head_dim**0.5)
        out = np.empty((n_tokens, n_heads, head_dim), np.float32)
        bounds = [0, *(h for h in range(1, n_heads) if kv_of_head[h] != kv_of_head[h - 1]), n_heads]
        for first, last in pairwise(bounds):
            kv = kv_of_head[first]
            # One product per query head, of a shape that no split over nodes changes: the same bits on any of them.
            scores = np.matmul(q[:, first:last].transpose(1, 0, 2) * scale, keys[kv].T)  # (G, T, S)
            scores[:, future] = -np.inf
            weights = _softmax(scores)
            out[:, first:last] = np.matmul(weights, values[kv]).transpose(1, 0, 2)
        return out.reshape(n_tokens, n_heads * head_dim)

    def silu_times(self, gate: F32, up: F32) -> F32:
        with np.errstate(over="ignore"):  # exp of a large -gate is inf, and gate / inf is the 0 that is meant
            denominator: F32 = np.exp(-gate)
        denominator += np.float32(1)
        return gate / denominator * up

    def _each(self, work: Callable[[BlockMatrix], F32], tiles: list[BlockMatrix]) -> list[F32]:
        if self._pool is None or len(tiles) == 1:
            return [work(tile) for tile in tiles]
        return list(self._pool.map(work, tiles))


def _quantized(x: F32) -> tuple[F32, F32]:
    """x (T, n) as Q80: whole numbers as float32 (b, 32, T), and scales (b, 1, T)."""
    q, d = split_q80(quantize(x, FloatType.Q80))
    return np.ascontiguousarray(q.transpose(1, 2, 0), dtype=np.float32), np.ascontiguousarray(d.T)[:, None]


def _integer_product(tile: BlockMatrix, x: F32, x_scales: F32, segments: int) -> F32:
    """One tile of rows (R, n) times quantized `x` -> (R, T)."""
    q, d = split_q40(tile.data) if tile.float_type is FloatType.Q40 else split_q80(tile.data)  # (R, b, 32), (R, b)
    # At most 32 * 127 * 127 < 2^24: float32 holds these integer sums exactly, in whatever order BLAS adds them.
    sums = np.matmul(q.astype(np.float32).transpose(1, 0, 2), x)  # (b, R, T)
    sums *= d.T[:, :, None] * x_scales
    parts = sums.reshape(segments, -1, *sums.shape[1:])
    totals = parts[:, 0].copy()
    for i in range(1, parts.shape[1]):  # np.add.reduce adds in another order where a tile is one row by one token
        totals += parts[:, i]
    return tree_sum(totals)


def _float_product(tile: BlockMatrix, x: F32, _: F32, segments: int) -> F32:
    """One tile of F32 or F16 rows (R, n) times `x` (T, n) -> (R, T)."""
    weights = dequantize(tile.data, tile.float_type)
    width = weights.shape[1] // segments
    return tree_sum([weights[:, i : i + width] @ x[:, i : i + width].T for i in range(0, weights.shape[1], width)])


def _softmax(scores: F32) -> F32:
    """Over the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True, dtype=np.float32)
    return scores
