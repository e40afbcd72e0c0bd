"""The integer product of a block: 16 rows x 32 (or 16) columns of weights times R tokens, for each kind of CPU.

Pure IR building, without numba: so that code for CPUs that are not at hand can be made and looked at.

A tile's values of a block are laid out row-in-lane: a vector of 64 bytes holds 4 bytes of each of the 16 rows, one
row's after another's. Group k of a block is its columns 4k to 4k + 3; byte j of a row is column 4k + j.
    4 bits  4 vectors; vector v has group 2v in its low nibbles, group 2v + 1 in its high ones
    5 bits  the same of the lower 4 bits, then 1 vector with the upper bit of group k in bit k
    6 bits  the same of the lower 4 bits, then 2 vectors; the first has the upper 2 bits of group k (0 to 3) in bits
            2k and 2k + 1, the second those of the groups 4 to 7
    8 bits  8 vectors, one for each group, signed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from dllama_zmq.kernels.simd.layout import LANES, PairBlock, X
from dllama_zmq.kernels.simd.llvm import I8, I16, I32, U8x64, call, fill, joined, load, parts, splat
from dllama_zmq.kernels.simd.target import Target

Before = Callable[[ir.IRBuilder], None]
"""Emits what comes before each load of 64 bytes of weights."""


def nothing(b: ir.IRBuilder) -> None:
    """Nothing comes before."""


class BlockDots:
    """Emits the products of a block with R tokens' values. One subclass for each kind of instruction."""

    def products(
        self,
        b: ir.IRBuilder,
        block: PairBlock,
        part: int,
        tiles: Sequence[Unpacker],
        xs: Sequence[ir.Value],
    ) -> list[list[ir.Value]]:
        """For each of `tiles`: its weights times the bytes of these columns at each of `xs`, i32x16.

        part: which of the block's `scales` equal ranges of columns. Tiles share each value of x: one load for all.
        """
        bias = self.bias_of(block)
        totals = [[_start(b, x, bias, part) for x in xs] for _ in tiles]
        for group in _groups(block, part):
            weights = [self.prepare(b, block, tile.group(group)) for tile in tiles]
            for r, x in enumerate(xs):
                values = b.bitcast(splat(b, load(b, x, 4 * group, I32)), U8x64)
                for of_tile, ready in zip(totals, weights, strict=True):
                    of_tile[r] = self.add(b, of_tile[r], ready, values)
        return totals

    def bias_of(self, block: PairBlock) -> int:
        """What weights are raised by as `add` takes them: it comes off again with the sum of x."""
        return block.bias

    def prepare(self, b: ir.IRBuilder, block: PairBlock, weights: ir.Value) -> ir.Value:
        """Weights as `add` takes them, made once for all tokens."""
        return weights

    def add(self, b: ir.IRBuilder, total: ir.Value, weights: ir.Value, x: ir.Value) -> ir.Value:
        """total (i32x16) plus the sums of four products of weights and `x` (i8) each."""
        raise NotImplementedError


