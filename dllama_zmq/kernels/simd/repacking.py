"""Repack rows of blocks, as files and the bus have them, into pairs of tiles with 16 rows in lanes. numba code.

How a pair lies: `layout.py` and `int8_dots.py`. How blocks of files lie: `quants/parts.py`. Lanes of rows beyond the
matrix's last keep the zeros that memory begins with. Nothing beside the matrix is read: its file may end there. Items
are tiles.
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
from dllama_zmq.kernels.simd.layout import BLOCKS, LANES, SCALES, RepackJob
from dllama_zmq.kernels.simd.registry import kernel

AT = offsets(RepackJob)


@register_jitable
def place_of(job, item):
    """The address of the pair of an item's tile, and which of the two tiles it is."""
    tile = load_i64(job + AT.tile) + item * load_i64(job + AT.step)
    return load_i64(job + AT.pairs) + (tile >> 1) * load_i64(job + AT.pair_bytes), tile & 1


@register_jitable
def copy_half(to, source):
    """Two bytes."""
    store_i8(to, load_u8(source))
    store_i8(to + 1, load_u8(source + 1))


# Of the `j`-th 32 columns of a row's block at `source`, a byte for each column:
# lower: the lower 4 bits of the columns 8v to 8v + 7, as 8 bytes.
# upper: the upper 1 or 2 bits of the columns 4k to 4k + 3, in the lowest bits of 4 bytes.


def _split_nibbles(at):
    """32 values of which byte j has value j and, above it, value j + 16."""

    @register_jitable
    def lower(source, j, v):
        words = load_i64(source + at + 8 * (v & 1))
        return (words >> 4 if v >= 2 else words) & 0x0F0F0F0F0F0F0F0F

    return lower


