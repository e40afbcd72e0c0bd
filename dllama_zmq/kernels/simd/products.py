"""Products of tiles and tokens, which take nearly all of a token's time. numba code.

A matrix is stored as pairs of tiles of 16 rows (`layout.py`), all columns of a pair together; a pair is a work item.
Tokens come in groups of 8, 4, 2 and 1, as registers allow, with AMX of 32 and 16 before: a pair is read from memory
once, stays in the core's cache, and is multiplied by group after group. With enough registers a group is multiplied by
both tiles of a pair at once, so that memory is read in one stream.

Integer products take their tokens as `quantize` lays them out. The order of addition is that of `Kernels.linear`:
blocks one after another within a segment, segments in a balanced tree.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd import amx
from dllama_zmq.kernels.simd.host import host_target
from dllama_zmq.kernels.simd.intrinsics import (
    load_f32,
    load_i64,
    scratch,
    store_f32,
    store_i32,
)
from dllama_zmq.kernels.simd.job import offsets
from dllama_zmq.kernels.simd.layout import (
    AS_F32,
    AS_Q80,
    BLOCKS,
    GATED_GELU,
    GATED_SILU,
    X_BLOCK,
    ProductJob,
    QuantizeJob,
    X,
)
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.rows import norm_scale
from dllama_zmq.kernels.simd.vector_math import (
    F,
    block_scale,
    gelu_times,
    quantized,
    silu_times,
    store_lanes,
    store_scale,
)
from dllama_zmq.kernels.simd.vectors import (
    float_microkernel,
    integer_microkernel,
    load_half,
    load_vector,
    splat,
    store_bytes,
    store_halves,
    store_vector,
    sum_of_ints,
)

AT, QUANTIZE = offsets(ProductJob), offsets(QuantizeJob)
MAX_TOKENS = host_target().tokens
"""Tokens in the largest group that goes over a tile in registers."""
MAX_GROUP = amx.GROUP if host_target().amx else MAX_TOKENS
"""Tokens in the largest group of an integer product."""
_PAIRED = host_target().paired
_ROW = 64  # bytes of 16 floats
SLOT = 2 * MAX_GROUP * _ROW  # both tiles times the tokens of the largest group
DEPTH = 9  # unfinished sub-trees of 2^8 segments
_sums = scratch(SLOT * DEPTH)
_AHEAD = {1: 2048, 2: 0, 4: 8192, 8: 8192}
"""Bytes that float products prefetch ahead, by tokens. Integer products: see microkernels.py."""


@register_jitable
def group_size(n_left, largest):
    """Tokens in the next group."""
    size = largest
    while size > n_left:
        size >>= 1
    return size


@kernel
def quantize(job, first, last):
    """Tokens x (T, n_columns) f32, normed if there is a gain, as blocks: 32 bytes, a scale and sums; group by group at
    out.

    A group of R tokens is, block after block, R times X_BLOCK bytes. Items are MAX_TOKENS tokens.
    """
    n_blocks = load_i64(job + QUANTIZE.n_columns) // 32
    n_tokens = load_i64(job + QUANTIZE.n_tokens)
    stride, gain = load_i64(job + QUANTIZE.x_stride), load_i64(job + QUANTIZE.gain)
    start, size = 0, group_size(n_tokens, MAX_GROUP)
    for t in range(first * MAX_TOKENS, min(n_tokens, last * MAX_TOKENS)):
        while t >= start + size:
            start += size
            size = group_size(n_tokens - start, MAX_GROUP)
        row = load_i64(job + QUANTIZE.x) + t * stride
        norm = splat(F(1.0))
        if gain != 0:
            norm = norm_scale(row, 32 * n_blocks, load_f32(job + QUANTIZE.eps))
        for b in range(n_blocks):
            low, high = load_vector(row + 128 * b), load_vector(row + 128 * b + _ROW)
            if gain != 0:
                low = low * norm * load_vector(gain + 128 * b)
                high = high * norm * load_vector(gain + 128 * b + _ROW)
            scale = block_scale(low, high)
            at = load_i64(job + QUANTIZE.out) + (start * n_blocks + b * size + t - start) * X_BLOCK
            q_low, q_high = quantized(low, scale), quantized(high, scale)
            store_bytes(at, q_low)
            store_bytes(at + 16, q_high)
            store_scale_f32(at + X.scale, scale)
            store_sums(at, sum_of_ints(q_low), sum_of_ints(q_high))


@register_jitable
def store_sums(at, first, last):
    """What a block has of the sums of its first and last 16 values."""
    whole = first + last
    store_f32(at + X.scaled_sum, F(whole) * load_f32(at + X.scale))
    store_i32(at + X.minus_8, -8 * whole)
    store_i32(at + X.minus_16, -16 * whole)
    store_i32(at + X.minus_128, -128 * whole)
    store_i32(at + X.first_minus_32, -32 * first)
    store_i32(at + X.last_minus_32, -32 * last)


@register_jitable
def store_scale_f32(at, scale):
    """A block's scale as f32, rounded to f16 as the wire would."""
    store_scale(at, scale)
    store_f32(at, load_half(at))


