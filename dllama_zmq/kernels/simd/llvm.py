"""Types and short functions for building LLVM code with llvmlite. Knows no numba."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from dllama_zmq.kernels.simd.layout import LANES
from dllama_zmq.kernels.simd.target import Target

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()
U8x64, I32x16, F32x16, F16x16 = (ir.VectorType(t, n) for t, n in ((I8, 64), (I32, 16), (F32, 16), (F16, 16)))


def pointer(b: ir.IRBuilder, address: ir.Value, offset: int, to: ir.Type) -> ir.Value:
    """The address (i64) plus `offset` bytes as a pointer."""
    if offset:
        address = b.add(address, ir.Constant(I64, offset))
    return b.inttoptr(address, to.as_pointer())


def load(b: ir.IRBuilder, address: ir.Value, offset: int, of: ir.Type, align: int = 1) -> ir.Value:
    """A value of type `of` at `address` + `offset`."""
    value = b.load(pointer(b, address, offset, of), typ=of)
    value.align = align
    return value


def splat(b: ir.IRBuilder, scalar: ir.Value, lanes: int = LANES) -> ir.Value:
    """A vector of `lanes` times the same scalar."""
    kind = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    one = b.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def call(b: ir.IRBuilder, name: str, result: ir.Type, args: Sequence[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic or an external function by name."""
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(result, [a.type for a in args]), name)
    return b.call(function, args)


def fill(kind: ir.VectorType, value: float) -> ir.Constant:
    """A constant vector."""
    return ir.Constant(kind, [value] * kind.count)


def parts(b: ir.IRBuilder, vector: ir.Value, count: int) -> list[ir.Value]:
    """`vector` cut into `count` equal pieces."""
    if count == 1:
        return [vector]
    width = vector.type.count // count
    undefined = ir.Constant(vector.type, ir.Undefined)
    picks = [ir.Constant(ir.VectorType(I32, width), list(range(i * width, (i + 1) * width))) for i in range(count)]
    return [b.shuffle_vector(vector, undefined, pick) for pick in picks]


def joined(b: ir.IRBuilder, pieces: Sequence[ir.Value]) -> ir.Value:
    """Pieces (a power of two of them) put together again."""
    pieces = list(pieces)
    while len(pieces) > 1:
        width = 2 * pieces[0].type.count
        pick = ir.Constant(ir.VectorType(I32, width), list(range(width)))
        pieces = [b.shuffle_vector(pieces[i], pieces[i + 1], pick) for i in range(0, len(pieces), 2)]
    return pieces[0]


def multiply_add(b: ir.IRBuilder, target: Target, u: ir.Value, v: ir.Value, w: ir.Value) -> ir.Value:
    """u * v + w, with one rounding where the CPU does that by itself."""
    if not target.fma:
        return b.fadd(b.fmul(u, v), w)
    return call(b, f"llvm.fma.v{u.type.count}f32", u.type, [u, v, w])


def to_f32(b: ir.IRBuilder, target: Target, halves: ir.Value) -> ir.Value:
    """f16 lanes as f32. CPUs without the conversion get it from integers: exact, infinities and NaNs too."""
    wide = ir.VectorType(F32, halves.type.count)
    if target.half:
        return b.fpext(halves, wide)
    ints = ir.VectorType(I32, halves.type.count)
    bits = b.zext(b.bitcast(halves, ir.VectorType(ir.IntType(16), halves.type.count)), ints)
    magnitude = b.shl(b.and_(bits, fill(ints, 0x7FFF)), fill(ints, 13))
    sign = b.shl(b.and_(bits, fill(ints, 0x8000)), fill(ints, 16))
    # The exponent is 112 too small for f32; a multiplication puts that right for subnormal numbers also.
    scaled = b.bitcast(b.fmul(b.bitcast(magnitude, wide), fill(wide, 2.0**112)), ints)
    special = b.icmp_unsigned(">=", magnitude, fill(ints, 0x7C00 << 13))
    scaled = b.select(special, b.or_(magnitude, fill(ints, 0x7F800000)), scaled)
    return b.bitcast(b.or_(scaled, sign), wide)


def to_f16(b: ir.IRBuilder, target: Target, values: ir.Value) -> ir.Value:
    """f32 lanes as f16, to the nearest, ties to even; what is too large becomes infinite, and NaNs stay NaNs."""
    narrow = ir.VectorType(F16, values.type.count)
    if target.half:
        return b.fptrunc(values, narrow)
    ints = ir.VectorType(I32, values.type.count)
    shorts = ir.VectorType(ir.IntType(16), values.type.count)
    bits = b.bitcast(values, ints)
    sign = b.and_(b.lshr(bits, fill(ints, 16)), fill(ints, 0x8000))
    size = b.and_(bits, fill(ints, 0x7FFFFFFF))
    odd = b.and_(b.lshr(size, fill(ints, 13)), fill(ints, 1))
    normal = b.lshr(b.add(b.sub(size, fill(ints, (112 << 23) - 0xFFF)), odd), fill(ints, 13))
    # Below 2^-14 the unit is 2^-24: adding 1/2 in f32 leaves exactly those bits, rounded, at the bottom.
    small = b.sub(b.bitcast(b.fadd(b.bitcast(size, values.type), fill(values.type, 0.5)), ints), fill(ints, 0x3F000000))
    result = b.select(b.icmp_unsigned("<", size, fill(ints, 113 << 23)), small, normal)
    result = b.select(b.icmp_unsigned(">=", size, fill(ints, 0x477FF000)), fill(ints, 0x7C00), result)
    result = b.select(b.icmp_unsigned(">", size, fill(ints, 0x7F800000)), fill(ints, 0x7E00), result)
    return b.bitcast(b.trunc(b.or_(result, sign), shorts), narrow)
