"""Partial sums in the types of the bus: read, added in a tree, written. numba code; items are runs of 32 values.

A Q80 run is one block, an F16 or F32 run 32 values: runs do not depend on each other.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.intrinsics import load_i64, scratch
from dllama_zmq.kernels.simd.job import offsets
from dllama_zmq.kernels.simd.layout import AS_F16, AS_F32, AS_Q80, SumJob
from dllama_zmq.kernels.simd.products import store_q80
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.vectors import (
    load_half,
    load_halves,
    load_signed_bytes,
    load_vector,
    splat,
    store_halves,
    store_vector,
)

AT = offsets(SumJob)
_DEPTH = 9
_stack = scratch(128 * _DEPTH)


@register_jitable
def run_bytes(wire_type):
    """Bytes of a run of 32 values."""
    if wire_type == AS_Q80:
        return 34
    return 64 if wire_type == AS_F16 else 128


@register_jitable
def read_run(wire_type, at):
    """A run as two vectors."""
    if wire_type == AS_F32:
        return load_vector(at), load_vector(at + 64)
    if wire_type == AS_F16:
        return load_halves(at), load_halves(at + 32)
    scale = splat(load_half(at))
    return load_signed_bytes(at + 2) * scale, load_signed_bytes(at + 18) * scale


@register_jitable
def write_run(wire_type, at, low, high):
    """Two vectors as a run."""
    if wire_type == AS_F32:
        store_vector(at, low)
        store_vector(at + 64, high)
    elif wire_type == AS_F16:
        store_halves(at, low)
        store_halves(at + 32, high)
    else:
        store_q80(at, low, high)


@register_jitable
def store_run(at, low, high):
    store_vector(at, low)
    store_vector(at + 64, high)


@register_jitable
def add_to(at, other):
    """Run `at` of the stack += run `other`."""
    store_vector(at, load_vector(at) + load_vector(other))
    store_vector(at + 64, load_vector(at + 64) + load_vector(other + 64))


@kernel
def add_up(job, first, last):
    """The sum of the parts in `tree_sum`'s order, written to `wire` and read back from there to `out`."""
    wire_type, n_parts = load_i64(job + AT.wire_type), load_i64(job + AT.n_parts)
    size = run_bytes(wire_type)
    to, out = load_i64(job + AT.wire), load_i64(job + AT.out)
    stack = _stack()
    for item in range(first, last):
        top = stack
        for i in range(n_parts):
            low, high = read_run(wire_type, load_i64(load_i64(job + AT.parts) + 8 * i) + item * size)
            store_run(top, low, high)
            top += 128
            n_done = i + 1
            while n_done & 1 == 0:
                top -= 128
                add_to(top - 128, top)
                n_done >>= 1
        while top > stack + 128:
            top -= 128
            add_to(top - 128, top)
        if n_parts == 0:
            low, high = load_vector(out + 128 * item), load_vector(out + 128 * item + 64)
        else:
            low, high = load_vector(stack), load_vector(stack + 64)
        if to != 0:
            write_run(wire_type, to + item * size, low, high)
            low, high = read_run(wire_type, to + item * size)
        if out != 0 and n_parts != 0:
            store_run(out + 128 * item, low, high)
