"""The vocabulary of the kernels' numba code: vectors of 16 floats or integers, and memory by address.

Each name is one or two LLVM instructions. An address is an int64. Nothing here knows what is computed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from dllama_zmq.kernels.simd import dots, panels
from dllama_zmq.kernels.simd.host import host_target
from dllama_zmq.kernels.simd.layout import PairBlock

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


f32x16 = Vector("f32x16", dots.F32x16)
i32x16 = Vector("i32x16", dots.I32x16)
_ADDRESS = types.int64
_SCALARS = {types.int64: dots.I64, types.int32: dots.I32, types.float32: dots.F32, types.int8: dots.I8}

Emit = Callable[..., Any]


def _instruction(result: Any, args: tuple[Any, ...], emit: Emit) -> Any:
    """A numba function from types to type whose body is `emit(builder, *values)`."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        value = emit(builder, *values)
        return context.get_dummy_value() if result is types.void else value

    names = ", ".join(f"a{i}" for i in range(len(args)))
    # numba reads an intrinsic's arity from its signature, so the function is made with just that many parameters.
    scope: dict[str, Any] = {"signature": result(*args), "codegen": codegen}
    exec(f"def made(typing_context, {names}):\n    return signature, codegen", scope)
    return intrinsic(scope["made"])


def _loader(numba_type: Any, ir_type: ir.Type) -> Any:
    return _instruction(numba_type, (_ADDRESS,), lambda b, a: dots.load(b, a, 0, ir_type))


