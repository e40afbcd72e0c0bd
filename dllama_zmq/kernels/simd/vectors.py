"""The vector vocabulary of numba code: 16 floats or integers at a time; `intrinsics.py` has the scalar one.

Each name is one or two LLVM instructions. Nothing here knows what is computed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import models, overload, register_model

from dllama_zmq.kernels.simd import llvm
from dllama_zmq.kernels.simd.host import host_target
from dllama_zmq.kernels.simd.intrinsics import ADDRESS, Emit, instruction, loader, store, storer
from dllama_zmq.kernels.simd.layout import PairBlock
from dllama_zmq.kernels.simd.microkernels import FloatMicrokernel, IntegerMicrokernel, LaneType
from dllama_zmq.kernels.simd.repacker import FloatRepacker, Repacker

_TARGET = host_target()


class Vector(types.Type):
    """A numba type that is one LLVM vector."""

    def __init__(self, name: str, of: ir.VectorType) -> None:
        self.ir = of
        super().__init__(name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.ir)


f32x16 = Vector("f32x16", llvm.F32x16)
i32x16 = Vector("i32x16", llvm.I32x16)
load_vector, store_vector = loader(f32x16, llvm.F32x16), storer(f32x16)
load_half = instruction(
    types.float32,
    (ADDRESS,),
    lambda b, a: b.extract_element(
        llvm.to_f32(b, _TARGET, llvm.splat(b, llvm.load(b, a, 0, llvm.F16), 4)), ir.Constant(llvm.I32, 0)
    ),
)
load_halves = instruction(f32x16, (ADDRESS,), lambda b, a: llvm.to_f32(b, _TARGET, llvm.load(b, a, 0, llvm.F16x16)))
store_halves = instruction(types.void, (ADDRESS, f32x16), lambda b, a, v: store(b, a, llvm.to_f16(b, _TARGET, v)))
store_half = instruction(
    types.void,
    (ADDRESS, types.float32),
    lambda b, a, v: store(
        b, a, b.extract_element(llvm.to_f16(b, _TARGET, llvm.splat(b, v, 4)), ir.Constant(llvm.I32, 0))
    ),
)
splat = instruction(f32x16, (types.float32,), lambda b, v: llvm.splat(b, v))
splat_i32 = instruction(i32x16, (types.int32,), lambda b, v: llvm.splat(b, v))
fma = instruction(f32x16, (f32x16,) * 3, lambda b, u, v, w: llvm.multiply_add(b, _TARGET, u, v, w))
square_root = instruction(types.float32, (types.float32,), lambda b, v: llvm.call(b, "llvm.sqrt.f32", v.type, [v]))
# A NaN in the first argument stays; one in the second is ignored.
vmax = instruction(f32x16, (f32x16,) * 2, lambda b, u, v: b.select(b.fcmp_ordered("<", u, v), v, u))
vmin = instruction(f32x16, (f32x16,) * 2, lambda b, u, v: b.select(b.fcmp_ordered(">", u, v), v, u))
larger_ints = instruction(i32x16, (i32x16,) * 2, lambda b, u, v: b.select(b.icmp_signed(">", u, v), u, v))
without_sign = instruction(i32x16, (i32x16,), lambda b, v: b.and_(v, llvm.fill(v.type, 0x7FFFFFFF)))
float_of_bits = instruction(types.float32, (types.int32,), lambda b, v: b.bitcast(v, llvm.F32))
bits_of = instruction(i32x16, (f32x16,), lambda b, v: b.bitcast(v, llvm.I32x16))
floats_of = instruction(f32x16, (i32x16,), lambda b, v: b.bitcast(v, llvm.F32x16))
shifted_left = instruction(i32x16, (i32x16, types.int32), lambda b, v, n: b.shl(v, llvm.splat(b, n)))
load_signed_bytes = instruction(
    f32x16, (ADDRESS,), lambda b, a: b.sitofp(llvm.load(b, a, 0, ir.VectorType(llvm.I8, 16)), llvm.F32x16)
)
store_bytes = instruction(  # the low byte of each lane
    types.void, (ADDRESS, i32x16), lambda b, a, v: store(b, a, b.trunc(v, ir.VectorType(llvm.I8, 16)))
)


def _lane_numbers(b: ir.IRBuilder, first: ir.Value) -> ir.Value:
    return b.add(llvm.splat(b, b.trunc(first, llvm.I32)), ir.Constant(llvm.I32x16, list(range(16))))


first_lanes = instruction(  # v where lane < n, else `other`
    f32x16,
    (f32x16, types.int64, f32x16),
    lambda b, v, n, other: b.select(
        b.icmp_signed("<", _lane_numbers(b, ir.Constant(llvm.I64, 0)), llvm.splat(b, b.trunc(n, llvm.I32))), v, other
    ),
)


lane = instruction(types.float32, (f32x16, types.int64), lambda b, v, i: b.extract_element(v, b.trunc(i, llvm.I32)))
with_lane = instruction(
    f32x16, (f32x16, types.int64, types.float32), lambda b, v, i, x: b.insert_element(v, x, b.trunc(i, llvm.I32))
)


def _folded(combine: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> Emit:
    """All 16 lanes as one scalar: halves upon halves, the same order on every CPU."""

    def emit(b: ir.IRBuilder, vector: ir.Value) -> ir.Value:
        while vector.type.count > 1:
            low, high = llvm.parts(b, vector, 2)
            vector = combine(b, low, high)
        return b.extract_element(vector, ir.Constant(llvm.I32, 0))

    return emit


sum_of = instruction(types.float32, (f32x16,), _folded(lambda b, u, v: b.fadd(u, v)))
sum_of_ints = instruction(types.int32, (i32x16,), _folded(lambda b, u, v: b.add(u, v)))
largest_int_of = instruction(types.int32, (i32x16,), _folded(lambda b, u, v: b.select(b.icmp_signed(">", u, v), u, v)))
largest_of = instruction(types.float32, (f32x16,), _folded(lambda b, u, v: b.select(b.fcmp_ordered(">", u, v), u, v)))


def _operator(symbol: Callable[..., Any], kind: Vector, emit: Emit) -> None:
    made = instruction(kind, (kind, kind), emit)

    @overload(symbol)
    def _(u, v):  # numba compares the names in both signatures, annotations too
        if u is kind and v is kind:
            return lambda u, v: made(u, v)
        return None


_operator(operator.add, f32x16, lambda b, u, v: b.fadd(u, v))
_operator(operator.sub, f32x16, lambda b, u, v: b.fsub(u, v))
_operator(operator.mul, f32x16, lambda b, u, v: b.fmul(u, v))
_operator(operator.truediv, f32x16, lambda b, u, v: b.fdiv(u, v))
_operator(operator.add, i32x16, lambda b, u, v: b.add(u, v))
_operator(operator.sub, i32x16, lambda b, u, v: b.sub(u, v))


def integer_microkernel(block: PairBlock, n_tokens: int, n_tiles: int) -> Any:
    """IntegerMicrokernel as a numba function (pair, half, first_block, x, n_blocks, out)."""
    return instruction(
        types.void,
        (ADDRESS,) * 6,
        IntegerMicrokernel(_TARGET, block, n_tokens, n_tiles).emit,
    )


def repack_scales(name: str, block: PairBlock) -> Any:
    """Repacker.scales as a numba function (at, half, source, stride) -> int64."""
    return instruction(types.int64, (ADDRESS,) * 4, Repacker(name, block).scales)


def repack_values(name: str, block: PairBlock) -> Any:
    """Repacker.values as a numba function (at, half, source, stride, chunk)."""
    return instruction(types.void, (ADDRESS,) * 5, Repacker(name, block).values)


def repack_floats(value_bytes: int) -> Any:
    """FloatRepacker as a numba function (to, source, stride, exponent) -> int64."""
    return instruction(types.int64, (ADDRESS,) * 4, FloatRepacker(value_bytes).emit)


def float_microkernel(lanes: LaneType, n_rows: int, n_tiles: int = 1, ahead: int | None = 0) -> Any:
    """FloatMicrokernel as a numba function (tile, step, x, x_stride, n, out) of addresses and bytes; with `ahead` of
    None of how many bytes ahead, too."""
    return instruction(
        types.void,
        (ADDRESS,) * (7 if ahead is None else 6),
        FloatMicrokernel(_TARGET, lanes, n_rows, n_tiles, ahead).emit,
    )