# How the columns of a group of tokens are cut, in units (blocks of 32 columns, or columns). Returns: segments, units in
# each, the address of token `t`, bytes from one segment to the next, and bytes from a token to the next (floats).


@register_jitable
def _integer_cut(job, t, size):
    n_blocks, n_segments = load_i64(job + AT.n_columns) // 32, load_i64(job + AT.n_segments)
    each = n_blocks // n_segments
    return n_segments, each, load_i64(job + AT.x) + t * n_blocks * X_BLOCK, each * size * X_BLOCK, 0


@register_jitable
def _float_cut(job, t, size):
    stride, n_segments = load_i64(job + AT.x_stride), load_i64(job + AT.n_segments)
    each = load_i64(job + AT.n_columns) // n_segments
    return n_segments, each, load_i64(job + AT.x) + t * stride, 4 * each, stride


def _make_integer(block):
    def made(n_tokens):
        inner = integer_microkernel(block, n_tokens, 2 if n_tokens <= _PAIRED else 1)

        @register_jitable
        def microkernel(pair, half, first, values, stride, n, out):
            inner(pair, half, first, values, n, out)

        return microkernel

    return _make_times(_integer_cut, made, amx.tile_microkernel(block) if host_target().amx else None)


def _make_float(lanes, value_bytes):
    step = 32 * value_bytes

    def made(n_tokens):
        inner = float_microkernel(lanes, n_tokens, 2 if n_tokens <= _PAIRED else 1, _AHEAD[n_tokens])

        @register_jitable
        def microkernel(pair, half, first, values, stride, n, out):
            inner(pair + first * step + half * 16 * value_bytes, step, values, stride, n, out)

        return microkernel

    return _make_times(_float_cut, made)


def _make_times(cut, made, many=None):
    """A pair times a group of tokens, and a pair times a group of one.

    made: from a number of tokens to a micro-kernel, over both tiles for up to _PAIRED tokens. many: the micro-kernel of
    larger groups than MAX_TOKENS, over both tiles. All is inlined: only the stack frame of a kernel, which has
    `scratch`, is aligned to vectors; elsewhere a spilled vector would straddle cache lines (8% with AVX2).
    """
    kernel1, most = made(1), made(MAX_TOKENS)
    any_size = by_size(kernel1, made(2), made(4), most, MAX_TOKENS)
    if many is not None:
        any_size = by_number(any_size, many)

    @register_jitable(forceinline=True)
    def only1(size, *args):
        kernel1(*args)

    @register_jitable(forceinline=True)
    def only_most(size, *args):
        most(*args)

    def one_pass(microkernel, n_tiles):
        @register_jitable(forceinline=True)
        def over(job, pair, first, half, t, size, sums):
            n_segments, each, x, x_bytes, stride = cut(job, t, size)
            top = sums
            for s in range(n_segments):
                microkernel(size, pair, half, first + s * each, x + s * x_bytes, stride, each, top)
                top = merged(top + SLOT, s + 1, n_tiles * size)
            finish_tree(sums, top, n_tiles * size)

        return over

    over_both, over_one, with_one = one_pass(any_size, 2), one_pass(only_most, 1), one_pass(only1, 2)

    @register_jitable(forceinline=True)
    def times(job, pair, t, size, sums):
        """A pair times the group of `size` tokens from `t` on -> (2, size, 16) f32 at `sums`, tile by tile."""
        first = load_i64(job + AT.first_unit)
        if _PAIRED == MAX_TOKENS or size < MAX_TOKENS:
            over_both(job, pair, first, 0, t, size, sums)
        else:
            for half in range(2):
                over_one(job, pair, first, half, t, MAX_TOKENS, sums + half * _ROW * MAX_TOKENS)

    @register_jitable(forceinline=True)
    def times_one(job, pair, first, t, sums):
        """A pair from its unit `first` on times the group of one token `t` -> (2, 16) f32 at `sums`."""
        with_one(job, pair, first, 0, t, 1, sums)

    return times, times_one