class Unpacker:
    """A tile's groups of a block as whole bytes, in ascending order; `width` bytes from byte `at` of each vector."""

    def __init__(
        self, b: ir.IRBuilder, block: PairBlock, tile: ir.Value, before: Before = nothing, at: int = 0, width: int = 64
    ) -> None:
        self._b, self._block, self._bits, self._tile, self._before = b, block, block.bits, tile, before
        self._at, self._kind = at, ir.VectorType(I8, width)
        self._vectors: dict[int, ir.Value] = {}

    def narrow(self, at: int, width: int) -> Unpacker:
        """The same of `width` bytes from byte `at` of each vector."""
        return Unpacker(self._b, self._block, self._tile, self._before, at, width)

    def load_in_order(self) -> None:
        """Load all vectors now, in the order of memory, into registers of 64 bytes.

        LLVM would load each where it is used. Zen 4 then reads memory at 40 to 80% of its speed, because its own
        prefetching follows ascending lines (tools/BENCHMARKS.md).
        """
        kind = ir.FunctionType(self._kind, [self._kind])
        for v in range(self._bits):
            self._vectors[v] = self._b.asm(kind, "", "=v,0,~{memory}", [self._vector(v)], side_effect=True)

    def group(self, k: int) -> ir.Value:
        """Group `k`: unsigned, but signed if it has 8 bits."""
        b, kind = self._b, self._kind
        if self._bits == 8:
            return self._vector(k)
        nibbles = self._vector(k // 2)
        lower = b.lshr(nibbles, fill(kind, 4)) if k % 2 else b.and_(nibbles, fill(kind, 15))
        if self._bits == 4:
            return lower
        n_upper = self._bits - 4
        upper = self._vector(4 + (k // 4 if n_upper == 2 else 0))
        shift = 4 - (2 * (k % 4) if n_upper == 2 else k)  # to bit 4
        moved = b.shl(upper, fill(kind, shift)) if shift >= 0 else b.lshr(upper, fill(kind, -shift))
        return b.or_(lower, b.and_(moved, fill(kind, 16 * (2**n_upper - 1))))

    def _vector(self, v: int) -> ir.Value:
        if v not in self._vectors:
            self._before(self._b)
            self._vectors[v] = load(self._b, self._tile, 64 * v + self._at, self._kind)
        return self._vectors[v]


class _Vnni(BlockDots):
    def __init__(self, bits: int) -> None:
        self._bits = bits

    def add(self, b: ir.IRBuilder, total: ir.Value, weights: ir.Value, x: ir.Value) -> ir.Value:
        n = 512 // self._bits
        lanes = self._bits // 32
        # LLVM's signature takes the bytes as a vector of bytes of the register's width.
        kind = ir.VectorType(I8, 4 * lanes)
        pieces = zip(*(parts(b, v, n) for v in (total, weights, x)), strict=True)
        return joined(
            b,
            [
                call(b, f"llvm.x86.avx512.vpdpbusd.{self._bits}", t.type, [t, *(b.bitcast(v, kind) for v in (u, s))])
                for t, u, s in pieces
            ],
        )

    def bias_of(self, block: PairBlock) -> int:
        return 128 if block.bits == 8 else block.bias

    def prepare(self, b: ir.IRBuilder, block: PairBlock, weights: ir.Value) -> ir.Value:
        return b.xor(weights, fill(U8x64, 128)) if block.bits == 8 else weights  # -128..127 as 0..255


class _Avx2(BlockDots):
    """Both halves of a tile, 8 rows each, share each value of x. Sums stay in the order in which they are written."""

    def products(
        self,
        b: ir.IRBuilder,
        block: PairBlock,
        part: int,
        tiles: Sequence[Unpacker],
        xs: Sequence[ir.Value],
    ) -> list[list[ir.Value]]:
        by = self._signed if block.bits == 8 else self._unsigned
        return [by(b, block, part, tile, xs) for tile in tiles]

    @staticmethod
    def _unsigned(
        b: ir.IRBuilder,
        block: PairBlock,
        part: int,
        tile: Unpacker,
        xs: Sequence[ir.Value],
    ) -> list[ir.Value]:
        """Pairs of products add up in i16, as many as fit: of 4 bits a whole block (8 times 2 * 15 * 127 < 2^15)."""
        groups = _groups(block, part)
        at_once = 2 ** (7 - block.bits)  # groups that add up in i16
        halves = [tile.narrow(at, 32) for at in (0, 32)]
        totals: dict[tuple[int, int], ir.Value] = {}
        for first in groups[::at_once]:
            words = _Sums(b)
            for group in range(first, min(first + at_once, groups.stop)):
                weights = [half.group(group) for half in halves]
                for r, x in enumerate(xs):
                    values = _spread32(b, x, 4 * group)
                    for half, of_half in enumerate(weights):
                        words.add((half, r), _maddubs(b, of_half, values))
            for at, sixteen in words.sums.items():
                pairs = _pairs(b, sixteen)
                totals[at] = b.add(totals[at], pairs) if at in totals else pairs
        starts = [_start(b, x, block.bias, part, 8) for x in xs]  # read here: there are no registers for them above
        return [joined(b, [b.add(totals[half, r], start) for half in range(2)]) for r, start in enumerate(starts)]

    @staticmethod
    def _signed(
        b: ir.IRBuilder,
        block: PairBlock,
        part: int,
        tile: Unpacker,
        xs: Sequence[ir.Value],
    ) -> list[ir.Value]:
        """The weights' signs move to x: what is left of them is unsigned."""
        halves = [tile.narrow(at, 32) for at in (0, 32)]
        totals = _Sums(b)
        for group in _groups(block, part):
            weights = [half.group(group) for half in halves]
            zero = fill(weights[0].type, 0)
            sizes = [b.select(b.icmp_signed("<", w, zero), b.sub(zero, w), w) for w in weights]
            for r, x in enumerate(xs):
                values = _spread32(b, x, 4 * group)
                for half, w in enumerate(weights):
                    signed = call(b, "llvm.x86.avx2.psign.b", w.type, [values, w])
                    totals.add((half, r), _pairs(b, _maddubs(b, sizes[half], signed)))
        return [joined(b, [totals.sums[half, r] for half in range(2)]) for r in range(len(xs))]


class _Sums:
    """Sums in registers by half and token.

    LLVM cannot look through what is added up so far. Else it would make a tree of it and go over one token after
    another, with all unpacked weights on the stack: half as fast for 1 and 2 tokens, two thirds for 4.
    """

    def __init__(self, b: ir.IRBuilder) -> None:
        self._b = b
        self.sums: dict[tuple[int, int], ir.Value] = {}

    def add(self, at: tuple[int, int], value: ir.Value) -> None:
        total = self._b.add(self.sums[at], value) if at in self.sums else value
        kind = ir.FunctionType(total.type, [total.type])
        register = "w" if total.type.count * total.type.element.width == 128 else "x"  # Arm's or x86's name for it
        self.sums[at] = self._b.asm(kind, "", f"={register},0", [total], side_effect=True)


class _Sdot(BlockDots):
    def add(self, b: ir.IRBuilder, total: ir.Value, weights: ir.Value, x: ir.Value) -> ir.Value:
        pieces = zip(*(parts(b, v, 4) for v in (total, weights, x)), strict=True)
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return joined(b, [call(b, name, t.type, [t, u, s]) for t, u, s in pieces])


class _Neon(BlockDots):
    """Arm before dot products: each product of bytes adds up in an i16 lane, as many as fit, then four lanes a row."""

    def products(
        self,
        b: ir.IRBuilder,
        block: PairBlock,
        part: int,
        tiles: Sequence[Unpacker],
        xs: Sequence[ir.Value],
    ) -> list[list[ir.Value]]:
        return [self._of_tile(b, block, part, tile, xs) for tile in tiles]

    @staticmethod
    def _of_tile(
        b: ir.IRBuilder, block: PairBlock, part: int, tile: Unpacker, xs: Sequence[ir.Value]
    ) -> list[ir.Value]:
        groups, i16x8, i32x4 = _groups(block, part), ir.VectorType(I16, 8), ir.VectorType(I32, 4)
        at_once = {4: 8, 5: 8, 6: 4, 8: 2}[block.bits]  # 8 * 31 * 127, 4 * 63 * 127 and 2 * 128 * 127 are below 2^15
        totals: dict[tuple[int, int], ir.Value] = {}
        # A quarter is 4 rows. Sums of all four are 8 registers a token, of 32.
        for quarters in [range(4)] if len(xs) < 3 else [range(2), range(2, 4)]:
            unpackers = {q: tile.narrow(16 * q, 16) for q in quarters}
            for first in groups[::at_once]:
                words = _Sums(b)
                for group in range(first, min(first + at_once, groups.stop)):
                    weights = {
                        q: [b.sext(half, i16x8) for half in parts(b, unpackers[q].group(group), 2)] for q in quarters
                    }
                    for r, x in enumerate(xs):
                        values = b.sext(b.bitcast(splat(b, load(b, x, 4 * group, I32), 2), ir.VectorType(I8, 8)), i16x8)
                        for q, halves in weights.items():
                            for half, of_half in enumerate(halves):
                                words.add((2 * q + half, r), b.mul(of_half, values))
                for r in range(len(xs)):
                    for q in quarters:
                        pairs = [
                            call(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", i32x4, [words.sums[2 * q + half, r]])
                            for half in range(2)
                        ]
                        rows = call(b, "llvm.aarch64.neon.addp.v4i32", i32x4, pairs)
                        totals[q, r] = b.add(totals[q, r], rows) if (q, r) in totals else rows
        starts = [_start(b, x, block.bias, part, 4) for x in xs]
        return [joined(b, [b.add(totals[q, r], start) for q in range(4)]) for r, start in enumerate(starts)]


class _Plain(BlockDots):
    """Vector multiplies of i16, which every SIMD unit has."""

    def add(self, b: ir.IRBuilder, total: ir.Value, weights: ir.Value, x: ir.Value) -> ir.Value:
        wide = ir.VectorType(I16, 64)
        products = b.mul(b.sext(weights, wide), b.sext(x, wide))  # |127 * 128| < 2^15
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
    return {"avx2": _Avx2, "sdot": _Sdot, "neon": _Neon, "plain": _Plain}[target.dot]()


def _groups(block: PairBlock, part: int) -> range:
    """The groups of the columns of a part."""
    each = 8 // block.scales
    return range(part * each, (part + 1) * each)


def _start(b: ir.IRBuilder, x: ir.Value, bias: int, part: int, lanes: int = LANES) -> ir.Value:
    """What the sum of products with a token's values begins at, in every lane."""
    at = X.start(bias, part)
    return fill(ir.VectorType(I32, lanes), 0) if at is None else splat(b, load(b, x, at, I32), lanes)


def _spread32(b: ir.IRBuilder, x: ir.Value, offset: int) -> ir.Value:
    return b.bitcast(splat(b, load(b, x, offset, I32), 8), ir.VectorType(I8, 32))


def _maddubs(b: ir.IRBuilder, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16), [unsigned, signed])


def _pairs(b: ir.IRBuilder, words: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), [words, fill(words.type, 1)])
