"""The integer product of one block: 16 rows x 32 columns of weights times R tokens, for each kind of CPU.

Pure IR building, without numba: so that code for CPUs that are not at hand can be made and looked at.

A tile's values of a block are laid out row-in-lane: group g holds 4 bytes of each of the 16 rows, one row's
after another's.
    Q40: 4 groups of 64 bytes; byte j of a row has column 8g + j in its low nibble, column 8g + 4 + j in its high one,
         as the numbers 0..15, which stand for -8..7 in Q40
    Q80: 8 groups of 64 bytes; byte j of a row is column 4g + j, signed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from dllama_zmq.kernels.simd.layout import LANES
from dllama_zmq.kernels.simd.llvm import I8, I16, I32, U8x64, call, fill, joined, load, parts, splat
from dllama_zmq.kernels.simd.target import Target

Before = Callable[[ir.IRBuilder], None]
"""Emits what comes before each load of 64 bytes of weights."""


def nothing(b: ir.IRBuilder) -> None:
    """Nothing comes before."""


class BlockDots:
    """Emits the products of one block with R tokens' values. One subclass for each kind of instruction.

    `sums` are splat into the accumulators first: what the offset of unsigned weights costs.
    """

    q80_bias = 0
    """What Q80 weights are raised by, so that they are unsigned: it comes off again with the sum of x."""

    def q40(
        self,
        b: ir.IRBuilder,
        tiles: Sequence[ir.Value],
        xs: Sequence[ir.Value],
        sums: Sequence[ir.Value],
        bias: int,
        before: Before = nothing,
    ) -> list[list[ir.Value]]:
        """For each of `tiles`: nibbles there times 32 bytes at each of `xs`, minus `bias` times each of `sums`, i32x16.

        Tiles share each value of x: one load for all.
        """
        totals = [[splat(b, b.mul(total, ir.Constant(I32, -bias))) for total in sums] for _ in tiles]
        for group in range(4):
            pairs = []
            for weights in tiles:
                before(b)
                both = load(b, weights, 64 * group, U8x64)
                pairs.append((b.and_(both, fill(U8x64, 15)), b.lshr(both, fill(U8x64, 4))))
            for r, x in enumerate(xs):
                for i in range(2):
                    values = self._spread(b, x, 8 * group + 4 * i)
                    for of_tile, pair in zip(totals, pairs, strict=True):
                        of_tile[r] = self.add(b, of_tile[r], pair[i], values)
        return totals

    def q80(
        self,
        b: ir.IRBuilder,
        weights: ir.Value,
        xs: Sequence[ir.Value],
        sums: Sequence[ir.Value],
        before: Before = nothing,
    ) -> list[ir.Value]:
        """Signed bytes at `weights` times 32 bytes at each of `xs`: i32x16 each."""
        totals = [splat(b, b.mul(total, ir.Constant(I32, -self.q80_bias))) for total in sums]
        for group in range(8):
            before(b)
            ready = self.prepare_signed(b, load(b, weights, 64 * group, U8x64))
            for r, x in enumerate(xs):
                totals[r] = self.add_signed(b, totals[r], ready, self._spread(b, x, 4 * group))
        return totals

    def add(self, b: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, x: ir.Value) -> ir.Value:
        """total (i32x16) plus the sums of four products of `unsigned` (0..15) and `x` (i8) each."""
        raise NotImplementedError

    def prepare_signed(self, b: ir.IRBuilder, weights: ir.Value) -> tuple[ir.Value, ...]:
        """What `add_signed` needs of signed weights, made once for all tokens."""
        return (weights,)

    def add_signed(self, b: ir.IRBuilder, total: ir.Value, ready: tuple[ir.Value, ...], x: ir.Value) -> ir.Value:
        """total plus the sums of four products of signed weights and x."""
        return self.add(b, total, ready[0], x)

    @staticmethod
    def _spread(b: ir.IRBuilder, x: ir.Value, offset: int) -> ir.Value:
        """Four bytes of x in every lane."""
        return b.bitcast(splat(b, load(b, x, offset, I32)), U8x64)


class _Vnni(BlockDots):
    q80_bias = 128

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def add(self, b: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, x: ir.Value) -> ir.Value:
        n = 512 // self._bits
        lanes = self._bits // 32
        # LLVM's signature takes the bytes as a vector of bytes of the register's width.
        kind = ir.VectorType(I8, 4 * lanes)
        pieces = zip(*(parts(b, v, n) for v in (total, unsigned, x)), strict=True)
        return joined(
            b,
            [
                call(b, f"llvm.x86.avx512.vpdpbusd.{self._bits}", t.type, [t, *(b.bitcast(v, kind) for v in (u, s))])
                for t, u, s in pieces
            ],
        )

    def prepare_signed(self, b: ir.IRBuilder, weights: ir.Value) -> tuple[ir.Value, ...]:
        return (b.xor(weights, fill(U8x64, 128)),)  # -128..127 as 0..255


class _Avx2(BlockDots):
    """Pairs add up in i16: with nibbles a whole block does (8 times 2 * 15 * 127 < 2^15), with bytes only one pair."""

    def q40(
        self,
        b: ir.IRBuilder,
        tiles: Sequence[ir.Value],
        xs: Sequence[ir.Value],
        sums: Sequence[ir.Value],
        bias: int,
        before: Before = nothing,
    ) -> list[list[ir.Value]]:
        return [self._q40(b, weights, xs, sums, bias, before) for weights in tiles]

    @staticmethod
    def _q40(
        b: ir.IRBuilder, weights: ir.Value, xs: Sequence[ir.Value], sums: Sequence[ir.Value], bias: int, before: Before
    ) -> list[ir.Value]:
        halves: list[list[ir.Value | None]] = [[None, None] for _ in xs]
        for group in range(4):
            before(b)
            for half in range(2):
                both = load(b, weights, 64 * group + 32 * half, ir.VectorType(I8, 32))
                pair = b.and_(both, fill(both.type, 15)), b.lshr(both, fill(both.type, 4))
                for r, x in enumerate(xs):
                    for i, unsigned in enumerate(pair):
                        products = _maddubs(b, unsigned, _spread32(b, x, 8 * group + 4 * i))
                        so_far = halves[r][half]
                        halves[r][half] = products if so_far is None else b.add(so_far, products)
        totals = []
        for r, total in enumerate(sums):
            offset = splat(b, b.mul(total, ir.Constant(I32, bias)), 8)
            totals.append(joined(b, [b.sub(_pairs(b, half), offset) for half in halves[r]]))
        return totals

    def prepare_signed(self, b: ir.IRBuilder, weights: ir.Value) -> tuple[ir.Value, ...]:
        pieces = parts(b, weights, 2)
        zero = fill(pieces[0].type, 0)
        sizes = [b.select(b.icmp_signed("<", w, zero), b.sub(zero, w), w) for w in pieces]
        return (*pieces, *sizes)

    def add_signed(self, b: ir.IRBuilder, total: ir.Value, ready: tuple[ir.Value, ...], x: ir.Value) -> ir.Value:
        # The weights' signs move to x: what is left of them is unsigned.
        signed = [
            call(b, "llvm.x86.avx2.psign.b", w.type, [v, w]) for v, w in zip(parts(b, x, 2), ready[:2], strict=True)
        ]
        sums = [_pairs(b, _maddubs(b, u, s)) for u, s in zip(ready[2:], signed, strict=True)]
        return b.add(total, joined(b, sums))


class _Sdot(BlockDots):
    def add(self, b: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, x: ir.Value) -> ir.Value:
        pieces = zip(*(parts(b, v, 4) for v in (total, unsigned, x)), strict=True)
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return joined(b, [call(b, name, t.type, [t, u, s]) for t, u, s in pieces])


class _Plain(BlockDots):
    """Vector multiplies of i16, which every SIMD unit has."""

    def add(self, b: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, x: ir.Value) -> ir.Value:
        wide = ir.VectorType(I16, 64)
        products = b.mul(b.sext(unsigned, wide), b.sext(x, wide))  # |127 * 128| < 2^15
        undefined = ir.Constant(wide, ir.Undefined)
        quarter = ir.VectorType(I32, LANES)
        for j in range(4):
            pick = ir.Constant(quarter, list(range(j, 64, 4)))
            total = b.add(total, b.sext(b.shuffle_vector(products, undefined, pick), quarter))
        return total


def block_dots(target: Target) -> BlockDots:
    """The emitter for a CPU."""
    if target.dot == "vnni512":
        return _Vnni(512)
    if target.dot == "vnni256":
        return _Vnni(256)
    return {"avx2": _Avx2, "sdot": _Sdot, "plain": _Plain}[target.dot]()


def _spread32(b: ir.IRBuilder, x: ir.Value, offset: int) -> ir.Value:
    return b.bitcast(splat(b, load(b, x, offset, I32), 8), ir.VectorType(I8, 32))


def _maddubs(b: ir.IRBuilder, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16), [unsigned, signed])


def _pairs(b: ir.IRBuilder, words: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), [words, fill(words.type, 1)])
