"""Functions of vectors that several kernels use: exponential, activations, Q80 blocks, partial vectors. numba code.

A kernel is a function `(job, first, last)` of int64: the address of its arguments, and the work items that this call
does. Any split of the items over calls and threads gives the same bits.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from dllama_zmq.kernels.simd.intrinsics import load_f32, store_f32
from dllama_zmq.kernels.simd.vectors import (
    bits_of,
    float_of_bits,
    floats_of,
    fma,
    lane,
    larger_ints,
    largest_int_of,
    load_vector,
    shifted_left,
    splat,
    splat_i32,
    store_half,
    store_vector,
    vmax,
    vmin,
    with_lane,
    without_sign,
)

F = np.float32
_ROUNDER = F(1.5 * 2**23)  # adding it rounds a small number to an integer, half to even
_ROUNDER_BITS = np.int32(np.float32(_ROUNDER).view(np.int32))
_LOG2E = F(1.44269504088896341)
_LN2_HIGH = F(-0.693359375)  # 10 bits: n times it is exact
_LN2_LOW = F(2.12194440e-4)
_GELU_SLOPE = F(-2 * (2 / np.pi) ** 0.5)
_GELU_CUBE = F(0.044715)
_TINIEST = F(1e-37)
_HALF_MAX = F(65504.0)


@register_jitable
def exponential(x):
    """e^x for 16 values, within 2 units in the last place; 1e-38 below -87, inf above 88.4. Cephes' polynomial."""
    x = vmin(vmax(x, splat(F(-87.3))), splat(F(89.0)))
    rounded = fma(x, splat(_LOG2E), splat(_ROUNDER))
    power = bits_of(rounded) - splat_i32(_ROUNDER_BITS)
    n = rounded - splat(_ROUNDER)
    r = fma(n, splat(_LN2_LOW), fma(n, splat(_LN2_HIGH), x))
    p = fma(splat(F(1.9875691500e-4)), r, splat(F(1.3981999507e-3)))
    p = fma(p, r, splat(F(8.3334519073e-3)))
    p = fma(p, r, splat(F(4.1665795894e-2)))
    p = fma(p, r, splat(F(1.6666665459e-1)))
    p = fma(p, r, splat(F(5.0000001201e-1)))
    p = fma(p, r * r, r) + splat(F(1.0))
    return p * floats_of(shifted_left(power + splat_i32(np.int32(127)), np.int32(23)))  # a NaN stays one


@register_jitable
def silu_times(gate, up):
    """gate / (1 + e^-gate) * up."""
    return gate / (splat(F(1.0)) + exponential(splat(F(0.0)) - gate)) * up


@register_jitable
def gelu_times(gate, up):
    """GELU(gate) * up by the tanh formula: gate / (1 + e^-2u) * up with u = sqrt(2 / pi) (gate + 0.044715 gate^3)."""
    inner = fma(gate * gate * gate, splat(_GELU_CUBE), gate)
    return gate / (splat(F(1.0)) + exponential(inner * splat(_GELU_SLOPE))) * up


@register_jitable
def softcapped(values, cap):
    """cap * tanh(values / cap)."""
    turns = exponential(values * splat(F(2.0) / cap))
    return splat(cap) - splat(F(2.0) * cap) / (turns + splat(F(1.0)))


@register_jitable
def block_scale(low, high):
    """The scale of 32 values as a Q80 block: the largest magnitude over 127. Infinities and NaNs give NaN."""
    biggest = float_of_bits(largest_int_of(larger_ints(without_sign(bits_of(low)), without_sign(bits_of(high)))))
    return (biggest - biggest + biggest) / F(127.0)


@register_jitable
def quantized(values, scale):
    """16 values divided by `scale`, rounded half to even, -127..127."""
    inverse = F(1.0) / scale if scale > _TINIEST else F(0.0)
    ratio = vmin(vmax(values * splat(inverse), splat(F(-127.0))), splat(F(127.0)))
    return bits_of(ratio + splat(_ROUNDER)) - splat_i32(_ROUNDER_BITS)


@register_jitable
def store_scale(at, scale):
    """A block's scale as f16, at most the largest f16."""
    store_half(at, min(scale, _HALF_MAX) if scale == scale else scale)


@register_jitable
def store_lanes(at, values, n):
    """The first `n` of 16 values, f32."""
    if n >= 16:
        store_vector(at, values)
    else:
        for i in range(n):
            store_f32(at + 4 * i, lane(values, i))


@register_jitable
def load_lanes(at, n):
    """The first `n` of 16 values from memory; the others are 0."""
    if n >= 16:
        return load_vector(at)
    values = splat(F(0.0))
    for i in range(n):
        values = with_lane(values, i, load_f32(at + 4 * i))
    return values
