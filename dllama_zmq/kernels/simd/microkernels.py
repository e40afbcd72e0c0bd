"""The inner loops: one tile of 16 rows (or 16 lanes of anything) times R tokens, accumulated in registers.

LLVM code, without numba. A micro-kernel is a loop over blocks or columns that carries R vectors of 16 floats and stores
them at its end; all code around it is ordinary numba code. A multiply-add rounds once if the CPU has such an
instruction, and sums are always taken in the order of the columns, so their bits depend on neither R nor the width of
the registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from llvmlite import ir

from dllama_zmq.kernels.simd.int8_dots import Before, Unpacker, block_dots, nothing
from dllama_zmq.kernels.simd.layout import LANES, SCALES, X_BLOCK, PairBlock, X
from dllama_zmq.kernels.simd.llvm import (
    F32,
    I8,
    I32,
    I64,
    F16x16,
    F32x16,
    I32x16,
    call,
    fill,
    load,
    multiply_add,
    pointer,
    splat,
    to_f32,
)
from dllama_zmq.kernels.simd.target import Target

_AHEAD = 4096  # bytes; with many tokens to a block no CPU reads far enough ahead by itself
_IN_ORDER = 4
"""The most tokens for which the weights of a block are loaded in the order of memory. With more, arithmetic is what a
product waits for, and its sums need the registers."""
_OFFSETS_AT = 2 * SCALES
"""Bytes from the first factor of a group to that of the first tile's offsets."""
Factors = dict[tuple[int, int], ir.Value]
"""The f32x16 factors of a group, by their place in it and the tile."""
LaneType = Literal["f32", "f16", "bf16"]


