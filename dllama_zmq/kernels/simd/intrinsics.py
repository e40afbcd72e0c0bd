"""The scalar vocabulary of numba code: integers and floats in memory by address, atomics, and calls of C functions.

Each name is one or two LLVM instructions. An address is an int64. Nothing here knows of vectors, or what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dllama_zmq.kernels.simd import llvm
from dllama_zmq.kernels.simd.host import host_target

_TARGET = host_target()
ADDRESS = types.int64
_SCALARS = {types.int64: llvm.I64, types.int32: llvm.I32, types.float32: llvm.F32, types.int8: llvm.I8}

Emit = Callable[..., Any]


def instruction(result: Any, args: tuple[Any, ...], emit: Emit) -> Any:
    """A numba function from types to type whose body is `emit(builder, *values)`."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        value = emit(builder, *values)
        return context.get_dummy_value() if result is types.void else value

    names = ", ".join(f"a{i}" for i in range(len(args)))
    # numba reads an intrinsic's arity from its signature, so the function is made with just that many parameters.
    scope: dict[str, Any] = {"signature": result(*args), "codegen": codegen}
    exec(f"def made(typing_context, {names}):\n    return signature, codegen", scope)
    return intrinsic(scope["made"])


def loader(numba_type: Any, ir_type: ir.Type) -> Any:
    """A numba function from an address to the value there."""
    return instruction(numba_type, (ADDRESS,), lambda b, a: llvm.load(b, a, 0, ir_type))


def store(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """Emit a store of `value` at `address`."""
    b.store(value, llvm.pointer(b, address, 0, value.type)).align = 1


def storer(numba_type: Any) -> Any:
    """A numba function (address, value)."""
    return instruction(types.void, (ADDRESS, numba_type), store)


load_i64, load_i32, load_f32 = (loader(t, _SCALARS[t]) for t in (types.int64, types.int32, types.float32))
store_i64, store_i32, store_f32, store_i8 = (storer(t) for t in (types.int64, types.int32, types.float32, types.int8))
load_u8 = instruction(types.int64, (ADDRESS,), lambda b, a: b.zext(llvm.load(b, a, 0, llvm.I8), llvm.I64))


def scratch(n_bytes: int) -> Any:
    """A numba function () whose result is the address of `n_bytes` on this call's stack, aligned to 64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        room = cgutils.alloca_once(builder, ir.ArrayType(llvm.F32x16, -(-n_bytes // 64)))
        room.align = 64
        return builder.ptrtoint(room, llvm.I64)

    def made(typing_context: Any) -> Any:
        return types.int64(), codegen

    return intrinsic(made)


# --- between threads ------------------------------------------------------------------------------------------------

load_shared = instruction(  # sees all that was written before the store it reads
    types.int64,
    (ADDRESS,),
    lambda b, a: b.load_atomic(llvm.pointer(b, a, 0, llvm.I64), "seq_cst", 8, typ=llvm.I64),
)
store_shared = instruction(
    types.void,
    (ADDRESS, types.int64),
    lambda b, a, v: b.store_atomic(v, llvm.pointer(b, a, 0, llvm.I64), "seq_cst", 8),
)
add_shared = instruction(  # the value before
    types.int64,
    (ADDRESS, types.int64),
    lambda b, a, v: b.atomic_rmw("add", llvm.pointer(b, a, 0, llvm.I64), v, "seq_cst"),
)
swap_shared = instruction(  # the value before
    types.int64,
    (ADDRESS, types.int64),
    lambda b, a, v: b.atomic_rmw("xchg", llvm.pointer(b, a, 0, llvm.I64), v, "seq_cst"),
)


def _pause(b: ir.IRBuilder) -> None:
    if _TARGET.pause is not None:
        name, args = _TARGET.pause
        values = [ir.Constant(llvm.I32, a) for a in args]
        function = b.module.globals.get(name) or ir.Function(
            b.module, ir.FunctionType(ir.VoidType(), [v.type for v in values]), name
        )
        b.call(function, values)


pause = instruction(types.void, (), _pause)


def _external(name: str, result: ir.Type, args: list[ir.Type]) -> Emit:
    def emit(b: ir.IRBuilder, *values: ir.Value) -> ir.Value:
        function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(result, args), name)
        converted = [
            b.trunc(v, a) if a is llvm.I32 else b.inttoptr(v, a) if isinstance(a, ir.PointerType) else v
            for v, a in zip(values, args, strict=True)
        ]
        return b.call(function, converted)

    return emit


_BYTES = llvm.I8.as_pointer()
yield_core = instruction(types.int32, (), _external("sched_yield", llvm.I32, []))
read_file = instruction(
    types.int64, (types.int64, ADDRESS, types.int64), _external("read", llvm.I64, [llvm.I32, _BYTES, llvm.I64])
)
write_file = instruction(
    types.int64, (types.int64, ADDRESS, types.int64), _external("write", llvm.I64, [llvm.I32, _BYTES, llvm.I64])
)

read_clock = instruction(  # clock_gettime of a clock's number, to 16 bytes
    types.int32, (types.int64, ADDRESS), _external("clock_gettime", llvm.I32, [llvm.I32, _BYTES])
)
compare_bytes = instruction(  # 0 where the bytes at both addresses are equal
    types.int32, (ADDRESS, ADDRESS, types.int64), _external("memcmp", llvm.I32, [_BYTES, _BYTES, llvm.I64])
)


def _copy_bytes(b: ir.IRBuilder, *args: ir.Value) -> None:
    _external("memcpy", _BYTES, [_BYTES, _BYTES, llvm.I64])(b, *args)


copy_bytes = instruction(types.void, (ADDRESS, ADDRESS, types.int64), _copy_bytes)  # to, from, how many


def _call_c(b: ir.IRBuilder, function: ir.Value, *args: ir.Value) -> ir.Value:
    kind = ir.FunctionType(llvm.I64, [llvm.I64] * len(args))
    return b.call(b.inttoptr(function, kind.as_pointer()), list(args))


call_c = instruction(types.int64, (ADDRESS,) * 5, _call_c)
"""Call the C function at an address with four integers or addresses, in registers: it takes as many as it has. Of a
result that is an int, only the lower 32 bits count."""


def _call_address(b: ir.IRBuilder, function: ir.Value, args: ir.Value, first: ir.Value, last: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [llvm.I64] * 3)
    b.call(b.inttoptr(function, kind.as_pointer()), [args, first, last])


call_kernel = instruction(types.void, (ADDRESS,) * 4, _call_address)
"""Call the kernel at an address: (kernel, args, first, last)."""
