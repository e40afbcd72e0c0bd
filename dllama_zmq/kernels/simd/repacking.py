"""Repack rows of blocks, as files and the bus have them, into pairs of tiles with 16 rows in lanes. numba code.

How a pair lies: `layout.py`. Rows beyond the matrix's last are zeros. Items are tiles.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.intrinsics import (
    load_i32,
    load_i64,
    load_u8,
    store_i8,
    store_i32,
)
from dllama_zmq.kernels.simd.job import offsets
from dllama_zmq.kernels.simd.layout import Q40, Q41, Q80, SCALES, RepackJob
from dllama_zmq.kernels.simd.registry import kernel

AT = offsets(RepackJob)


@register_jitable
def place_of(job, item):
    """The address of the pair of an item's tile, and which of the two tiles it is."""
    tile = load_i64(job + AT.tile) + item * load_i64(job + AT.step)
    return load_i64(job + AT.pairs) + (tile >> 1) * load_i64(job + AT.pair_bytes), tile & 1


@register_jitable
def copy_half(to, source, inside):
    """Two bytes, or zeros."""
    store_i8(to, load_u8(source) if inside else 0)
    store_i8(to + 1, load_u8(source + 1) if inside else 0)


def _make_blocks(block):
    block_bytes, value_bytes, scales_at, offsets_at = block.nbytes, block.value_bytes, block.scales_at, block.offsets_at
    source_bytes, source_values = block.source_bytes, block.source_values
    nibbles, offsets = block.nibbles, block.offsets

    @register_jitable
    def repack_values(to, source, inside):
        """Write a row's 32 values of a block into its lane, whose first byte is at `to`."""
        if nibbles:
            for g in range(4):
                # Columns 8g..8g+3 low, 8g+4..8g+7 high: four bytes at once from eight neighbouring nibbles.
                words = load_i64(source + 8 * (g & 1)) if inside else 0
                if g >= 2:
                    words >>= 4
                words &= 0x0F0F0F0F0F0F0F0F
                store_i32(to + 64 * g, (words & 0xFFFFFFFF) | (((words >> 32) & 0xFFFFFFFF) << 4))
        else:
            for g in range(8):
                store_i32(to + 64 * g, load_i32(source + 4 * g) if inside else 0)

    def repack(job, first, last):
        """Rows of blocks as tiles."""
        n_blocks, n_rows, stride = (
            load_i64(job + AT.n_units),
            load_i64(job + AT.n_rows),
            load_i64(job + AT.source_stride),
        )
        for item in range(first, last):
            to, half = place_of(job, item)
            for lane in range(16):
                row = item * 16 + lane
                inside = row < n_rows
                source = load_i64(job + AT.source) + row * stride
                values = to + half * value_bytes + 4 * lane
                scales = to + scales_at + half * SCALES + 2 * lane
                for _ in range(n_blocks):
                    copy_half(scales, source, inside)
                    if offsets:
                        copy_half(scales + offsets_at, source + 2, inside)
                    repack_values(values, source + source_values, inside)
                    source += source_bytes
                    values += block_bytes
                    scales += block_bytes

    return repack


def _make_floats(value_bytes):
    def repack(job, first, last):
        """Rows of floats as tiles, a column's 32 values of a pair together."""
        n_columns, n_rows, stride = (
            load_i64(job + AT.n_units),
            load_i64(job + AT.n_rows),
            load_i64(job + AT.source_stride),
        )
        for item in range(first, last):
            to, half = place_of(job, item)
            for lane in range(16):
                row = item * 16 + lane
                at = load_i64(job + AT.source) + row * stride
                for c in range(n_columns):
                    for i in range(value_bytes):
                        byte = load_u8(at + c * value_bytes + i) if row < n_rows else 0
                        store_i8(to + (c * 32 + half * 16 + lane) * value_bytes + i, byte)

    return repack


repack_q40 = kernel(_make_blocks(Q40), "repack_q40")
repack_q41 = kernel(_make_blocks(Q41), "repack_q41")
repack_q80 = kernel(_make_blocks(Q80), "repack_q80")
repack_16 = kernel(_make_floats(2), "repack_16")
repack_32 = kernel(_make_floats(4), "repack_32")
