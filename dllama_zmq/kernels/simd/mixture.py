"""The chosen experts of a few tokens in one call: decoding with a mixture of experts. numba code.

A use is one token's use of one of its experts: token t has the uses t * n_chosen to (t + 1) * n_chosen. Each input
(of a token, or of a use) lies as one group of one token.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.intrinsics import load_f32, load_i64, scratch
from dllama_zmq.kernels.simd.job import n_fields, offsets
from dllama_zmq.kernels.simd.layout import GATED_GELU, ExpertsPart, ProductJob
from dllama_zmq.kernels.simd.products import (
    DEPTH,
    SLOT,
    TIMES,
    add_slots,
    finish_tree,
    merged,
)
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.vector_math import F, gelu_times, silu_times, store_lanes
from dllama_zmq.kernels.simd.vectors import load_vector, splat, store_vector

AT, EXPERTS = offsets(ProductJob), offsets(ExpertsPart, n_fields(ProductJob))
_sums, _part = scratch(SLOT * DEPTH), scratch(SLOT * DEPTH)


def _make_gated(times_one):
    def gated(job, first, last):
        """weight * act(gate x) * (up x) of every use, f32 (uses, n_rows). Items: items_each for each use."""
        each, chosen, n_rows = (
            load_i64(job + EXPERTS.items_each),
            load_i64(job + EXPERTS.n_chosen),
            load_i64(job + AT.n_rows),
        )
        pair_bytes = load_i64(job + AT.pair_bytes)
        sums = _sums()
        for item in range(first, last):
            use, i = item // each, item % each
            pair = load_i64(load_i64(job + EXPERTS.table) + 8 * use) + i * pair_bytes
            times_one(job, pair, load_i64(job + AT.first_unit), use // chosen, sums)
            a, b = load_vector(sums), load_vector(sums + 64)
            out = gelu_times(a, b) if load_i64(job + AT.epilogue) == GATED_GELU else silu_times(a, b)
            at = load_i64(job + AT.out) + use * load_i64(job + AT.out_stride) + 64 * i
            store_lanes(at, out * splat(load_f32(load_i64(job + EXPERTS.weights) + 4 * use)), n_rows - 16 * i)

    return gated


def _make_down(times_one):
    @register_jitable
    def pair_of_all(job, token, i, sums, part):
        """Pair `i` of all experts of a token: within a segment one expert after another, then the tree of segments."""
        chosen, n_segments = load_i64(job + EXPERTS.n_chosen), load_i64(job + EXPERTS.n_segments)
        offset = i * load_i64(job + AT.pair_bytes)
        top = sums
        for s in range(n_segments):
            store_vector(top, splat(F(0.0)))
            store_vector(top + 64, splat(F(0.0)))
            for use in range(token * chosen, (token + 1) * chosen):
                pair = load_i64(load_i64(job + EXPERTS.table) + 8 * use) + offset
                first = load_i64(job + AT.first_unit) + s * load_i64(job + EXPERTS.segment_units)
                times_one(job, pair, first, use * n_segments + s, part)
                add_slots(top, part, 2)
            top = merged(top + SLOT, s + 1, 2)
        finish_tree(sums, top, 2)

    def down(job, first, last):
        """Each token's sum of its experts, f32 (tokens, n_rows). Items: items_each for each token."""
        each, n_rows = load_i64(job + EXPERTS.items_each), load_i64(job + AT.n_rows)
        sums, part = _sums(), _part()
        for item in range(first, last):
            token, i = item // each, item % each
            pair_of_all(job, token, i, sums, part)
            at = load_i64(job + AT.out) + token * load_i64(job + AT.out_stride) + 128 * i
            store_lanes(at, load_vector(sums), n_rows - 32 * i)
            store_lanes(at + 64, load_vector(sums + 64), n_rows - 32 * i - 16)

    return down


for _kind, (_, _times_one) in TIMES.items():
    kernel(_make_gated(_times_one), f"experts_gated_{_kind}")
    kernel(_make_down(_times_one), f"experts_down_{_kind}")