@dataclass(frozen=True, slots=True)
class IntegerMicrokernel:
    """One tile of a pair of quantized weights, or both (`n_tiles`), times `n_tokens` quantized tokens."""

    target: Target
    block: PairBlock
    n_tokens: int
    n_tiles: int

    def emit(
        self,
        b: ir.IRBuilder,
        pair: ir.Value,
        half: ir.Value,
        first: ir.Value,
        x: ir.Value,
        n: ir.Value,
        out: ir.Value,
    ) -> None:
        """The product of `n` blocks of a pair, from block `first` on -> f32 rows at `out`.

        half: the tile, if it is one. x holds the tokens' values side by side: for each block R times X_BLOCK bytes.
        out: the first tile's R rows of 16, then the second's.
        """
        target, block, n_tokens, n_tiles = self.target, self.block, self.n_tokens, self.n_tiles
        dots = block_dots(target)
        ahead = _AHEAD if n_tokens > (2 if block.bits == 8 else 4) else target.ahead
        if n_tiles == 1:
            ahead = 0
        spread = target.spread and ahead == target.ahead > 0
        many_registers = target.dot == "vnni512"  # 32 of 64 bytes
        in_order = many_registers and n_tiles == 2 and n_tokens <= _IN_ORDER and not target.ahead

        def add_block(b: ir.IRBuilder, place: Place, totals: Sequence[ir.Value]) -> list[ir.Value]:
            x_blocks = b.add(x, b.mul(b.sub(place.number, first), ir.Constant(I64, X_BLOCK * n_tokens)))
            xs = [b.add(x_blocks, ir.Constant(I64, X_BLOCK * r)) for r in range(n_tokens)]
            tiles = [place.values(tile) for tile in range(n_tiles)]
            n_bytes = block.nbytes + block.factor_bytes
            lines = iter([b.add(tiles[0], ir.Constant(I64, ahead + line)) for line in range(0, n_bytes, 64)])
            before = one_by_one(lines) if spread else nothing
            if ahead and not spread:
                prefetch_all(b, lines)
            new = list(totals)
            # As many products at once as have registers: both tiles, so that they share each load of x.
            at_once = min(n_tokens, 8 // n_tiles)
            for first_token in range(0, n_tokens, at_once):
                which = range(first_token, first_token + at_once)
                sources = [Unpacker(b, block, _opaque(b, tile) if first_token else tile, before) for tile in tiles]
                if in_order:
                    for source in sources:
                        source.load_in_order()
                for part in range(block.scales):
                    products = dots.products(b, block, part, sources, [xs[r] for r in which])
                    for tile, of_tile in enumerate(products):
                        d = place.scale(tile, part)
                        for r, product in zip(which, of_tile, strict=True):
                            k = tile * n_tokens + r
                            scale = b.fmul(splat(b, load(b, xs[r], X.scale, F32)), d)
                            new[k] = multiply_add(b, target, b.sitofp(product, F32x16), scale, new[k])
            if spread:
                prefetch_all(b, lines)
            if block.offsets:
                for tile in range(n_tiles):
                    m = place.offset(tile)
                    for r, token in enumerate(xs):
                        k = tile * n_tokens + r
                        new[k] = multiply_add(b, target, m, splat(b, load(b, token, X.scaled_sum, F32)), new[k])
            return new

        def place_of(number: ir.Value, shared: Factors | None = None) -> Place:
            return Place(b, target, block, pair, half, number, shared)

        def add_group(b: ir.IRBuilder, i: ir.Value, totals: Sequence[ir.Value]) -> list[ir.Value]:
            """The blocks of a group that are among the `n`. They share factors, which are read once."""
            begin = b.mul(b.add(first_group, i), size)
            lowest = b.select(b.icmp_signed("<", begin, first), first, begin)
            next_group = b.add(begin, size)
            highest = b.select(b.icmp_signed("<", end, next_group), end, next_group)
            shared = place_of(lowest).shared_factors(n_tiles)
            blocks = b.sub(highest, lowest)
            return repeat(b, blocks, totals, lambda b, i, now: add_block(b, place_of(b.add(lowest, i), shared), now))

        zeros = [fill(F32x16, 0.0)] * (n_tiles * n_tokens)
        if block.group == 1 or (n_tokens > 2 and not many_registers):
            loop(b, n, zeros, lambda b, i, totals: add_block(b, place_of(b.add(first, i)), totals), out)
            return
        size, end = ir.Constant(I64, block.group), b.add(first, n)
        first_group = b.udiv(first, size)
        n_groups = b.sub(b.udiv(b.add(end, ir.Constant(I64, block.group - 1)), size), first_group)
        loop(b, n_groups, zeros, add_group, out)


class Place:
    """Where block `number` of a pair is. Tiles are counted from `half` on.

    shared: the factors of its group, if they were read before.
    """

    def __init__(
        self,
        b: ir.IRBuilder,
        target: Target,
        block: PairBlock,
        pair: ir.Value,
        half: ir.Value,
        number: ir.Value,
        shared: Factors | None = None,
    ) -> None:
        self.number = number
        self._b, self._target, self._block, self._half = b, target, block, half
        self._shared = {} if shared is None else shared
        group, within = (f(number, ir.Constant(I64, block.group)) for f in (b.udiv, b.urem))
        self._factors = b.add(pair, b.mul(group, ir.Constant(I64, block.group_bytes)))
        self._start = b.add(self._factors, b.mul(within, ir.Constant(I64, block.nbytes)))

    def values(self, tile: int) -> ir.Value:
        """The address of a tile's values."""
        return self._of_tile(self._start, self._block.factor_bytes, tile, self._block.value_bytes)

    def scale(self, tile: int, part: int) -> ir.Value:
        """A tile's scales of all 32 columns, or of the first or second 16, f32x16."""
        return self._factor(tile, part, 0)

    def offset(self, tile: int) -> ir.Value:
        """A tile's offsets, f32x16."""
        return self._factor(tile, 1, _OFFSETS_AT)

    def _factor(self, tile: int, place: int, factor_at: int) -> ir.Value:
        b, block = self._b, self._block
        at = block.factor_bytes + block.scales_at + block.next_at * place
        own = self._of_tile(self._start, at, tile, block.scale_bytes)
        if block.group == 1:
            return to_f32(b, self._target, load(b, own, 0, F16x16))
        whole = b.sext(load(b, own, 0, ir.VectorType(I8, LANES)), I32x16)  # those of 6 bits are signed bytes, too
        shared = self._shared.get((factor_at, tile))
        return b.fmul(b.sitofp(whole, F32x16), self._shared_factor(factor_at, tile) if shared is None else shared)

    def shared_factors(self, n_tiles: int) -> Factors:
        """The factors of the block's group for each tile, f32x16: what scales are multiplied by, and offsets."""
        if self._block.group == 1:
            return {}
        places = [0, _OFFSETS_AT] if self._block.offsets else [0]
        return {(at, tile): self._shared_factor(at, tile) for at in places for tile in range(n_tiles)}

    def _shared_factor(self, at: int, tile: int) -> ir.Value:
        shared = self._of_tile(self._factors, at, tile, SCALES)
        return to_f32(self._b, self._target, load(self._b, shared, 0, F16x16))

    def _of_tile(self, start: ir.Value, at: int, tile: int, tile_bytes: int) -> ir.Value:
        b = self._b
        return b.add(
            b.add(start, b.mul(self._half, ir.Constant(I64, tile_bytes))), ir.Constant(I64, at + tile * tile_bytes)
        )


def _opaque(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """The same address, which LLVM takes for another: else it would spill what it has loaded from there."""
    return b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [address], side_effect=True)


@dataclass(frozen=True, slots=True)
class FloatMicrokernel:
    """Tiles of floats (F32, F16 or BF16 weights, keys, values) times `n_rows` rows.

    ahead: bytes that are prefetched ahead; 0 for no prefetch; None if each call says how many.
    """

    target: Target
    lanes: LaneType
    n_rows: int
    n_tiles: int = 1
    ahead: int | None = 0

    def emit(
        self,
        b: ir.IRBuilder,
        tile: ir.Value,
        step: ir.Value,
        x: ir.Value,
        x_stride: ir.Value,
        n: ir.Value,
        out: ir.Value,
        bytes_ahead: ir.Value | None = None,
    ) -> None:
        """out (R, 16) f32 = sum over i < n of x[r][i] * tile[i][0..15], vectors `step` bytes apart from `tile` on.

        x's rows are f32, `x_stride` bytes apart. The same loop serves F32, F16 and BF16 weights, q times keys,
        weights times values. n_tiles: the second one's vectors are behind the first's, its R rows of `out` too.
        """
        target, lanes, n_rows, n_tiles = self.target, self.lanes, self.n_rows, self.n_tiles
        ahead = ir.Constant(I64, self.ahead) if self.ahead else bytes_ahead
        lane_bytes = LANES * (4 if lanes == "f32" else 2)

        def body(b: ir.IRBuilder, i: ir.Value, totals: Sequence[ir.Value]) -> list[ir.Value]:
            at = b.add(tile, b.mul(i, step))
            if ahead is not None:
                for line in range(0, n_tiles * lane_bytes, 64):
                    prefetch(b, b.add(b.add(at, ahead), ir.Constant(I64, line)))
            column = b.add(x, b.shl(i, ir.Constant(I64, 2)))
            values = [
                splat(b, load(b, b.add(column, b.mul(x_stride, ir.Constant(I64, r))), 0, F32)) for r in range(n_rows)
            ]
            new = []
            for k in range(n_tiles):
                weights = load_lanes(b, target, lanes, b.add(at, ir.Constant(I64, k * lane_bytes)))
                for value, total in zip(values, totals[k * n_rows :][:n_rows], strict=True):
                    new.append(multiply_add(b, target, weights, value, total))
            return new

        loop(b, n, [fill(F32x16, 0.0)] * (n_tiles * n_rows), body, out)


def prefetch(b: ir.IRBuilder, at: ir.Value) -> None:
    """Prefetch a cache line into L2: L1 has too few slots for lines in flight."""
    read, second, data = (ir.Constant(I32, n) for n in (0, 2, 1))
    call(b, "llvm.prefetch.p0i8", ir.VoidType(), [pointer(b, at, 0, ir.IntType(8)), read, second, data])


def prefetch_all(b: ir.IRBuilder, lines: Iterable[ir.Value]) -> None:
    """Prefetch these cache lines."""
    for line in lines:
        prefetch(b, line)


def one_by_one(lines: Iterator[ir.Value]) -> Before:
    """Prefetch one of these lines before each load: all at once, they would wait for each other."""

    def before(b: ir.IRBuilder) -> None:
        prefetch_all(b, islice(lines, 1))
        # LLVM would gather the loads again.
        b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)

    return before


