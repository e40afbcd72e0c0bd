"""The KV cache and attention over it: an online softmax in one pass (arXiv:1805.02867). numba code.

Keys of one head lie in tiles of 16 positions, a column's 16 values together, so that 16 scores are one sum of lanes;
values lie position by position, a head's width padded to whole vectors. Up to 8 rows (query heads that share the head,
of one token or of several) go over the cache together: each key and value is read and converted once for all of them.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.pieces import F, exponential, within
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.vectors import (
    at_least,
    first_lanes,
    float_panel,
    largest_of,
    load_f32,
    load_i64,
    load_vector,
    scratch,
    splat,
    store_f32,
    store_half,
    store_vector,
    sum_of,
)

# Of one layer and slot: KEYS and VALUES of its first KV head; HEAD_BYTES of each to the next one's.
# Q: of the first token, Q_STRIDE bytes to the next. GROUPS: for each KV head, its first query head and the one after
# its last. NEW_KEYS, NEW_VALUES: of the first token, NEW_STRIDE bytes to the next. WINDOW: positions that a token sees.
# SOFTCAP: f32, 0 for none.
(
    KEYS, VALUES, KEY_HEAD_BYTES, VALUE_HEAD_BYTES, HEAD_DIM, START, N_TOKENS, Q, Q_STRIDE, OUT, OUT_STRIDE, GROUPS,
    ITEMS_PER_GROUP, SCALE, NEW_KEYS, NEW_VALUES, NEW_STRIDE, WINDOW, SOFTCAP,
) = range(0, 152, 8)  # fmt: skip

MOST_HEAD_DIM = 512
MOST_ROWS = 8
_CHUNK = 64  # positions between two looks at the largest score
_ROW = 64  # bytes of 16 floats
_MOST_OUT = 4 * MOST_HEAD_DIM * MOST_ROWS
_queries, _scores, _weights = scratch(_MOST_OUT), scratch(4 * _CHUNK * MOST_ROWS), scratch(4 * _CHUNK * MOST_ROWS)
_sums, _part, _state = scratch(_MOST_OUT), scratch(_ROW * MOST_ROWS), scratch(8 * MOST_ROWS)
_NOTHING = F(-3e38)


@register_jitable
def padded(width):
    """`width` values in whole vectors."""
    return (width + 15) // 16 * 16


def _make_store(half):
    value_bytes = 2 if half else 4

    @register_jitable
    def put(at, value):
        if half:
            store_half(at, min(max(value, F(-65504.0)), F(65504.0)) if value == value else value)
        else:
            store_f32(at, value)

    def store(job, first, last):
        """Write N_TOKENS new keys and values at position START. Items are KV heads."""
        width, start = load_i64(job + HEAD_DIM), load_i64(job + START)
        wide = padded(width)
        for h in range(first, last):
            keys = load_i64(job + KEYS) + h * load_i64(job + KEY_HEAD_BYTES)
            values = load_i64(job + VALUES) + h * load_i64(job + VALUE_HEAD_BYTES)
            for t in range(load_i64(job + N_TOKENS)):
                position = start + t
                new = t * load_i64(job + NEW_STRIDE) + 4 * h * width
                column = keys + ((position >> 4) * width * 16 + (position & 15)) * value_bytes
                row = values + position * wide * value_bytes
                for d in range(width):
                    put(column + 16 * value_bytes * d, load_f32(load_i64(job + NEW_KEYS) + new + 4 * d))
                    put(row + value_bytes * d, load_f32(load_i64(job + NEW_VALUES) + new + 4 * d))

    return store


def _make_attend(half):
    value_bytes = 2 if half else 4
    panel1, panel2, panel4, panel8 = (float_panel("f16" if half else "f32", n) for n in (1, 2, 4, 8))

    @register_jitable
    def panel(size, tile, step, x, x_stride, n, out):
        if size == 1:
            panel1(tile, step, x, x_stride, n, out)
        elif size == 2:
            panel2(tile, step, x, x_stride, n, out)
        elif size == 4:
            panel4(tile, step, x, x_stride, n, out)
        else:
            panel8(tile, step, x, x_stride, n, out)

    def attend(job, first, last):
        """Causal attention of N_TOKENS tokens from position START on. Items are up to 8 rows of one KV head."""
        width, start, n_tokens = load_i64(job + HEAD_DIM), load_i64(job + START), load_i64(job + N_TOKENS)
        window, softcap = load_i64(job + WINDOW), load_f32(job + SOFTCAP)
        wide = padded(width)
        per_group = load_i64(job + ITEMS_PER_GROUP)
        queries, scores, weights, sums = _queries(), _scores(), _weights(), _sums()
        part, state = _part(), _state()
        for item in range(first, last):
            kv = item // per_group
            first_head = load_i64(load_i64(job + GROUPS) + 16 * kv)
            n_heads = load_i64(load_i64(job + GROUPS) + 16 * kv + 8) - first_head
            row = (item - kv * per_group) * MOST_ROWS
            n_rows = min(n_tokens * n_heads - row, MOST_ROWS)
            if n_rows <= 0:
                continue
            size = 1  # rows in registers: n_rows, rounded up; those beyond it repeat the last one
            while size < n_rows:
                size *= 2
            for r in range(size):
                real = row + min(r, n_rows - 1)
                q = load_i64(job + Q) + real // n_heads * load_i64(job + Q_STRIDE)
                q += 4 * width * (first_head + real % n_heads)
                for d in range(width):
                    store_f32(queries + 4 * (r * width + d), load_f32(q + 4 * d) * load_f32(job + SCALE))
                for d in range(0, wide, 16):
                    store_vector(sums + 4 * (r * wide + d), splat(F(0.0)))
                store_f32(state + 8 * r, _NOTHING)  # the largest score so far
                store_f32(state + 8 * r + 4, F(0.0))  # the sum of all weights so far
            keys = load_i64(job + KEYS) + kv * load_i64(job + KEY_HEAD_BYTES)
            values = load_i64(job + VALUES) + kv * load_i64(job + VALUE_HEAD_BYTES)
            seen = start + (row + n_rows - 1) // n_heads + 1  # by the last row
            # Whole chunks, so that a row's bits do not depend on which rows go over the cache with it.
            begin = max(0, start + row // n_heads + 1 - window) // _CHUNK * _CHUNK
            for position in range(begin, seen, _CHUNK):
                n = min(_CHUNK, seen - position)
                for i in range(0, n, 16):
                    tile = keys + (position + i) * width * value_bytes
                    panel(size, tile, 16 * value_bytes, queries, 4 * width, width, scores + _ROW * size * (i // 16))
                for r in range(size):
                    own = start + (row + min(r, n_rows - 1)) // n_heads + 1 - position  # of these, seen by this row
                    gone = own - window  # and of these, no longer
                    top = load_f32(state + 8 * r)
                    best = splat(top)
                    for i in range(0, n, 16):
                        at = scores + _ROW * (size * (i // 16) + r)
                        score = load_vector(at)
                        if softcap > F(0.0):
                            score = within(score, softcap)
                        visible = first_lanes(splat(_NOTHING), gone - i, first_lanes(score, own - i, splat(_NOTHING)))
                        store_vector(at, visible)
                        best = at_least(best, visible)
                    new_top = largest_of(best)
                    total = splat(F(0.0))
                    for i in range(0, n, 16):
                        score = load_vector(scores + _ROW * (size * (i // 16) + r))
                        weight = first_lanes(exponential(score - splat(new_top)), own - i, splat(F(0.0)))
                        weight = first_lanes(splat(F(0.0)), gone - i, weight)
                        store_vector(weights + 4 * (_CHUNK * r + i), weight)
                        total = total + weight
                    shrink = exponential(splat(top - new_top))
                    for d in range(0, wide, 16):
                        at = sums + 4 * (r * wide + d)
                        store_vector(at, load_vector(at) * shrink)
                    store_f32(state + 8 * r, new_top)
                    store_f32(state + 8 * r + 4, load_f32(state + 8 * r + 4) * largest_of(shrink) + sum_of(total))
                for d in range(0, wide, 16):
                    panel(
                        size, values + (position * wide + d) * value_bytes, wide * value_bytes, weights, 4 * _CHUNK, n,
                        part,
                    )  # fmt: skip
                    for r in range(size):
                        at = sums + 4 * (r * wide + d)
                        store_vector(at, load_vector(at) + load_vector(part + _ROW * r))
            for r in range(n_rows):
                real = row + r
                out = load_i64(job + OUT) + real // n_heads * load_i64(job + OUT_STRIDE)
                out += 4 * width * (first_head + real % n_heads)
                for d in range(width):
                    store_f32(out + 4 * d, load_f32(sums + 4 * (r * wide + d)) / load_f32(state + 8 * r + 4))

    return attend


store_kv_f16 = kernel(_make_store(True), "store_kv_f16")
store_kv_f32 = kernel(_make_store(False), "store_kv_f32")
attend_f16 = kernel(_make_attend(True), "attend_f16")
attend_f32 = kernel(_make_attend(False), "attend_f32")
