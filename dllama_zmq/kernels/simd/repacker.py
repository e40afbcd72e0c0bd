"""What repacks the blocks of 16 rows at once, in registers. LLVM code, without numba.

Everything is read as 16 bytes of each of 16 rows, and transposed to four vectors: lane r of the i-th has the i-th four
bytes of row r. That is how a tile has its values, four columns to a lane. How blocks of files lie: `quants/parts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from dllama_zmq.kernels.simd.layout import LANES, SCALES, PairBlock
from dllama_zmq.kernels.simd.llvm import I8, I16, I32, I64, I32x16, fill, joined, load, pointer, splat

_I32x4, _I8x16, _I16x16 = ir.VectorType(I32, 4), ir.VectorType(I8, 16), ir.VectorType(I16, 16)
_LOW, _HIGH = 0x0F0F0F0F, 0xF0F0F0F0
_F16_EXPONENT = ir.Constant(I16, 0x7C00)
"""All of these bits are set in an infinity and in a NaN."""
Values = list[ir.Value]


@dataclass(frozen=True, slots=True)
class Repacker:
    """Of a quantized type, by name: 16 rows at `source`, `stride` bytes apart, as the tile `half` of a pair."""

    name: str
    block: PairBlock

    @property
    def n_chunks(self) -> int:
        """Calls of `values` for a row's block: each has 32 bytes of it, or all if it has fewer."""
        return 4 if self.block.group == 8 else 1

    def scales(self, b: ir.IRBuilder, at: ir.Value, half: ir.Value, source: ir.Value, stride: ir.Value) -> ir.Value:
        """Write the scales, offsets and factors of one block of each row to the group at `at` of a pair.

        Returns an i64: not 0 if one of the f16 is infinite or NaN.
        """
        block = self.block
        first, *rest = _words(b, source, stride, 194 if self.name == "q6_k" else 0)
        halves = [_half(b, first, 0), _half(b, first, 1)][: 1 + block.offsets]
        if self.name == "q6_k":
            halves = [_half(b, rest[-1], 1)]
        found = ir.Constant(I64, 0)
        for values in halves:
            found = b.or_(found, _not_finite(b, values, _F16_EXPONENT))
        if block.group == 1:
            to = _plus(b, at, block.scales_at, half, block.scale_bytes)
            for i, values in enumerate(halves):
                _store(b, to, i * block.next_at, values)
            return found
        to = _plus(b, at, 0, half, SCALES)
        _store(b, to, 0, halves[0])
        if block.offsets:
            _store(b, to, 2 * SCALES, b.xor(halves[1], fill(_I16x16, 0x8000)))  # -dmin
        to = _plus(b, at, block.factor_bytes + block.scales_at, half, block.scale_bytes)
        if self.name == "q6_k":
            words = _words(b, source, stride, 192)
            integers = [(words[i // 4], i % 4) for i in range(16)]
        else:
            both = _six_bits(b, *rest)
            integers = [(words[j // 4], j % 4) for j in range(8) for words in both]
        for i, (word, byte) in enumerate(integers):  # two to a block: of both 16 columns, or a scale and an offset
            _store(b, to, i // 2 * block.nbytes + i % 2 * block.next_at, _byte(b, word, byte))
        return found

    def values(
        self, b: ir.IRBuilder, at: ir.Value, half: ir.Value, source: ir.Value, stride: ir.Value, chunk: ir.Value
    ) -> None:
        """Write the values of a block's `chunk` to the blocks at `at` of a pair, which are behind the factors."""
        block, name = self.block, self.name
        at = _plus(b, at, 0, half, block.value_bytes)
        if block.bits == 8:
            _store_all(b, at, [*_words(b, source, stride, 2), *_words(b, source, stride, 18)])
            return
        if block.group == 1:
            words = _words(b, source, stride, block.source_bytes - 16)
            values = [*_nibbles(b, words, high=False), *_nibbles(b, words, high=True)]
            if block.bits == 5:
                head = _words(b, source, stride, 0)
                # Q5_0 has its 32 bits behind one f16, Q5_1 behind two.
                bits = head[1] if block.offsets else b.or_(_right(b, head[0], 16), _left(b, head[1], 16))
                values.append(_merged(b, [_one_bit(b, bits, k) for k in range(8)], 1))
            _store_all(b, at, values)
            return
        from_chunk = b.add(source, b.mul(chunk, ir.Constant(I64, 32)))
        first = {"q4_k": 16, "q5_k": 48, "q6_k": 0}[name]
        words = [word for k in (0, 16) for word in _words(b, from_chunk, stride, first + k)]
        odd = b.and_(chunk, ir.Constant(I64, 1))
        for high in (False, True):
            values = _nibbles(b, words, high)
            if name == "q6_k":  # the low nibbles of 64 bytes, then the high ones
                j = b.add(b.add(b.mul(chunk, ir.Constant(I64, 2)), ir.Constant(I64, 2 * high)), b.neg(odd))
                half_of = b.mul(b.lshr(chunk, ir.Constant(I64, 1)), ir.Constant(I64, 32))
                values += self._upper(b, b.add(source, half_of), stride, 128, j)
            else:
                j = b.add(b.mul(chunk, ir.Constant(I64, 2)), ir.Constant(I64, int(high)))
                if name == "q5_k":
                    values += self._upper(b, source, stride, 16, j)
            _store_all(b, b.add(at, b.mul(j, ir.Constant(I64, block.nbytes))), values)

    def _upper(self, b: ir.IRBuilder, source: ir.Value, stride: ir.Value, first: int, j: ir.Value) -> Values:
        """The upper bits of the `j`-th 32 columns, of which each of the 32 bytes from `first` on has some."""
        words = [word for k in (0, 16) for word in _words(b, source, stride, first + k)]
        n_bits = self.block.bits - 4
        place = b.trunc(b.mul(b.and_(j, ir.Constant(I64, 8 // n_bits - 1)), ir.Constant(I64, n_bits)), I32)
        shift, mask = splat(b, place), 0x01010101 * ((1 << n_bits) - 1)
        bits = [_masked(b, b.lshr(word, shift), mask) for word in words]
        each = 8 // n_bits  # words whose bits share a vector
        return [_merged(b, bits[k : k + each], n_bits) for k in range(0, 8, each)]


@dataclass(frozen=True, slots=True)
class FloatRepacker:
    """Of values of 2 or 4 bytes: 16 rows at `source`, `stride` bytes apart, as a tile; a column is 32 values."""

    value_bytes: int

    @property
    def columns(self) -> int:
        """Columns of a call."""
        return 16 // self.value_bytes

    def emit(self, b: ir.IRBuilder, to: ir.Value, source: ir.Value, stride: ir.Value, exponent: ir.Value) -> ir.Value:
        """Write the first columns, 16 bytes of each row, to the first column's place at `to`.

        Returns an i64: not 0 if all bits of `exponent` are set in one of the values.
        """
        words = _words(b, source, stride, 0)
        if self.value_bytes == 2:
            words = [_half(b, word, upper) for word in words for upper in (0, 1)]
        found = ir.Constant(I64, 0)
        for i, values in enumerate(words):
            _store(b, to, i * 2 * LANES * self.value_bytes, values)
            found = b.or_(found, _not_finite(b, values, b.trunc(exponent, values.type.element)))
        return found


def _words(b: ir.IRBuilder, source: ir.Value, stride: ir.Value, offset: int) -> Values:
    """16 bytes of each of 16 rows -> four vectors; lane r of the i-th: the i-th four bytes of row r."""
    rows = [load(b, b.add(source, b.mul(stride, ir.Constant(I64, row))), offset, _I32x4) for row in range(LANES)]
    # Four lanes of these are four bytes each of the same row. Which are the rows of a tile in order once each four
    # lanes of the four vectors have been transposed.
    k, m, n, p = (joined(b, rows[i::4]) for i in range(4))
    pairs = [_interleaved(b, u, v, start, 1) for u, v in ((k, m), (n, p)) for start in (0, 2)]
    return [_interleaved(b, pairs[i], pairs[i + 2], start, 2) for i in (0, 1) for start in (0, 2)]


def _interleaved(b: ir.IRBuilder, u: ir.Value, v: ir.Value, start: int, width: int) -> ir.Value:
    """Of each four lanes, two from `start` on, of u and of v, `width` from each in turn."""
    places = [start, LANES + start, start + 1, LANES + start + 1]
    if width == 2:
        places = [start, start + 1, LANES + start, LANES + start + 1]
    picks = [four + place for four in range(0, LANES, 4) for place in places]
    return b.shuffle_vector(u, v, ir.Constant(I32x16, picks))


def _six_bits(b: ir.IRBuilder, low: ir.Value, middle: ir.Value, high: ir.Value) -> tuple[Values, Values]:
    """8 scales and 8 offsets of 6 bits in 12 bytes -> a byte for each, in two words of scales and two of offsets.

    Source: get_scale_min_k4 of ggml-quants.c.
    """
    scales, offsets = (
        [_masked(b, word, 0x3F3F3F3F), b.or_(_masked(b, _right(b, word, 2), 0x30303030), _masked(b, last, _LOW))]
        for word, last in ((low, high), (middle, _right(b, high, 4)))
    )
    return scales, offsets


def _nibbles(b: ir.IRBuilder, words: Sequence[ir.Value], high: bool) -> Values:
    """The low or the high nibbles of words, those of every second word above those of the one before it."""
    pairs = zip(words[::2], words[1::2], strict=True)
    if high:
        return [b.or_(_masked(b, _right(b, u, 4), _LOW), _masked(b, v, _HIGH)) for u, v in pairs]
    return [b.or_(_masked(b, u, _LOW), _masked(b, _left(b, v, 4), _HIGH)) for u, v in pairs]


def _one_bit(b: ir.IRBuilder, bits: ir.Value, k: int) -> ir.Value:
    """Bits 4k to 4k + 3, each in a byte of its own."""
    four = _masked(b, _right(b, bits, 4 * k), 15)
    return _masked(b, b.mul(four, fill(I32x16, 0x00204081)), 0x01010101)


def _merged(b: ir.IRBuilder, words: Values, n_bits: int) -> ir.Value:
    """The lowest bits of each byte of all words, one above another."""
    merged = words[0]
    for i, word in enumerate(words[1:], 1):
        merged = b.or_(merged, _left(b, word, i * n_bits))
    return merged


def _masked(b: ir.IRBuilder, v: ir.Value, mask: int) -> ir.Value:
    return b.and_(v, fill(I32x16, mask))


def _right(b: ir.IRBuilder, v: ir.Value, n: int) -> ir.Value:
    return b.lshr(v, fill(I32x16, n)) if n else v


def _left(b: ir.IRBuilder, v: ir.Value, n: int) -> ir.Value:
    return b.shl(v, fill(I32x16, n)) if n else v


def _half(b: ir.IRBuilder, v: ir.Value, upper: int) -> ir.Value:
    """The lower or upper 16 bits of each lane."""
    return b.trunc(_right(b, v, 16 * upper), _I16x16)


def _byte(b: ir.IRBuilder, v: ir.Value, i: int) -> ir.Value:
    """The `i`-th byte of each lane."""
    return b.trunc(_right(b, v, 8 * i), _I8x16)


def _not_finite(b: ir.IRBuilder, values: ir.Value, exponent: ir.Value) -> ir.Value:
    """An i64: not 0 if all bits of `exponent` are set in a lane."""
    mask = splat(b, exponent)
    found = b.icmp_unsigned("==", b.and_(values, mask), mask)
    return b.zext(b.bitcast(found, ir.IntType(LANES)), I64)


def _plus(b: ir.IRBuilder, at: ir.Value, offset: int, half: ir.Value, half_bytes: int) -> ir.Value:
    """The address `offset` bytes behind `at`, and `half_bytes` more for the second tile."""
    return b.add(b.add(at, ir.Constant(I64, offset)), b.mul(half, ir.Constant(I64, half_bytes)))


def _store(b: ir.IRBuilder, at: ir.Value, offset: int, values: ir.Value) -> None:
    b.store(values, pointer(b, at, offset, values.type)).align = 1


def _store_all(b: ir.IRBuilder, at: ir.Value, vectors: Values) -> None:
    """One vector behind another."""
    for i, values in enumerate(vectors):
        _store(b, at, 64 * i, values)
