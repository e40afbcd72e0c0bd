"""Products of tiles and tokens: what nearly all of a token's time goes into. numba code.

A matrix is kept as pairs of tiles of 16 rows (`layout.py`), all columns of a pair in one piece; a pair is a work item.
Tokens come in groups of 8, 4, 2, 1, as the CPU's registers allow: a pair is read from memory once, stays in the core's
cache, and meets group after group. One token alone meets both tiles of a pair at once.

Integer products take their tokens as `quantize` lays them out. Sums are taken as `Kernels.linear` says: blocks one
after another within a segment, segments in a balanced tree.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.host import host_target
from dllama_zmq.kernels.simd.layout import (
    AS_F32,
    AS_Q80,
    EPS,
    FORM,
    GAIN,
    GATED,
    GATED_GELU,
    N_COLUMNS,
    N_ROWS,
    N_SEGMENTS,
    N_TOKENS,
    OUT,
    OUT_STRIDE,
    PAIR_BYTES,
    PAIRS,
    Q40,
    Q41,
    Q80,
    SCALES,
    X_BLOCK,
    X_STRIDE,
    X,
)
from dllama_zmq.kernels.simd.pieces import F, block_scale, gelu_times, quantized, silu_times, store_lanes, store_scale
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.rows import norm_scale
from dllama_zmq.kernels.simd.vectors import (
    float_panel,
    integer_panel,
    load_f32,
    load_half,
    load_i64,
    load_vector,
    scratch,
    splat,
    store_bytes,
    store_f32,
    store_halves,
    store_i32,
    store_vector,
    sum_of_ints,
)

MOST = host_target().tokens
"""Tokens in the largest group."""
_ROW = 64  # bytes of 16 floats
SLOT = 8 * _ROW  # one tile times the tokens of one group
DEPTH = 9  # unfinished sub-trees of 2^8 segments
_sums_a, _sums_b = scratch(SLOT * DEPTH), scratch(SLOT * DEPTH)


@register_jitable
def group_size(n_left):
    """How many of the tokens that are left the next group takes."""
    size = MOST
    while size > n_left:
        size >>= 1
    return size


@kernel
def quantize(job, first, last):
    """Tokens X (T, N_COLUMNS) f32, normed where there is a GAIN, as blocks: 32 bytes, a scale and a sum; group by group
    at OUT.

    A group of R tokens is, block after block, R times X_BLOCK bytes. Items are groups of MOST tokens.
    """
    n_blocks = load_i64(job + N_COLUMNS) // 32
    n_tokens = load_i64(job + N_TOKENS)
    stride, gain = load_i64(job + X_STRIDE), load_i64(job + GAIN)
    for item in range(first, last):
        t = item * MOST
        end = min(n_tokens, t + MOST)
        while t < end:
            size = group_size(end - t)
            group = load_i64(job + OUT) + t * n_blocks * X_BLOCK
            for r in range(size):
                row = load_i64(job + X) + (t + r) * stride
                norm = splat(F(1.0))
                if gain != 0:
                    norm = norm_scale(row, 32 * n_blocks, load_f32(job + EPS))
                for b in range(n_blocks):
                    low, high = load_vector(row + 128 * b), load_vector(row + 128 * b + _ROW)
                    if gain != 0:
                        low = low * norm * load_vector(gain + 128 * b)
                        high = high * norm * load_vector(gain + 128 * b + _ROW)
                    scale = block_scale(low, high)
                    at = group + (b * size + r) * X_BLOCK
                    q_low, q_high = quantized(low, scale), quantized(high, scale)
                    store_bytes(at, q_low)
                    store_bytes(at + 16, q_high)
                    store_scale_f32(at + 32, scale)
                    store_i32(at + 36, sum_of_ints(q_low + q_high))
            t += size


@register_jitable
def store_scale_f32(at, scale):
    """A block's scale as f32, with no more of it than f16 holds: a product's scale is what the wire would carry."""
    store_scale(at, scale)
    store_f32(at, load_half(at))


@register_jitable
def cut(job, t):
    """Segments, blocks in each, and where token `t`'s blocks are."""
    n_blocks = load_i64(job + N_COLUMNS) // 32
    n_segments = load_i64(job + N_SEGMENTS)
    return n_segments, n_blocks // n_segments, load_i64(job + X) + t * n_blocks * X_BLOCK


def _make_integer(block):
    block_bytes, value_bytes, scales_at = block.nbytes, block.value_bytes, block.scales_at
    pair1 = integer_panel(block, 1, 2)
    panel2, panel4, panel8 = (integer_panel(block, n, 1) for n in (2, 4, MOST))

    @register_jitable
    def tile_times(job, pair, half, t, size, sums):
        """One tile of a pair times the group of `size` > 1 tokens from `t` on -> (size, 16) f32 at `sums`."""
        n_segments, each, x = cut(job, t)
        top = sums
        for s in range(n_segments):
            at = pair + s * each * block_bytes
            weights, scales = at + half * value_bytes, at + scales_at + half * SCALES
            values = x + s * each * size * X_BLOCK
            if size == 2:
                panel2(weights, scales, values, each, top)
            elif size == 4 and MOST > 4:
                panel4(weights, scales, values, each, top)
            else:
                panel8(weights, scales, values, each, top)
            top = merged(top + SLOT, s + 1, size)
        finish_tree(sums, top, size)

    @register_jitable
    def pair_times(job, pair, t, sums_a, sums_b):
        """Both tiles of a pair times token `t` -> 16 f32 each at `sums_a` and `sums_b`."""
        n_segments, each, x = cut(job, t)
        top = sums_a
        for s in range(n_segments):
            at = pair + s * each * block_bytes
            pair1(at, at + scales_at, x + s * each * X_BLOCK, each, top)
            top = merged(top + SLOT, s + 1, 2)
        finish_tree(sums_a, top, 2)
        store_vector(sums_b, load_vector(sums_a + _ROW))

    return tile_times, pair_times


