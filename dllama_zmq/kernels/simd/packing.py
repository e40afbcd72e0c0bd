"""From rows of blocks, as files and the bus have them, to tiles with 16 rows in lanes. numba code.

A tile: for each block of 32 columns the bytes of `dots.py`, then 16 f16 scales; of F16 and F32, for each column 16
values. Rows beyond the matrix's last are zeros. Items are tiles.
"""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.panels import Q40_BLOCK, Q80_BLOCK
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.vectors import load_i32, load_i64, load_u8, store_i8, store_i32

# TO: the first tile. TO_STRIDE: bytes from a tile to the next. FROM: row 0's first byte. FROM_STRIDE: bytes from a row
# to the next. UNITS: blocks (of quantized types) or columns of a row.
TO, TO_STRIDE, FROM, FROM_STRIDE, N_ROWS, UNITS = range(0, 48, 8)


@register_jitable
def store_byte(at, value):
    store_i8(at, value)


@kernel
def pack_q40(job, first, last):
    """Q40 rows as tiles."""
    n_blocks, n_rows, stride = load_i64(job + UNITS), load_i64(job + N_ROWS), load_i64(job + FROM_STRIDE)
    for tile in range(first, last):
        to = load_i64(job + TO) + tile * load_i64(job + TO_STRIDE)
        for lane in range(16):
            row = tile * 16 + lane
            at = load_i64(job + FROM) + row * stride
            for b in range(n_blocks):
                block = to + b * Q40_BLOCK
                source = at + 18 * b
                if row < n_rows:
                    store_byte(block + 256 + 2 * lane, load_u8(source))
                    store_byte(block + 257 + 2 * lane, load_u8(source + 1))
                    for g in range(4):
                        # Columns 8g..8g+3 low, 8g+4..8g+7 high: four bytes at once from eight neighbouring nibbles.
                        words = load_i64(source + 2 + 8 * (g & 1))
                        if g >= 2:
                            words >>= 4
                        words &= 0x0F0F0F0F0F0F0F0F
                        low, high = words & 0xFFFFFFFF, (words >> 32) & 0xFFFFFFFF
                        store_i32(block + 64 * g + 4 * lane, low | (high << 4))
                else:
                    store_byte(block + 256 + 2 * lane, 0)
                    store_byte(block + 257 + 2 * lane, 0)
                    for g in range(4):
                        store_i32(block + 64 * g + 4 * lane, 0)


@kernel
def pack_q80(job, first, last):
    """Q80 rows as tiles."""
    n_blocks, n_rows, stride = load_i64(job + UNITS), load_i64(job + N_ROWS), load_i64(job + FROM_STRIDE)
    for tile in range(first, last):
        to = load_i64(job + TO) + tile * load_i64(job + TO_STRIDE)
        for lane in range(16):
            row = tile * 16 + lane
            at = load_i64(job + FROM) + row * stride
            for b in range(n_blocks):
                block = to + b * Q80_BLOCK
                source = at + 34 * b
                inside = row < n_rows
                store_byte(block + 512 + 2 * lane, load_u8(source) if inside else 0)
                store_byte(block + 513 + 2 * lane, load_u8(source + 1) if inside else 0)
                for g in range(8):
                    store_i32(block + 64 * g + 4 * lane, load_i32(source + 2 + 4 * g) if inside else 0)


def _make_floats(value_bytes):
    def pack(job, first, last):
        """Rows of floats as tiles, a column's 16 values together."""
        n_columns, n_rows, stride = load_i64(job + UNITS), load_i64(job + N_ROWS), load_i64(job + FROM_STRIDE)
        for tile in range(first, last):
            to = load_i64(job + TO) + tile * load_i64(job + TO_STRIDE)
            for lane in range(16):
                row = tile * 16 + lane
                at = load_i64(job + FROM) + row * stride
                for c in range(n_columns):
                    for i in range(value_bytes):
                        byte = load_u8(at + c * value_bytes + i) if row < n_rows else 0
                        store_byte(to + (c * 16 + lane) * value_bytes + i, byte)

    return pack


pack_f16 = kernel(_make_floats(2), "pack_f16")
pack_f32 = kernel(_make_floats(4), "pack_f32")
