"""The KV cache and attention over it: an online softmax in one pass (arXiv:1805.02867). numba code.

A head's pages lie one after another, keys apart from values. Keys lie in tiles of 16 positions, a column's 16 values
together, so that 16 scores are one sum of lanes; values lie position by position, a head's width padded to whole
vectors. Up to 8 rows of a span (query heads that share the head, of one token or of several) go over its pages
together: each key and value is read and converted once for all of them.
The next keys and values are prefetched: a core's own window ends before memory has answered.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.intrinsics import (
    call_kernel,
    load_f32,
    load_i32,
    load_i64,
    scratch,
    store_f32,
)
from dllama_zmq.kernels.simd.job import n_fields, offsets
from dllama_zmq.kernels.simd.layout import KV_ROWS, MAX_HEAD_DIM, PAGE, AttentionJob, SpanRow
from dllama_zmq.kernels.simd.products import MAX_TOKENS, by_size
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.rotation import rotate
from dllama_zmq.kernels.simd.vector_math import F, exponential, load_lanes, softcapped, store_lanes
from dllama_zmq.kernels.simd.vectors import (
    first_lanes,
    float_microkernel,
    largest_of,
    load_vector,
    splat,
    store_half,
    store_halves,
    store_vector,
    sum_of,
    vmax,
    vmin,
)

AT, SPAN, SPAN_BYTES = offsets(AttentionJob), offsets(SpanRow), 8 * n_fields(SpanRow)
_AHEAD = 16384  # bytes: a page of a head of 128 values, two of one of 64
_ROW = 64  # bytes of 16 floats
_OUT_BYTES = 4 * MAX_HEAD_DIM * KV_ROWS
_queries, _scores, _weights = scratch(_OUT_BYTES), scratch(4 * PAGE * KV_ROWS), scratch(4 * PAGE * KV_ROWS)
_sums, _part, _state = scratch(_OUT_BYTES), scratch(_ROW * KV_ROWS), scratch(8 * KV_ROWS)
_NOTHING = F(-3e38)
_HALF_MAX = F(65504.0)


@register_jitable
def padded(width):
    """`width` values in whole vectors."""
    return (width + 15) // 16 * 16


def _make_store_kv(half):
    value_bytes = 2 if half else 4

    @register_jitable
    def store(at, value):
        if half:
            store_half(at, min(max(value, -_HALF_MAX), _HALF_MAX) if value == value else value)
        else:
            store_f32(at, value)

    @register_jitable
    def store_values(at, values):
        if half:
            store_halves(at, vmin(vmax(values, splat(-_HALF_MAX)), splat(_HALF_MAX)))
        else:
            store_vector(at, values)

    def store_kv(job, first, last):
        """Rotate a span's queries and keys, if there is a rotation; write its keys and values into its pages. Items
        are the KV heads of the first span, of the second, ..."""
        width, n_kv_heads = load_i64(job + AT.head_dim), load_i64(job + AT.n_kv_heads)
        wide, half_width = padded(width), width // 2
        cos, sin, interleaved = load_i64(job + AT.cos), load_i64(job + AT.sin), load_i64(job + AT.interleaved) != 0
        for item in range(first, last):
            span, kv = load_i64(job + AT.spans) + item // n_kv_heads * SPAN_BYTES, item % n_kv_heads
            start, row = load_i64(span + SPAN.start), load_i64(span + SPAN.row)
            ids = load_i64(job + AT.page_ids) + 4 * load_i64(span + SPAN.first_id)
            keys = load_i64(job + AT.keys) + kv * load_i64(job + AT.key_head_bytes)
            values = load_i64(job + AT.values) + kv * load_i64(job + AT.value_head_bytes)
            group = load_i64(job + AT.groups) + 16 * kv
            for t in range(row, row + load_i64(span + SPAN.n_rows)):
                new_key = load_i64(job + AT.new_keys) + t * load_i64(job + AT.key_stride) + 4 * kv * width
                new_value = load_i64(job + AT.new_values) + t * load_i64(job + AT.value_stride) + 4 * kv * width
                if cos != 0:
                    q = load_i64(job + AT.q) + t * load_i64(job + AT.q_stride)
                    angles = 4 * t * half_width
                    for h in range(load_i64(group), load_i64(group + 8)):
                        rotate(q + 4 * h * width, half_width, interleaved, cos + angles, sin + angles)
                    rotate(new_key, half_width, interleaved, cos + angles, sin + angles)
                position = start + t - row
                place = load_i32(ids + 4 * (position // PAGE)) * PAGE + position % PAGE
                column = keys + ((place >> 4) * width * 16 + (place & 15)) * value_bytes
                for d in range(width):
                    store(column + 16 * value_bytes * d, load_f32(new_key + 4 * d))
                value = values + place * wide * value_bytes
                whole = width // 16 * 16
                for d in range(0, whole, 16):
                    store_values(value + value_bytes * d, load_vector(new_value + 4 * d))
                for d in range(whole, width):
                    store(value + value_bytes * d, load_f32(new_value + 4 * d))

    return store_kv


def _make_attend(half):
    value_bytes = 2 if half else 4
    product1, product2, product4, product8 = (
        float_microkernel("f16" if half else "f32", n, ahead=None) for n in (1, 2, 4, 8)
    )

    @register_jitable(forceinline=True)
    def twice4(tile, step, x, x_stride, n, out, ahead):
        product4(tile, step, x, x_stride, n, out, ahead)
        product4(tile, step, x + 4 * x_stride, x_stride, n, out + 4 * _ROW, ahead)

    # Where registers are few, eight rows are twice four.
    product = by_size(product1, product2, product4, product8 if MAX_TOKENS >= 8 else twice4, KV_ROWS)

    def attend(job, first, last):
        """Causal attention of each span. Items are up to 8 rows of one KV head: those of the first span, KV head by KV
        head, those of the second, ..."""
        width, n_kv_heads, most = (
            load_i64(job + AT.head_dim),
            load_i64(job + AT.n_kv_heads),
            load_i64(job + AT.max_group),
        )
        window, softcap = load_i64(job + AT.window), load_f32(job + AT.softcap)
        wide = padded(width)
        queries, scores, weights, sums = _queries(), _scores(), _weights(), _sums()
        part, state = _part(), _state()
        n_ahead = max(1, _AHEAD // (PAGE * wide * value_bytes))  # pages
        span, begun = load_i64(job + AT.spans), 0  # the span of an item, and its own first item
        spans_end = span + load_i64(job + AT.n_spans) * SPAN_BYTES
        of_head = (load_i64(span + SPAN.n_rows) * most + KV_ROWS - 1) // KV_ROWS  # items of each KV head
        for item in range(first, last):
            while item >= begun + n_kv_heads * of_head:
                begun += n_kv_heads * of_head
                span += SPAN_BYTES
                of_head = (load_i64(span + SPAN.n_rows) * most + KV_ROWS - 1) // KV_ROWS
            start, first_row = load_i64(span + SPAN.start), load_i64(span + SPAN.row)
            ids = load_i64(job + AT.page_ids) + 4 * load_i64(span + SPAN.first_id)
            kv = (item - begun) // of_head
            first_head = load_i64(load_i64(job + AT.groups) + 16 * kv)
            n_heads = load_i64(load_i64(job + AT.groups) + 16 * kv + 8) - first_head
            row = (item - begun - kv * of_head) * KV_ROWS  # of the span's rows times the KV head's query heads
            n_rows = min(load_i64(span + SPAN.n_rows) * n_heads - row, KV_ROWS)
            if n_rows <= 0:
                continue
            size = 1  # rows in registers: n_rows, rounded up; those beyond it repeat the last one
            while size < n_rows:
                size *= 2
            for r in range(size):
                real = row + min(r, n_rows - 1)
                q = load_i64(job + AT.q) + (first_row + real // n_heads) * load_i64(job + AT.q_stride)
                q += 4 * width * (first_head + real % n_heads)
                for d in range(0, width, 16):
                    scaled = load_lanes(q + 4 * d, width - d) * splat(load_f32(job + AT.scale))
                    store_lanes(queries + 4 * (r * width + d), scaled, width - d)
                for d in range(0, wide, 16):
                    store_vector(sums + 4 * (r * wide + d), splat(F(0.0)))
                store_f32(state + 8 * r, _NOTHING)  # the largest score so far
                store_f32(state + 8 * r + 4, F(0.0))  # the sum of all weights so far
            keys = load_i64(job + AT.keys) + kv * load_i64(job + AT.key_head_bytes)
            values = load_i64(job + AT.values) + kv * load_i64(job + AT.value_head_bytes)
            seen = start + (row + n_rows - 1) // n_heads + 1  # by the last row
            # Whole pages, so that a row's bits do not depend on which rows go over the cache with it.
            begin = max(0, start + row // n_heads + 1 - window) // PAGE * PAGE
            # After its own pages, those of the next KV head are prefetched.
            next_span, next_kv = span, kv + 1
            if next_kv == n_kv_heads:
                next_span, next_kv = min(span + SPAN_BYTES, spans_end - SPAN_BYTES), 0
            next_ids = load_i64(job + AT.page_ids) + 4 * load_i64(next_span + SPAN.first_id)
            next_seen = load_i64(next_span + SPAN.start) + 1
            next_begin = max(0, next_seen - window) // PAGE * PAGE
            for position in range(begin, seen, PAGE):
                n = min(PAGE, seen - position)
                place = load_i32(ids + 4 * (position // PAGE)) * PAGE
                # Bytes from this page to the one that is prefetched.
                to_keys = to_values = 0
                at = position + n_ahead * PAGE
                if at < seen:
                    moved = (load_i32(ids + 4 * (at // PAGE)) * PAGE - place) * value_bytes
                    to_keys, to_values = moved * width, moved * wide
                else:
                    at = next_begin + (at - seen) // PAGE * PAGE
                    if at < next_seen:
                        moved = (load_i32(next_ids + 4 * (at // PAGE)) * PAGE - place) * value_bytes
                        to_keys = (next_kv - kv) * load_i64(job + AT.key_head_bytes) + moved * width
                        to_values = (next_kv - kv) * load_i64(job + AT.value_head_bytes) + moved * wide
                for i in range(0, n, 16):
                    tile = keys + (place + i) * width * value_bytes
                    tile_scores = scores + _ROW * size * (i // 16)
                    product(size, tile, 16 * value_bytes, queries, 4 * width, width, tile_scores, to_keys)
                for r in range(size):
                    own = start + (row + min(r, n_rows - 1)) // n_heads + 1 - position  # of these, seen by this row
                    gone = own - window  # and of these, no longer
                    top = load_f32(state + 8 * r)
                    best = splat(top)
                    for i in range(0, n, 16):
                        at = scores + _ROW * (size * (i // 16) + r)
                        score = load_vector(at)
                        if softcap > F(0.0):
                            score = softcapped(score, softcap)
                        visible = first_lanes(splat(_NOTHING), gone - i, first_lanes(score, own - i, splat(_NOTHING)))
                        store_vector(at, visible)
                        best = vmax(best, visible)
                    new_top = largest_of(best)
                    total = splat(F(0.0))
                    for i in range(0, n, 16):
                        score = load_vector(scores + _ROW * (size * (i // 16) + r))
                        weight = first_lanes(exponential(score - splat(new_top)), own - i, splat(F(0.0)))
                        weight = first_lanes(splat(F(0.0)), gone - i, weight)
                        store_vector(weights + 4 * (PAGE * r + i), weight)
                        total = total + weight
                    weight_sum = load_f32(state + 8 * r + 4)
                    if new_top > top:
                        shrink = exponential(splat(top - new_top))
                        for d in range(0, wide, 16):
                            at = sums + 4 * (r * wide + d)
                            store_vector(at, load_vector(at) * shrink)
                        weight_sum *= largest_of(shrink)
                        store_f32(state + 8 * r, new_top)
                    store_f32(state + 8 * r + 4, weight_sum + sum_of(total))
                for d in range(0, wide, 16):
                    product(
                        size,
                        values + (place * wide + d) * value_bytes,
                        wide * value_bytes,
                        weights,
                        4 * PAGE,
                        n,
                        part,
                        to_values,
                    )
                    for r in range(size):
                        at = sums + 4 * (r * wide + d)
                        store_vector(at, load_vector(at) + load_vector(part + _ROW * r))
            for r in range(n_rows):
                real = row + r
                out = load_i64(job + AT.out) + (first_row + real // n_heads) * load_i64(job + AT.out_stride)
                out += 4 * width * (first_head + real % n_heads)
                for d in range(0, width, 16):
                    mean = load_vector(sums + 4 * (r * wide + d)) / splat(load_f32(state + 8 * r + 4))
                    store_lanes(out + 4 * d, mean, width - d)

    return attend


@kernel
def attend_by_heads(job, first, last):
    """store_kv and then attend, item by item, if both have the same items: no KV head of a span has over 8 rows."""
    for item in range(first, last):
        call_kernel(load_i64(job + AT.store_kv), job, item, item + 1)
        call_kernel(load_i64(job + AT.attend), job, item, item + 1)


for _name, _half in (("f16", True), ("f32", False)):
    kernel(_make_store_kv(_half), f"store_kv_{_name}")
    kernel(_make_attend(_half), f"attend_{_name}")