def _make_float(lanes, value_bytes):
    panel1, panel2, panel4, panel8 = (float_panel(lanes, n) for n in (1, 2, 4, 8))

    @register_jitable
    def tile_times(job, pair, half, t, size, sums):
        """One tile of a pair times the group of `size` tokens from `t` on -> (size, 16) f32 at `sums`."""
        n_columns, n_segments = load_i64(job + N_COLUMNS), load_i64(job + N_SEGMENTS)
        stride = load_i64(job + X_STRIDE)
        x = load_i64(job + X) + t * stride
        each = n_columns // n_segments
        step = 32 * value_bytes
        tile = pair + half * 16 * value_bytes
        top = sums
        for s in range(n_segments):
            weights, values = tile + s * each * step, x + 4 * s * each
            if size == 1:
                panel1(weights, step, values, stride, each, top)
            elif size == 2:
                panel2(weights, step, values, stride, each, top)
            elif size == 4:
                panel4(weights, step, values, stride, each, top)
            else:
                panel8(weights, step, values, stride, each, top)
            top = merged(top + SLOT, s + 1, size)
        finish_tree(sums, top, size)

    @register_jitable
    def pair_times(job, pair, t, sums_a, sums_b):
        """Both tiles of a pair times token `t` -> 16 f32 each at `sums_a` and `sums_b`."""
        tile_times(job, pair, 0, t, 1, sums_a)
        tile_times(job, pair, 1, t, 1, sums_b)

    return tile_times, pair_times


@register_jitable
def add_slots(to, other, size):
    """Slot `to` += slot `other`, for a group of `size` tokens."""
    for r in range(size):
        store_vector(to + _ROW * r, load_vector(to + _ROW * r) + load_vector(other + _ROW * r))


@register_jitable
def merged(top, n_done, size):
    """Add sub-trees of equal size at the top of the stack, as `n_done` segments allow; the new top."""
    while n_done & 1 == 0:
        top -= SLOT
        add_slots(top - SLOT, top, size)
        n_done >>= 1
    return top


@register_jitable
def finish_tree(sums, top, size):
    """Add what is left on the stack, the latest first; the result is its lowest slot."""
    top -= SLOT
    while top > sums:
        add_slots(top - SLOT, top, size)
        top -= SLOT


@register_jitable
def put(job, item, t, size, sums_a, sums_b):
    """What becomes of the sums of an item's two tiles, for the group of `size` tokens from `t` on."""
    form, stride, n_rows = load_i64(job + FORM), load_i64(job + OUT_STRIDE), load_i64(job + N_ROWS)
    for r in range(size):
        row = load_i64(job + OUT) + (t + r) * stride
        a, b = load_vector(sums_a + _ROW * r), load_vector(sums_b + _ROW * r)
        if form == AS_F32:
            store_lanes(row + 128 * item, a, n_rows - 32 * item)
            store_lanes(row + 128 * item + _ROW, b, n_rows - 32 * item - 16)
        elif form == GATED:
            store_lanes(row + _ROW * item, silu_times(a, b), n_rows - 16 * item)
        elif form == GATED_GELU:
            store_lanes(row + _ROW * item, gelu_times(a, b), n_rows - 16 * item)
        elif form == AS_Q80:
            put_q80(row + 34 * item, a, b)
        else:
            store_halves(row + 64 * item, a)
            store_halves(row + 64 * item + 32, b)


@register_jitable
def put_q80(at, low, high):
    """32 values as one Q80 block."""
    scale = block_scale(low, high)
    store_bytes(at + 2, quantized(low, scale))
    store_bytes(at + 18, quantized(high, scale))
    store_scale(at, scale)


def _make_product(times, most):
    tile_times, pair_times = times

    def product(job, first, last):
        """Work items `first` to `last` of a matrix: 32 rows (or 16 of gate and 16 of up) times all tokens."""
        n_tokens = load_i64(job + N_TOKENS)
        pair_bytes = load_i64(job + PAIR_BYTES)
        sums_a, sums_b = _sums_a(), _sums_b()
        for item in range(first, last):
            pair = load_i64(job + PAIRS) + item * pair_bytes
            t = 0
            while t < n_tokens:
                size = most
                while size > n_tokens - t:
                    size >>= 1
                if size == 1:
                    pair_times(job, pair, t, sums_a, sums_b)
                else:
                    tile_times(job, pair, 0, t, size, sums_a)
                    tile_times(job, pair, 1, t, size, sums_b)
                put(job, item, t, size, sums_a, sums_b)
                t += size

    return product


TIMES = {
    "q40": (_make_integer(Q40), MOST),
    "q41": (_make_integer(Q41), MOST),
    "q80": (_make_integer(Q80), MOST),
    "f16": (_make_float("f16", 2), 8),
    "bf16": (_make_float("bf16", 2), 8),
    "f32": (_make_float("f32", 4), 8),
}
"""By the weights' type: a tile of a pair times a group of tokens, both tiles times one token, and the largest group."""
for _kind, (_times, _most) in TIMES.items():
    kernel(_make_product(_times, _most), f"product_{_kind}")
