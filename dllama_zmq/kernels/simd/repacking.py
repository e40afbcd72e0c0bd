"""Repack rows of blocks, as files and the bus have them, into pairs of tiles with 16 rows in lanes. numba code.

How a pair lies: `layout.py` and `int8_dots.py`. How 16 rows are transposed: `repacker.py`. Items are tiles. Nothing
beside the matrix is read: its file may end there. Lanes of rows beyond the matrix's last get the values of zero bytes.
Whether the matrix has infinities or NaNs is seen on the way: all is read once.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.intrinsics import copy_bytes, load_i64, load_u8, scratch, store_i8, store_i64
from dllama_zmq.kernels.simd.job import offsets
from dllama_zmq.kernels.simd.layout import BLOCKS, LANES, RepackJob
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.repacker import FloatRepacker
from dllama_zmq.kernels.simd.vectors import repack_floats, repack_scales, repack_values

AT = offsets(RepackJob)


@register_jitable
def place_of(job, item):
    """The address of the pair of an item's tile, and which of the two tiles it is."""
    tile = load_i64(job + AT.tile) + item * load_i64(job + AT.step)
    return load_i64(job + AT.pairs) + (tile >> 1) * load_i64(job + AT.pair_bytes), tile & 1


@register_jitable
def clear(at, n_bytes):
    """Bytes that are a multiple of 8."""
    for i in range(0, n_bytes, 8):
        store_i64(at + i, 0)


@register_jitable
def copy_rows(to, source, stride, n_rows, n_bytes):
    """The same `n_bytes` of some rows, one behind another."""
    for row in range(n_rows):
        copy_bytes(to + row * n_bytes, source + row * stride, n_bytes)


def _make_blocks(name, block):
    block_bytes, group_bytes, factor_bytes = block.source_bytes, block.group_bytes, block.factor_bytes
    scales, values, n_chunks = repack_scales(name, block), repack_values(name, block), 4 if block.group == 8 else 1
    copied = scratch(LANES * block_bytes)

    def repack(job, first, last):
        """Rows of blocks as tiles."""
        n_blocks, stride = load_i64(job + AT.n_units), load_i64(job + AT.source_stride)
        found, room = 0, copied()
        for item in range(first, last):
            at, half = place_of(job, item)
            source = load_i64(job + AT.source) + item * LANES * stride
            n_rows = load_i64(job + AT.n_rows) - item * LANES
            if n_rows < LANES:
                clear(room, LANES * block_bytes)
            for _ in range(n_blocks):
                rows, step = source, stride
                if n_rows < LANES:
                    copy_rows(room, source, stride, n_rows, block_bytes)
                    rows, step = room, block_bytes
                found |= scales(at, half, rows, step)
                for chunk in range(n_chunks):
                    values(at + factor_bytes, half, rows, step, chunk)
                source += block_bytes
                at += group_bytes
        if found:
            store_i64(job + AT.not_finite, 1)

    return repack


def _make_floats(value_bytes):
    repack_columns, n_together = repack_floats(value_bytes), FloatRepacker(value_bytes).columns
    copied = scratch(LANES * 16)

    @register_jitable
    def repack_last(to, rows, stride, n_rows, n_columns, exponent):
        """Fewer columns than lie in 16 bytes, one value after another."""
        found = 0
        for lane in range(n_rows):
            for c in range(n_columns):
                value = 0
                for i in range(value_bytes):
                    byte = load_u8(rows + lane * stride + c * value_bytes + i)
                    store_i8(to + (c * 2 * LANES + lane) * value_bytes + i, byte)
                    value |= byte << (8 * i)
                if value & exponent == exponent:
                    found = 1
        return found

    def repack(job, first, last):
        """Rows of floats as tiles, a column's 32 values of a pair together."""
        n_columns, stride = load_i64(job + AT.n_units), load_i64(job + AT.source_stride)
        exponent = load_i64(job + AT.exponent)
        found, room = 0, copied()
        for item in range(first, last):
            pair, half = place_of(job, item)
            at = pair + half * LANES * value_bytes
            source = load_i64(job + AT.source) + item * LANES * stride
            n_rows = min(LANES, load_i64(job + AT.n_rows) - item * LANES)
            if n_rows < LANES:
                clear(room, LANES * 16)
            for _ in range(n_columns // n_together):
                rows, step = source, stride
                if n_rows < LANES:
                    copy_rows(room, source, stride, n_rows, 16)
                    rows, step = room, 16
                found |= repack_columns(at, rows, step, exponent)
                source += 16
                at += n_together * 2 * LANES * value_bytes
            found |= repack_last(at, source, stride, n_rows, n_columns % n_together, exponent)
        if found:
            store_i64(job + AT.not_finite, 1)

    return repack


for _name, _block in BLOCKS.items():
    kernel(_make_blocks(_name, _block), f"repack_{_name}")
repack_16 = kernel(_make_floats(2), "repack_16")
repack_32 = kernel(_make_floats(4), "repack_32")