def by_size(kernel1, kernel2, kernel4, most, n_most):
    """A micro-kernel that is one of these by its first argument: 1, 2, 4 (if that is less than `n_most`), or more."""

    @register_jitable(forceinline=True)
    def microkernel(size, *args):
        if size == 1:
            kernel1(*args)
        elif size == 2:
            kernel2(*args)
        elif size == 4 and n_most > 4:
            kernel4(*args)
        else:
            most(*args)

    return microkernel


def by_number(few, many):
    """A micro-kernel that is `few` for up to MAX_TOKENS tokens, its first argument, and `many` for more."""

    @register_jitable(forceinline=True)
    def microkernel(size, *args):
        if size <= MAX_TOKENS:
            few(size, *args)
        else:
            many(size, *args)

    return microkernel


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
def store_epilogue(job, item, t, size, sums):
    """Store the sums of an item's two tiles as `epilogue` says, for the group of `size` tokens from `t` on."""
    epilogue, stride, n_rows = load_i64(job + AT.epilogue), load_i64(job + AT.out_stride), load_i64(job + AT.n_rows)
    for r in range(size):
        row = load_i64(job + AT.out) + (t + r) * stride
        a, b = load_vector(sums + _ROW * r), load_vector(sums + _ROW * (size + r))
        if epilogue == AS_F32:
            store_lanes(row + 128 * item, a, n_rows - 32 * item)
            store_lanes(row + 128 * item + _ROW, b, n_rows - 32 * item - 16)
        elif epilogue == GATED_SILU:
            store_lanes(row + _ROW * item, silu_times(a, b), n_rows - 16 * item)
        elif epilogue == GATED_GELU:
            store_lanes(row + _ROW * item, gelu_times(a, b), n_rows - 16 * item)
        elif epilogue == AS_Q80:
            store_q80(row + 34 * item, a, b)
        else:
            store_halves(row + 64 * item, a)
            store_halves(row + 64 * item + 32, b)


@register_jitable
def store_q80(at, low, high):
    """32 values as one Q80 block."""
    scale = block_scale(low, high)
    store_bytes(at + 2, quantized(low, scale))
    store_bytes(at + 18, quantized(high, scale))
    store_scale(at, scale)


def _make_product(times, largest):
    def product(job, first, last):
        """Work items `first` to `last` of a matrix: 32 rows (or 16 of gate and 16 of up) times all tokens."""
        n_tokens = load_i64(job + AT.n_tokens)
        pair_bytes = load_i64(job + AT.pair_bytes)
        sums = _sums()
        for item in range(first, last):
            pair = load_i64(job + AT.pairs) + item * pair_bytes
            t = 0
            while t < n_tokens:
                size = group_size(n_tokens - t, largest)
                times(job, pair, t, size, sums)
                store_epilogue(job, item, t, size, sums)
                t += size

    return product


TIMES = {
    **{name: _make_integer(block) for name, block in BLOCKS.items()},
    "f16": _make_float("f16", 2),
    "bf16": _make_float("bf16", 2),
    "f32": _make_float("f32", 4),
}
"""By the weights' type: a pair of tiles times a group of tokens, and times a group of one."""
for _kind, (_times, _) in TIMES.items():
    kernel(_make_product(_times, MAX_GROUP if _kind in BLOCKS else MAX_TOKENS), f"product_{_kind}")
