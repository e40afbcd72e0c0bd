"""Rotary embedding: a head's pairs rotated by a token's angles. numba code."""

from __future__ import annotations

from llvmlite import ir
from numba.extending import intrinsic, register_jitable

from dllama_zmq.kernels.simd import llvm
from dllama_zmq.kernels.simd.intrinsics import load_f32, store_f32
from dllama_zmq.kernels.simd.layout import LANES
from dllama_zmq.kernels.simd.vector_math import load_lanes, store_lanes
from dllama_zmq.kernels.simd.vectors import f32x16, load_vector, store_vector


def _picked(lanes):
    """A numba function (u, v): the lanes with these indices of u followed by v."""
    pick = ir.Constant(ir.VectorType(llvm.I32, LANES), lanes)

    def codegen(context, builder, signature, values):
        return builder.shuffle_vector(*values, pick)

    def made(typing_context, u, v):
        return f32x16(f32x16, f32x16), codegen

    return intrinsic(made)


_evens, _odds = _picked(list(range(0, 32, 2))), _picked(list(range(1, 32, 2)))
_low, _high = (_picked([lane for i in of for lane in (i, 16 + i)]) for of in (range(8), range(8, 16)))


@register_jitable
def rotate(head, half, interleaved, cos, sin):
    """Rotate the `half` pairs of a head, in place; `cos` and `sin` are the addresses of those of the angles."""
    if not interleaved:
        for i in range(0, half, 16):
            n = half - i
            first, second = head + 4 * i, head + 4 * (half + i)
            u, v, c, s = (
                load_lanes(first, n),
                load_lanes(second, n),
                load_lanes(cos + 4 * i, n),
                load_lanes(sin + 4 * i, n),
            )
            store_lanes(first, u * c - v * s, n)
            store_lanes(second, u * s + v * c, n)
        return
    whole = half // 16 * 16
    for i in range(0, whole, 16):
        at = head + 8 * i
        a, b, c, s = load_vector(at), load_vector(at + 64), load_vector(cos + 4 * i), load_vector(sin + 4 * i)
        u, v = _evens(a, b), _odds(a, b)
        first, second = u * c - v * s, u * s + v * c
        store_vector(at, _low(first, second))
        store_vector(at + 64, _high(first, second))
    for i in range(whole, half):
        at = head + 8 * i
        u, v, c, s = load_f32(at), load_f32(at + 4), load_f32(cos + 4 * i), load_f32(sin + 4 * i)
        store_f32(at, u * c - v * s)
        store_f32(at + 4, u * s + v * c)