def _k_nibbles(at, size):
    """256 values of which each `size` bytes have `size` low nibbles, then `size` high ones."""

    @register_jitable
    def lower(source, j, v):
        first = 32 * j
        within = first % (2 * size)
        words = load_i64(source + at + first // (2 * size) * size + within % size + 8 * v)
        return (words >> 4 if within >= size else words) & 0x0F0F0F0F0F0F0F0F

    return lower


def _one_bit(at):
    """Bit c of 4 bytes is of column c."""

    @register_jitable
    def upper(source, j, k):
        four = (load_i32(source + at) >> (4 * k)) & 15
        return (four * 0x00204081) & 0x01010101

    return upper


def _q5_k_bit(at):
    """Bit j of byte c is of the j-th 32's column c."""

    @register_jitable
    def upper(source, j, k):
        return (load_i32(source + at + 4 * k) >> j) & 0x01010101

    return upper


def _q6_k_bits(at):
    """Bits 2i and 2i + 1 of byte c are of column c of the i-th 32 of a half."""

    @register_jitable
    def upper(source, j, k):
        return (load_i32(source + at + 32 * (j >> 2) + 4 * k) >> (2 * (j & 3))) & 0x03030303

    return upper


@register_jitable
def no_upper(source, j, k):
    """Values of 4 bits."""
    return 0


_LOWER = {
    "q40": _split_nibbles(2),
    "q41": _split_nibbles(4),
    "q50": _split_nibbles(6),
    "q51": _split_nibbles(8),
    "q4_k": _k_nibbles(16, 32),
    "q5_k": _k_nibbles(48, 32),
    "q6_k": _k_nibbles(0, 64),
}
_UPPER = {"q50": _one_bit(2), "q51": _one_bit(4), "q5_k": _q5_k_bit(16), "q6_k": _q6_k_bits(128)}


def _make_values(name, block):
    """A function that writes a row's 32 values into its lane, whose first byte is at `to`."""
    bits, upper_bits = block.bits, block.bits - 4
    if bits == 8:

        @register_jitable
        def whole(to, source, j):
            for k in range(8):
                store_i32(to + 64 * k, load_i32(source + 2 + 4 * k))

        return whole
    lower, upper = _LOWER[name], _UPPER.get(name, no_upper)
    each = 8 // upper_bits if upper_bits else 1  # groups whose upper bits share a vector

    @register_jitable
    def packed(to, source, j):
        for v in range(4):
            words = lower(source, j, v)
            store_i32(to + 64 * v, (words & 0xFFFFFFFF) | (((words >> 32) & 0xFFFFFFFF) << 4))
        for v in range(upper_bits):
            bits_of_all = 0
            for k in range(each):
                bits_of_all |= upper(source, j, v * each + k) << (upper_bits * k)
            store_i32(to + 64 * (4 + v), bits_of_all)

    return packed


def _make_scales(name, block):
    """A function that writes a row's scales and offsets of 32 columns, the first scale at `to`."""
    next_at, has_offsets = block.next_at, block.offsets
    if block.group == 1:

        @register_jitable
        def halves(to, source, j):
            copy_half(to, source)
            if has_offsets:
                copy_half(to + next_at, source + 2)

        return halves
    if name == "q6_k":

        @register_jitable
        def two(to, source, j):
            store_i8(to, load_u8(source + 192 + 2 * j))
            store_i8(to + next_at, load_u8(source + 193 + 2 * j))

        return two

    @register_jitable
    def six_bits(to, source, j):
        low, middle = load_u8(source + 4 + (j & 3)), load_u8(source + 8 + (j & 3))
        if j < 4:
            store_i8(to, low & 63)
            store_i8(to + next_at, middle & 63)
        else:
            high = load_u8(source + 12 + (j & 3))
            store_i8(to, (high & 15) | ((low >> 2) & 48))
            store_i8(to + next_at, (high >> 4) | ((middle >> 2) & 48))

    return six_bits


@register_jitable
def no_factors(to, source):
    """The type has none."""


@register_jitable
def one_factor(to, source):
    """Q6_K's d."""
    copy_half(to, source + 208)


@register_jitable
def two_factors(to, source):
    """d, and -dmin."""
    copy_half(to, source)
    store_i8(to + 2 * SCALES, load_u8(source + 2))
    store_i8(to + 2 * SCALES + 1, load_u8(source + 3) ^ 128)


def _make_blocks(name, block):
    block_bytes, value_bytes, scale_bytes, group = block.nbytes, block.value_bytes, block.scale_bytes, block.group
    factor_bytes, group_bytes, source_bytes = block.factor_bytes, block.group_bytes, block.source_bytes
    scales_at, lane_bytes = block.scales_at, scale_bytes // LANES
    values_of, scales_of = _make_values(name, block), _make_scales(name, block)
    factors_of = {0: no_factors, 2 * SCALES: one_factor, 4 * SCALES: two_factors}[factor_bytes]

    def repack(job, first, last):
        """Rows of blocks as tiles."""
        first_unit, stride = load_i64(job + AT.first_unit), load_i64(job + AT.source_stride)
        end = first_unit + load_i64(job + AT.n_units)
        for item in range(first, last):
            pair, half = place_of(job, item)
            for lane in range(min(LANES, load_i64(job + AT.n_rows) - item * LANES)):
                source = load_i64(job + AT.source) + (item * LANES + lane) * stride
                at = pair
                for start in range(0, end, group):
                    factors_of(at + half * SCALES + 2 * lane, source)
                    for j in range(max(0, first_unit - start), min(group, end - start)):
                        to = at + factor_bytes + j * block_bytes
                        values_of(to + half * value_bytes + 4 * lane, source, j)
                        scales_of(to + scales_at + half * scale_bytes + lane_bytes * lane, source, j)
                    source += source_bytes
                    at += group_bytes

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


for _name, _block in BLOCKS.items():
    kernel(_make_blocks(_name, _block), f"repack_{_name}")
repack_16 = kernel(_make_floats(2), "repack_16")
repack_32 = kernel(_make_floats(4), "repack_32")
