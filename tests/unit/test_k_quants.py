"""The types that are only read: exact values as gguf-py gives them, and matrices that begin and end within a block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from k_quantizers import K_QUANTIZERS
from numpy.random import SFC64, Generator

from dllama_zmq.formats.random_model import random_blocks
from dllama_zmq.quants import F32, U8, BlockMatrix, dequantize, quantize, split
from dllama_zmq.spec import FloatType

GOLDEN = Path(__file__).parents[1] / "golden" / "gguf_blocks.npz"
Q50, Q51, Q4_K, Q5_K, Q6_K = FloatType.Q50, FloatType.Q51, FloatType.Q4_K, FloatType.Q5_K, FloatType.Q6_K
NAMES = {Q50: "Q5_0", Q51: "Q5_1", Q4_K: "Q4_K", Q5_K: "Q5_K", Q6_K: "Q6_K"}
TYPES = list(NAMES)
QUANTIZED = [kind for kind in FloatType if kind.is_quantized]
F16_AT = dict.fromkeys((FloatType.Q41, Q51, Q4_K, Q5_K), (0, 2)) | {Q6_K: (208,)}
"""Where a block has its d, and its m or dmin: at 0, if not said here."""
of_all = pytest.mark.parametrize("kind", TYPES, ids=NAMES.values())
of_quantized = pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)


def golden(kind: FloatType) -> tuple[U8, F32]:
    with np.load(GOLDEN) as arrays:
        return arrays[f"{NAMES[kind]}_bytes"], arrays[f"{NAMES[kind]}_values"]


@of_all
def test_values_are_those_of_gguf_py_to_the_last_bit(kind: FloatType) -> None:
    data, expected = golden(kind)
    assert dequantize(data, kind).tobytes() == expected.tobytes()
    wide = dequantize(data[None, :18].reshape(3, -1), kind)
    assert wide.tobytes() == expected[:18].tobytes()


@of_all
def test_values_are_scale_times_integer_plus_offset_with_nothing_rounded_before(kind: FloatType) -> None:
    """What the kernels multiply is what the values say."""
    data, expected = golden(kind)
    integers, scales, offsets = split(data, kind)
    width = 16 if kind is Q6_K else 32
    assert (integers.dtype, scales.dtype) == (np.int8, np.float32)
    assert integers.shape == (len(data), kind.block_values // width, width)
    exact = integers * scales[..., None].astype(np.float64)
    if offsets is not None:
        exact += offsets[..., None].astype(np.float64)
    assert (offsets is None) == (kind in (Q50, Q6_K))
    # gguf-py rounds the product and the sum, each to half of a last bit: 2^-24, of the larger of the two at the most.
    most = np.abs(integers * scales[..., None]) + (0 if offsets is None else np.abs(offsets[..., None]))
    assert (np.abs(exact.reshape(len(data), -1) - expected) <= 2.0**-23 * most.reshape(len(data), -1)).all()


@pytest.mark.parametrize("kind", [Q4_K, Q5_K, Q6_K])
def test_the_scales_and_offsets_of_k_quants_are_exact(kind: FloatType) -> None:
    """d·scale and dmin·offset have fewer bits than a float32: the same in double."""
    blocks = np.random.default_rng(3).integers(0, 256, (500, kind.block_bytes), dtype=np.uint8)
    blocks[:, 1] &= 0xBF  # finite
    blocks[:, 3] &= 0xBF
    blocks[:, -1] &= 0xBF
    _, scales, offsets = split(blocks, kind)
    if kind is Q6_K:
        d = blocks[:, 208:].copy().view("<f2").astype(np.float64)
        assert np.array_equal(scales, d * blocks[:, 192:208].view(np.int8))
        return
    assert offsets is not None
    d, dmin = (blocks[:, at : at + 2].copy().view("<f2").astype(np.float64) for at in (0, 2))
    b = blocks[:, 4:16].astype(int)
    # ggml-quants.c, get_scale_min_k4
    scale = [b[:, j] & 63 if j < 4 else (b[:, j + 4] & 15) | (b[:, j - 4] >> 6) << 4 for j in range(8)]
    offset = [b[:, j + 4] & 63 if j < 4 else (b[:, j + 4] >> 4) | (b[:, j] >> 6) << 4 for j in range(8)]
    assert np.array_equal(scales, d * np.stack(scale, axis=1))
    assert np.array_equal(offsets, -dmin * np.stack(offset, axis=1))


@of_all
def test_any_bytes_are_taken(kind: FloatType) -> None:
    data = np.random.default_rng(4).integers(0, 256, (3, 700 * kind.block_bytes), dtype=np.uint8)
    assert dequantize(data, kind).shape == (3, 700 * kind.block_values)
    assert dequantize(data[:0], kind).shape == (0, 700 * kind.block_values)
    assert not BlockMatrix(data, kind).is_finite


@of_all
def test_values_cannot_be_written_in_it(kind: FloatType) -> None:
    values = np.ones((2, 512), np.float32)
    with pytest.raises(ValueError, match=f"cannot be quantized to {kind.name}"):
        quantize(values, kind)
    with pytest.raises(ValueError, match=f"cannot be quantized to {kind.name}"):
        BlockMatrix.from_array(values, kind)


@of_quantized
def test_an_infinite_or_nan_scale_or_offset_in_any_block_is_found(kind: FloatType) -> None:
    rng = Generator(SFC64(1))
    data = random_blocks(rng, kind, 5, 3 * kind.block_values, 1.0)
    assert BlockMatrix(data, kind).is_finite
    for at in F16_AT.get(kind, (0,)):
        for bits in (0x7C00, 0xFC00, 0x7E00, 0x7C01):
            for row, block in ((0, 0), (4, 2), (2, 1)):
                bad = data.copy().reshape(5, 3, -1)
                bad[row, block, at : at + 2] = np.uint16([bits]).view(np.uint8)
                assert not BlockMatrix(bad.reshape(5, -1), kind).is_finite, (at, hex(bits))
                bad[row, block, at : at + 2] = np.uint16([0x7BFF]).view(np.uint8)  # 65504
                assert BlockMatrix(bad.reshape(5, -1), kind).is_finite


@of_quantized
def test_no_other_byte_of_a_block_makes_its_values_infinite(kind: FloatType) -> None:
    blocks = np.full((4, 2, kind.block_bytes), 0xFF, np.uint8)
    for at in F16_AT.get(kind, (0,)):
        blocks[..., at : at + 2] = np.uint16([0x7BFF]).view(np.uint8)
    matrix = BlockMatrix(blocks.reshape(4, -1), kind)
    assert matrix.is_finite
    assert np.isfinite(matrix.dequantize()).all()


# --- matrices that begin and end within a block ---


@st.composite
def cuts(draw: st.DrawFn, columns: int) -> slice:
    """Columns of `columns`, by 32."""
    first = draw(st.integers(0, columns // 32))
    return slice(32 * first, 32 * draw(st.integers(first, columns // 32)))


@of_quantized
@given(data=st.data())
def test_a_cut_has_the_values_that_it_cuts_out_and_a_cut_of_it_those(kind: FloatType, data: st.DataObject) -> None:
    whole = BlockMatrix(random_blocks(Generator(SFC64(2)), kind, 6, 1024, 1.0), kind)
    values = whole.dequantize()
    columns, rows = data.draw(cuts(1024)), slice(*sorted(data.draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))))
    cut = whole.cut(rows, columns)
    assert cut.shape == (rows.stop - rows.start, columns.stop - columns.start)
    assert cut.before < kind.block_values > cut.behind
    assert np.array_equal(cut.dequantize(), values[rows, columns])
    within = data.draw(cuts(cut.columns))
    again = cut.cut(slice(None), within)
    both = slice(columns.start + within.start, columns.start + within.stop)
    assert np.array_equal(again.dequantize(), values[rows, both])
    straight = whole.cut(rows, both)
    assert (again.before, again.behind, again.shape) == (straight.before, straight.behind, straight.shape)
    assert np.array_equal(again.data, straight.data)
    assert np.array_equal(again.contiguous().dequantize(), values[rows, both])


@of_quantized
@given(data=st.data())
def test_the_blocks_of_some_columns_are_their_matrix(kind: FloatType, data: st.DataObject) -> None:
    """As a node gets them: whole blocks, and the columns that it holds."""
    whole = BlockMatrix(random_blocks(Generator(SFC64(3)), kind, 3, 768, 1.0), kind)
    columns = data.draw(cuts(768))
    blocks = kind.whole_blocks(columns)
    sent = whole.cut(slice(None), blocks)
    assert (sent.before, sent.behind) == (0, 0)
    own = BlockMatrix.of_columns(sent.data, kind, columns)
    assert own.nbytes == 3 * kind.row_bytes(blocks.stop - blocks.start)
    assert np.array_equal(own.dequantize(), whole.dequantize()[:, columns])


@of_quantized
def test_a_cut_between_multiples_of_32_is_refused(kind: FloatType) -> None:
    matrix = BlockMatrix(random_blocks(Generator(SFC64(4)), kind, 2, 512, 1.0), kind)
    for columns in (slice(16, 256), slice(0, 40)):
        with pytest.raises(ValueError, match=rf"columns {columns.start} to {columns.stop} of {kind.name} are not mul"):
            matrix.cut(slice(None), columns)


@pytest.mark.parametrize("kind", K_QUANTIZERS)
def test_the_tests_own_writer_is_as_near_to_values_as_the_type_allows(kind: str) -> None:
    values = np.random.default_rng(5).standard_normal((64, 1024)).astype(np.float32)
    error = dequantize(K_QUANTIZERS[kind](values), FloatType[kind]) - values
    most = {"Q4_K": 0.08, "Q50": 0.045, "Q51": 0.04, "Q5_K": 0.04, "Q6_K": 0.02}[kind]
    assert most / 1.2 < float(np.sqrt(np.square(error).mean())) < most
