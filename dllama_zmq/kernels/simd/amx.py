"""Quantized products of 16 tokens and more by AMX, Intel's matrix instructions. numba code.

(Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, "Programming with Intel AMX".) One instruction
multiplies 32 columns of 16 tokens by those of a tile. Its sums are integers, exact, and what is done with them is what
`IntegerMicrokernel` does in the same order: a product has the same bits with both.

An AMX register is loaded from memory and stored there, and weights must be whole bytes. So blocks are unpacked into
this call's memory, _CHUNK at a time, for all tokens of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from dllama_zmq.kernels.simd.host import host_target
from dllama_zmq.kernels.simd.int8_dots import Unpacker
from dllama_zmq.kernels.simd.intrinsics import ADDRESS, instruction, scratch, store
from dllama_zmq.kernels.simd.layout import LANES, X_BLOCK, PairBlock, X
from dllama_zmq.kernels.simd.llvm import (
    F32,
    I8,
    I64,
    F32x16,
    I32x16,
    U8x64,
    call,
    fill,
    load,
    multiply_add,
    pointer,
    splat,
)
from dllama_zmq.kernels.simd.microkernels import Place, loop
from dllama_zmq.kernels.simd.vector_math import F
from dllama_zmq.kernels.simd.vectors import splat as splat_f32
from dllama_zmq.kernels.simd.vectors import store_vector

TOKENS = 16
"""Rows of an AMX register, and tokens in the smallest group."""
GROUP = 32
"""Tokens in the largest group: with 16, products are 10% slower; with 64 or 128, no faster (tools/BENCHMARKS.md)."""
_CHUNK = 4
"""Blocks unpacked at a time: with 8, products are 5 to 10% slower; with 2, no faster."""
_SUMS, _TOKENS, _WEIGHTS = range(3)
_ROW = 64
"""Bytes of a vector, and of a row of an AMX register."""

_TARGET = host_target()


def tile_microkernel(block: PairBlock) -> Any:
    """A numba function (size, pair, half, first, x, stride, n, out): both tiles of a pair, from block `first` on, times
    `size` tokens. half and stride, which other micro-kernels take, mean nothing to it."""
    factor_bytes, sums_bytes = _ROW * (block.scales + block.offsets), _ROW * TOKENS * block.scales
    weights_bytes = _ROW * 8
    factors_at = 2 * _CHUNK * weights_bytes
    sums_at = factors_at + 2 * _CHUNK * factor_bytes
    room = scratch(sums_at + _CHUNK * sums_bytes)
    configuration = scratch(64)
    configure, release = _configuring(block), instruction(types.void, (), lambda b: _emit(b, "tilerelease"))
    unpack, multiply, add = _unpacking(block), _multiplying(block), _adding(block)

    @register_jitable(forceinline=True)
    def microkernel(size, pair, half, first, x, stride, n, out):
        configure(configuration())
        weights = room()
        factors, sums = weights + factors_at, weights + sums_at
        for r in range(2 * size):
            store_vector(out + _ROW * r, splat_f32(F(0.0)))
        for start in range(0, n, _CHUNK):
            count = min(_CHUNK, n - start)
            for tile in range(2):
                for k in range(count):
                    place = tile * _CHUNK + k
                    unpack(
                        pair, tile, first + start + k, weights + place * weights_bytes, factors + place * factor_bytes
                    )
            for token in range(0, size, TOKENS):
                at = x + (start * size + token) * X_BLOCK
                for tile in range(2):
                    own = tile * _CHUNK
                    for k in range(count):
                        multiply(at + k * size * X_BLOCK, weights + (own + k) * weights_bytes, sums + k * sums_bytes)
                    add(
                        sums,
                        factors + own * factor_bytes,
                        at,
                        size * X_BLOCK,
                        count,
                        out + (tile * size + token) * _ROW,
                    )
        release()

    return microkernel


def _emit(b: ir.IRBuilder, name: str, *args: ir.Value) -> None:
    call(b, f"llvm.x86.{name}", ir.VoidType(), args)


def _register(number: int) -> ir.Constant:
    return ir.Constant(I8, number)


def _bytes_at(b: ir.IRBuilder, address: ir.Value, offset: int) -> ir.Value:
    return pointer(b, address, offset, I8)


def _configuring(block: PairBlock) -> Any:
    """A numba function (address of 64 bytes): the sizes of the registers for a type of weights."""
    layout = bytearray(64)
    layout[0] = 1  # the only palette
    columns = 32 // block.scales
    for number, (rows, row_bytes) in enumerate([(TOKENS, 4 * LANES), (TOKENS, columns), (columns // 4, 4 * LANES)]):
        layout[16 + 2 * number], layout[48 + number] = row_bytes, rows

    def emit(b: ir.IRBuilder, at: ir.Value) -> None:
        store(b, at, ir.Constant(U8x64, list(layout)))
        _emit(b, "ldtilecfg", _bytes_at(b, at, 0))

    return instruction(types.void, (ADDRESS,), emit)


def _unpacking(block: PairBlock) -> Any:
    """A numba function (pair, tile, block's number, weights, factors): a tile's block as signed bytes, group by group,
    and its scales and offsets as vectors of f32."""

    def emit(
        b: ir.IRBuilder, pair: ir.Value, tile: ir.Value, number: ir.Value, weights: ir.Value, factors: ir.Value
    ) -> None:
        place = Place(b, _TARGET, block, pair, tile, number)
        unpacker = Unpacker(b, block, place.values(0))
        for group in range(8):
            values = b.sub(unpacker.group(group), fill(U8x64, block.bias))
            store(b, b.add(weights, ir.Constant(I64, _ROW * group)), values)
        vectors = [place.scale(0, part) for part in range(block.scales)]
        if block.offsets:
            vectors.append(place.offset(0))
        for i, vector in enumerate(vectors):
            store(b, b.add(factors, ir.Constant(I64, _ROW * i)), vector)

    return instruction(types.void, (ADDRESS,) * 5, emit)


def _multiplying(block: PairBlock) -> Any:
    """A numba function (x, weights, sums): 16 tokens' blocks, X_BLOCK bytes apart, times a tile's. Of each of a block's
    scales, i32 (16, 16)."""
    part_columns, part_bytes = 32 // block.scales, 512 // block.scales

    def emit(b: ir.IRBuilder, x: ir.Value, weights: ir.Value, sums: ir.Value) -> None:
        sums_of, tokens, own = (_register(number) for number in (_SUMS, _TOKENS, _WEIGHTS))
        for part in range(block.scales):
            _emit(b, "tilezero", sums_of)
            _emit(b, "tileloadd64", tokens, _bytes_at(b, x, part_columns * part), ir.Constant(I64, X_BLOCK))
            _emit(b, "tileloadd64", own, _bytes_at(b, weights, part_bytes * part), ir.Constant(I64, _ROW))
            _emit(b, "tdpbssd", sums_of, tokens, own)
            _emit(b, "tilestored64", sums_of, _bytes_at(b, sums, TOKENS * _ROW * part), ir.Constant(I64, _ROW))

    return instruction(types.void, (ADDRESS,) * 3, emit)


def _adding(block: PairBlock) -> Any:
    """A numba function (sums, factors, x, x_stride, n, out): out, f32 (16, 16), plus the scaled sums of `n` blocks."""
    factor_bytes, sums_bytes = _ROW * (block.scales + block.offsets), _ROW * TOKENS * block.scales

    def emit(
        b: ir.IRBuilder,
        sums: ir.Value,
        factors: ir.Value,
        x: ir.Value,
        x_stride: ir.Value,
        n: ir.Value,
        out: ir.Value,
    ) -> None:
        def body(b: ir.IRBuilder, i: ir.Value, totals: Sequence[ir.Value]) -> list[ir.Value]:
            new = list(totals)
            own_factors = b.add(factors, b.mul(i, ir.Constant(I64, factor_bytes)))
            own_sums, token = b.add(sums, b.mul(i, ir.Constant(I64, sums_bytes))), b.add(x, b.mul(i, x_stride))
            for part in range(block.scales):
                d = load(b, own_factors, _ROW * part, F32x16)
                for r in range(TOKENS):
                    product = load(b, own_sums, _ROW * (TOKENS * part + r), I32x16)
                    scale = b.fmul(splat(b, load(b, token, X_BLOCK * r + X.scale, F32)), d)
                    new[r] = multiply_add(b, _TARGET, b.sitofp(product, F32x16), scale, new[r])
            if block.offsets:
                m = load(b, own_factors, _ROW * block.scales, F32x16)
                for r in range(TOKENS):
                    total = splat(b, load(b, token, X_BLOCK * r + X.scaled_sum, F32))
                    new[r] = multiply_add(b, _TARGET, m, total, new[r])
            return new

        loop(b, n, [load(b, out, _ROW * r, F32x16) for r in range(TOKENS)], body, out)

    return instruction(types.void, (ADDRESS,) * 6, emit)