def load_lanes(b: ir.IRBuilder, target: Target, lanes: LaneType, at: ir.Value) -> ir.Value:
    """16 values of a type as f32."""
    if lanes == "f32":
        return load(b, at, 0, F32x16)
    if lanes == "f16":
        return to_f32(b, target, load(b, at, 0, F16x16))
    upper = load(b, at, 0, ir.VectorType(ir.IntType(16), LANES))
    ints = ir.VectorType(I32, LANES)
    return b.bitcast(b.shl(b.zext(upper, ints), fill(ints, 16)), F32x16)


def loop(
    b: ir.IRBuilder,
    n: ir.Value,
    start: Sequence[ir.Value],
    body: Callable[[ir.IRBuilder, ir.Value, Sequence[ir.Value]], list[ir.Value]],
    out: ir.Value,
) -> None:
    """totals = start; for i in range(n), n > 0: totals = body(i, totals); then store them side by side at `out`."""
    for r, value in enumerate(repeat(b, n, start, body)):
        b.store(value, pointer(b, out, 4 * LANES * r, F32x16)).align = 4


def repeat(
    b: ir.IRBuilder,
    n: ir.Value,
    start: Sequence[ir.Value],
    body: Callable[[ir.IRBuilder, ir.Value, Sequence[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """totals = start; for i in range(n), n > 0: totals = body(i, totals)."""
    before = b.block
    loop, after = b.append_basic_block("microkernel"), b.append_basic_block("microkernel.end")
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(I64)
    totals = [b.phi(F32x16) for _ in start]
    new = body(b, i, totals)
    next_i = b.add(i, ir.Constant(I64, 1))
    i.add_incoming(ir.Constant(I64, 0), before)
    i.add_incoming(next_i, b.block)
    for total, first, changed in zip(totals, start, new, strict=True):
        total.add_incoming(first, before)
        total.add_incoming(changed, b.block)
    b.cbranch(b.icmp_signed("<", next_i, n), loop, after)
    b.position_at_end(after)
    return new
