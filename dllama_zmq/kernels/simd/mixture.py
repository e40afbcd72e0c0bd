"""The chosen experts of a few tokens, all in one go: what decoding a mixture of experts consists of. numba code.

A use is one token's use of one of its experts: token t has the uses t * CHOSEN to (t + 1) * CHOSEN. TABLE holds the
address of each use's tiles. Each input (of a token, or of a use) lies as one group of one token.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.pieces import F, gelu_times, silu_times, store_lanes
from dllama_zmq.kernels.simd.products import (
    DEPTH,
    GATED_GELU,
    SLOT,
    TILE_TIMES,
    add_slots,
    finish_tree,
    merged,
)
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.vectors import load_f32, load_i64, load_vector, scratch, splat, store_vector

# A job begins as one of products.py, whose N_COLUMNS and N_SEGMENTS are those of one segment, and goes on with these.
TABLE, WEIGHTS, CHOSEN, ITEMS_EACH, SEGMENTS, SEGMENT_BYTES = range(88, 136, 8)
_TILES, _TILE_BYTES, _, _, _OUT, _OUT_STRIDE, _N_ROWS = range(0, 56, 8)
_FORM = 80
_sums_a, _sums_b, _part = scratch(SLOT * DEPTH), scratch(SLOT * DEPTH), scratch(SLOT * DEPTH)


def _make_gated(tile_times):
    def gated(job, first, last):
        """weight * act(gate x) * (up x) of every use, f32 (uses, N_ROWS). Items: ITEMS_EACH for each use."""
        each, chosen, n_rows = load_i64(job + ITEMS_EACH), load_i64(job + CHOSEN), load_i64(job + _N_ROWS)
        tile_bytes = load_i64(job + _TILE_BYTES)
        sums_a, sums_b = _sums_a(), _sums_b()
        for item in range(first, last):
            use, i = item // each, item % each
            tile = load_i64(load_i64(job + TABLE) + 8 * use) + 2 * i * tile_bytes
            tile_times(job, tile, use // chosen, 1, sums_a)
            tile_times(job, tile + tile_bytes, use // chosen, 1, sums_b)
            a, b = load_vector(sums_a), load_vector(sums_b)
            out = gelu_times(a, b) if load_i64(job + _FORM) == GATED_GELU else silu_times(a, b)
            at = load_i64(job + _OUT) + use * load_i64(job + _OUT_STRIDE) + 64 * i
            store_lanes(at, out * splat(load_f32(load_i64(job + WEIGHTS) + 4 * use)), n_rows - 16 * i)

    return gated


def _make_down(tile_times):
    @register_jitable
    def tile_of_all(job, token, i, sums, part):
        """Tile `i` of all of a token's experts: within a segment one after another, then the segments' tree."""
        chosen, n_segments = load_i64(job + CHOSEN), load_i64(job + SEGMENTS)
        offset = i * load_i64(job + _TILE_BYTES)
        top = sums
        for s in range(n_segments):
            store_vector(top, splat(F(0.0)))
            for use in range(token * chosen, (token + 1) * chosen):
                tile = load_i64(load_i64(job + TABLE) + 8 * use) + offset + s * load_i64(job + SEGMENT_BYTES)
                tile_times(job, tile, use * n_segments + s, 1, part)
                add_slots(top, part, 1)
            top = merged(top + SLOT, s + 1, 1)
        finish_tree(sums, top, 1)

    def down(job, first, last):
        """Each token's sum of its experts, f32 (tokens, N_ROWS). Items: ITEMS_EACH for each token."""
        each, n_rows = load_i64(job + ITEMS_EACH), load_i64(job + _N_ROWS)
        sums, part = _sums_a(), _part()
        for item in range(first, last):
            token, i = item // each, item % each
            tile_of_all(job, token, i, sums, part)
            at = load_i64(job + _OUT) + token * load_i64(job + _OUT_STRIDE) + 64 * i
            store_lanes(at, load_vector(sums), n_rows - 16 * i)

    return down


for _name, _tile_times in TILE_TIMES.items():
    kernel(_make_gated(_tile_times), f"experts_gated_{_name}")
    kernel(_make_down(_tile_times), f"experts_down_{_name}")