def _store(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    b.store(value, dots.pointer(b, address, 0, value.type)).align = 1


def _storer(numba_type: Any) -> Any:
    return _instruction(types.void, (_ADDRESS, numba_type), _store)


load_i64, load_i32, load_f32 = (_loader(t, _SCALARS[t]) for t in (types.int64, types.int32, types.float32))
store_i64, store_i32, store_f32, store_i8 = (_storer(t) for t in (types.int64, types.int32, types.float32, types.int8))
load_u8 = _instruction(types.int64, (_ADDRESS,), lambda b, a: b.zext(dots.load(b, a, 0, dots.I8), dots.I64))
load_vector, store_vector = _loader(f32x16, dots.F32x16), _storer(f32x16)
load_half = _instruction(
    types.float32, (_ADDRESS,),
    lambda b, a: b.extract_element(
        panels.to_f32(b, _TARGET, dots.splat(b, dots.load(b, a, 0, dots.F16), 4)), ir.Constant(dots.I32, 0)
    ),
)  # fmt: skip
load_halves = _instruction(f32x16, (_ADDRESS,), lambda b, a: panels.to_f32(b, _TARGET, dots.load(b, a, 0, dots.F16x16)))
store_halves = _instruction(types.void, (_ADDRESS, f32x16), lambda b, a, v: _store(b, a, panels.to_f16(b, _TARGET, v)))
store_half = _instruction(
    types.void, (_ADDRESS, types.float32),
    lambda b, a, v: _store(
        b, a, b.extract_element(panels.to_f16(b, _TARGET, dots.splat(b, v, 4)), ir.Constant(dots.I32, 0))
    ),
)  # fmt: skip
splat = _instruction(f32x16, (types.float32,), lambda b, v: dots.splat(b, v))
splat_i32 = _instruction(i32x16, (types.int32,), lambda b, v: dots.splat(b, v))
fma = _instruction(f32x16, (f32x16,) * 3, lambda b, u, v, w: panels.multiply_add(b, _TARGET, u, v, w))
square_root = _instruction(types.float32, (types.float32,), lambda b, v: dots.call(b, "llvm.sqrt.f32", v.type, [v]))
# What is not a number stays where it is in the first argument, and is passed over in the second.
at_least = _instruction(f32x16, (f32x16,) * 2, lambda b, u, v: b.select(b.fcmp_ordered("<", u, v), v, u))
at_most = _instruction(f32x16, (f32x16,) * 2, lambda b, u, v: b.select(b.fcmp_ordered(">", u, v), v, u))
larger_ints = _instruction(i32x16, (i32x16,) * 2, lambda b, u, v: b.select(b.icmp_signed(">", u, v), u, v))
without_sign = _instruction(i32x16, (i32x16,), lambda b, v: b.and_(v, dots.fill(v.type, 0x7FFFFFFF)))
float_of_bits = _instruction(types.float32, (types.int32,), lambda b, v: b.bitcast(v, dots.F32))
bits_of = _instruction(i32x16, (f32x16,), lambda b, v: b.bitcast(v, dots.I32x16))
floats_of = _instruction(f32x16, (i32x16,), lambda b, v: b.bitcast(v, dots.F32x16))
shifted_left = _instruction(i32x16, (i32x16, types.int32), lambda b, v, n: b.shl(v, dots.splat(b, n)))
load_signed_bytes = _instruction(
    f32x16, (_ADDRESS,), lambda b, a: b.sitofp(dots.load(b, a, 0, ir.VectorType(dots.I8, 16)), dots.F32x16)
)
store_bytes = _instruction(  # the low byte of each lane
    types.void, (_ADDRESS, i32x16), lambda b, a, v: _store(b, a, b.trunc(v, ir.VectorType(dots.I8, 16)))
)


def _lane_numbers(b: ir.IRBuilder, first: ir.Value) -> ir.Value:
    return b.add(dots.splat(b, b.trunc(first, dots.I32)), ir.Constant(dots.I32x16, list(range(16))))


first_lanes = _instruction(  # v where lane < n, else `other`
    f32x16, (f32x16, types.int64, f32x16),
    lambda b, v, n, other: b.select(
        b.icmp_signed("<", _lane_numbers(b, ir.Constant(dots.I64, 0)), dots.splat(b, b.trunc(n, dots.I32))), v, other
    ),
)  # fmt: skip


lane = _instruction(types.float32, (f32x16, types.int64), lambda b, v, i: b.extract_element(v, b.trunc(i, dots.I32)))
with_lane = _instruction(
    f32x16, (f32x16, types.int64, types.float32), lambda b, v, i, x: b.insert_element(v, x, b.trunc(i, dots.I32))
)


def _folded(combine: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> Emit:
    """All 16 lanes as one scalar: halves upon halves, the same order on every CPU."""

    def emit(b: ir.IRBuilder, vector: ir.Value) -> ir.Value:
        while vector.type.count > 1:
            low, high = dots.parts(b, vector, 2)
            vector = combine(b, low, high)
        return b.extract_element(vector, ir.Constant(dots.I32, 0))

    return emit


sum_of = _instruction(types.float32, (f32x16,), _folded(lambda b, u, v: b.fadd(u, v)))
sum_of_ints = _instruction(types.int32, (i32x16,), _folded(lambda b, u, v: b.add(u, v)))
largest_int_of = _instruction(types.int32, (i32x16,), _folded(lambda b, u, v: b.select(b.icmp_signed(">", u, v), u, v)))
largest_of = _instruction(types.float32, (f32x16,), _folded(lambda b, u, v: b.select(b.fcmp_ordered(">", u, v), u, v)))


def _operator(symbol: Callable[..., Any], kind: Vector, emit: Emit) -> None:
    made = _instruction(kind, (kind, kind), emit)

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


def integer_panel(block: PairBlock, n_tokens: int, n_tiles: int) -> Any:
    """panels.IntegerPanel as a numba function (values, scales, x, n_blocks, out) of addresses."""
    return _instruction(
        types.void, (_ADDRESS,) * 5,
        panels.IntegerPanel(_TARGET, block, n_tokens, n_tiles).emit,
    )  # fmt: skip


def float_panel(lanes: panels.LaneType, n_rows: int, n_tiles: int = 1, ahead: int = 0) -> Any:
    """panels.FloatPanel as a numba function (tile, step, x, x_stride, n, out) of addresses and bytes."""
    return _instruction(
        types.void, (_ADDRESS,) * 6,
        panels.FloatPanel(_TARGET, lanes, n_rows, n_tiles, ahead).emit,
    )  # fmt: skip


def scratch(n_bytes: int) -> Any:
    """A numba function () whose result is the address of `n_bytes` on this call's stack, aligned to 64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        room = cgutils.alloca_once(builder, ir.ArrayType(dots.F32x16, -(-n_bytes // 64)))
        room.align = 64
        return builder.ptrtoint(room, dots.I64)

    def made(typing_context: Any) -> Any:
        return types.int64(), codegen

    return intrinsic(made)


# --- between threads ------------------------------------------------------------------------------------------------

load_shared = _instruction(  # sees all that was written before the store it reads
    types.int64, (_ADDRESS,),
    lambda b, a: b.load_atomic(dots.pointer(b, a, 0, dots.I64), "seq_cst", 8, typ=dots.I64),
)  # fmt: skip
store_shared = _instruction(
    types.void, (_ADDRESS, types.int64),
    lambda b, a, v: b.store_atomic(v, dots.pointer(b, a, 0, dots.I64), "seq_cst", 8),
)  # fmt: skip
add_shared = _instruction(  # the value before
    types.int64, (_ADDRESS, types.int64),
    lambda b, a, v: b.atomic_rmw("add", dots.pointer(b, a, 0, dots.I64), v, "seq_cst"),
)  # fmt: skip
swap_shared = _instruction(  # the value before
    types.int64, (_ADDRESS, types.int64),
    lambda b, a, v: b.atomic_rmw("xchg", dots.pointer(b, a, 0, dots.I64), v, "seq_cst"),
)  # fmt: skip


def _pause(b: ir.IRBuilder) -> None:
    if _TARGET.pause is not None:
        name, args = _TARGET.pause
        values = [ir.Constant(dots.I32, a) for a in args]
        function = b.module.globals.get(name) or ir.Function(
            b.module, ir.FunctionType(ir.VoidType(), [v.type for v in values]), name
        )
        b.call(function, values)


pause = _instruction(types.void, (), _pause)


def _external(name: str, result: ir.Type, args: list[ir.Type]) -> Emit:
    def emit(b: ir.IRBuilder, *values: ir.Value) -> ir.Value:
        function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(result, args), name)
        converted = [b.trunc(v, a) if a is dots.I32 else b.inttoptr(v, a) if isinstance(a, ir.PointerType) else v
                     for v, a in zip(values, args, strict=True)]  # fmt: skip
        return b.call(function, converted)

    return emit


_BYTES = dots.I8.as_pointer()
yield_core = _instruction(types.int32, (), _external("sched_yield", dots.I32, []))
read_file = _instruction(
    types.int64, (types.int64, _ADDRESS, types.int64), _external("read", dots.I64, [dots.I32, _BYTES, dots.I64])
)
write_file = _instruction(
    types.int64, (types.int64, _ADDRESS, types.int64), _external("write", dots.I64, [dots.I32, _BYTES, dots.I64])
)

read_clock = _instruction(  # clock_gettime of a clock's number, to 16 bytes
    types.int32, (types.int64, _ADDRESS), _external("clock_gettime", dots.I32, [dots.I32, _BYTES])
)
compare_bytes = _instruction(  # 0 where the bytes at both addresses are equal
    types.int32, (_ADDRESS, _ADDRESS, types.int64), _external("memcmp", dots.I32, [_BYTES, _BYTES, dots.I64])
)


def _copy_bytes(b: ir.IRBuilder, *args: ir.Value) -> None:
    _external("memcpy", _BYTES, [_BYTES, _BYTES, dots.I64])(b, *args)


copy_bytes = _instruction(types.void, (_ADDRESS, _ADDRESS, types.int64), _copy_bytes)  # to, from, how many


def _call_c(b: ir.IRBuilder, function: ir.Value, *args: ir.Value) -> ir.Value:
    kind = ir.FunctionType(dots.I64, [dots.I64] * len(args))
    return b.call(b.inttoptr(function, kind.as_pointer()), list(args))


call_c = _instruction(types.int64, (_ADDRESS,) * 5, _call_c)
"""Call the C function at an address with four integers or addresses, in registers: it takes as many as it has. Of a
result that is an int, only the lower 32 bits count."""


def _call_address(b: ir.IRBuilder, function: ir.Value, args: ir.Value, first: ir.Value, last: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [dots.I64] * 3)
    b.call(b.inttoptr(function, kind.as_pointer()), [args, first, last])


call_kernel = _instruction(types.void, (_ADDRESS,) * 4, _call_address)
"""Call the kernel at an address: (kernel, args, first, last)."""
