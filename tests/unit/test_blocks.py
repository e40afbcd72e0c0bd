"""Blocks: bytes worked out by hand, published error bounds, and round trips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from k_quantizers import K_QUANTIZERS, quantized

from dllama_zmq.quants import F32, I8, dequantize, quantize, split
from dllama_zmq.spec import FloatType

Q40, Q80 = FloatType.Q40, FloatType.Q80
WRITTEN = [kind for kind in FloatType if kind.name not in K_QUANTIZERS]


def block(*values: float) -> F32:
    """32 values: the given ones, then zeros."""
    return np.array([*values, *[0.0] * (32 - len(values))], np.float32)


def parts(values: F32, float_type: FloatType) -> tuple[I8, F32]:
    """The integers (blocks, 32) and scales (blocks,) of quantized values."""
    integers, scales, offsets = split(quantize(values, float_type)[None], float_type)
    assert offsets is None
    return integers[0], scales[0]


def test_a_q40_block_worked_by_hand_has_these_bytes():
    # The largest magnitude is -4, so d = -4 / -8 = 0.5 (f16 0x3800) and q = x / 0.5 + 8.
    values = block(-4.0, 3.5, 0.5, 1.0)
    values[16:20] = [0.0, -0.5, -4.0, 3.0]
    # q[0..3] = 0, 15, 9, 10 in the low nibbles; q[16..19] = 8, 7, 0, 14 in the high ones; zeros are 8.
    expected = bytes([0x00, 0x38, 0x80, 0x7F, 0x09, 0xEA, *[0x88] * 12])
    assert quantize(values, Q40).tobytes() == expected
    assert dequantize(np.frombuffer(expected, np.uint8), Q40).tolist() == values.tolist()


def test_a_q80_block_worked_by_hand_has_these_bytes():
    # The largest magnitude is 31.75, so d = 31.75 / 127 = 0.25 (f16 0x3400) and q = x / 0.25.
    values = block(31.75, -31.75, 0.25, -0.25, 1.0, -3.0)
    expected = bytes([0x00, 0x34, 127, 256 - 127, 1, 255, 4, 256 - 12, *[0] * 26])
    assert quantize(values, Q80).tobytes() == expected
    assert dequantize(np.frombuffer(expected, np.uint8), Q80).tolist() == values.tolist()


def test_plain_types_are_little_endian():
    values = np.array([1.0, -2.0], np.float32)
    assert quantize(values, FloatType.F32).tobytes() == bytes([0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0])
    assert quantize(values, FloatType.F16).tobytes() == bytes([0, 0x3C, 0, 0xC0])


def test_q80_rounds_halves_to_even():
    q, d = parts(block(127.0, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5), Q80)
    assert d.tolist() == [1.0]
    assert q[0, :8].tolist() == [127, 0, 2, 2, 4, 0, -2, -2]


def test_q40_rounds_halves_up_and_clips_the_far_end():
    # d = 1: q = trunc(x + 8.5), so -7.5 -> 1, -0.5 -> 8, 0.5 -> 9, 6.5 -> 15, and 7.9 -> 16 is clipped to 15.
    q, d = parts(block(-8.0, -7.5, -0.5, 0.5, 6.5, 7.9), Q40)
    assert d.tolist() == [1.0]
    assert q[0, :6].tolist() == [-8, -7, 0, 1, 7, 7]


def test_q40_takes_the_positive_value_when_magnitudes_tie():
    q, d = parts(block(-1.0, 1.0), Q40)
    assert d.tolist() == [-0.125]
    assert q[0, :2].tolist() == [7, -8]


@pytest.mark.parametrize(("float_type", "steps"), [(Q40, -8), (Q80, 127)])
def test_values_are_divided_by_the_scale_before_it_is_rounded_to_f16(float_type, steps):
    # d = 1.0007 is stored as 1.00098 (f16). 3.5028 is 3.50035 d, which rounds to 4, but 3.4994 stored scales.
    d = np.float32(1.0007)
    values = block(float(d) * steps, 3.5028)
    q, stored = parts(values, float_type)
    assert stored[0] == np.float16(1.0007)
    assert q[0, 1] == 4


@pytest.mark.parametrize("float_type", [Q40, Q80])
def test_a_block_of_zeros_comes_back_as_zeros(float_type):
    data = quantize(np.zeros(64, np.float32), float_type)
    assert not dequantize(data, float_type).any()


@pytest.mark.parametrize("float_type", [Q40, Q80])
@pytest.mark.parametrize("largest", [1e-45, 1e-40, 1.2e-38, 1e-30, 1e-9])
def test_values_too_small_for_an_f16_scale_become_zeros_without_a_warning(float_type, largest):
    values = np.linspace(-largest, largest, 32, dtype=np.float32)
    assert not dequantize(quantize(values, float_type), float_type).any()


@pytest.mark.parametrize("float_type", [Q40, Q80])
def test_values_too_large_for_an_f16_scale_stay_finite(float_type):
    values = np.linspace(-1e30, 1e30, 32, dtype=np.float32)
    assert np.isfinite(dequantize(quantize(values, float_type), float_type)).all()


@pytest.mark.parametrize(
    ("float_type", "low", "largest_error"), [(Q80, 0.0, 0.0043), (Q40, -1.0, 0.13), (Q80, -1.0, 0.01)]
)
def test_the_error_on_uniform_values_is_within_the_published_bound(float_type, low, largest_error):
    # The published bounds are of samples of this size; what can happen at worst is 0.5 / 127 + 2**-11 = 0.00443.
    values = np.random.default_rng(7).uniform(low, 1.0, 1024).astype(np.float32)
    error = np.abs(dequantize(quantize(values, float_type), float_type) - values).max()
    assert largest_error / 4 < error <= largest_error


@pytest.mark.parametrize("float_type", WRITTEN)
def test_arrays_are_float32_and_blocks_are_bytes(float_type):
    values = np.ones((3, 64), np.float32)
    data = quantize(values, float_type)
    assert (data.dtype, data.shape) == (np.uint8, (3, float_type.row_bytes(64)))
    assert (dequantize(data, float_type).dtype, dequantize(data, float_type).shape) == (np.float32, (3, 64))


# A scale of at least 6.1e-5 is a normal f16: rounding moves it by at most 2**-11 of itself.
_values = npst.arrays(np.float32, (4, 32), elements=st.floats(-1000, 1000, width=32))


@given(_values)
def test_q80_is_off_by_at_most_half_a_step_and_the_rounding_of_the_scale(values):
    values[:, 0] = np.maximum(np.abs(values[:, 0]), 0.01)
    d = np.abs(values).max(-1, keepdims=True) / np.float32(127)
    error = np.abs(dequantize(quantize(values, Q80), Q80) - values)
    assert (error <= d * (0.5 + 127 * 2**-11 + 1e-4)).all()


@given(_values)
def test_q40_is_off_by_at_most_a_step_and_the_rounding_of_the_scale(values):
    values[:, 0] = np.maximum(np.abs(values[:, 0]), 0.01)
    d = np.abs(values).max(-1, keepdims=True) / np.float32(8)
    error = np.abs(dequantize(quantize(values, Q40), Q40) - values)
    assert (error <= d * (1 + 8 * 2**-11 + 1e-4)).all()


# Not Q41: its steps are counted from an offset that f16 rounds.
@pytest.mark.parametrize("float_type", [kind for kind in WRITTEN if kind is not FloatType.Q41])
@given(values=_values)
def test_what_was_quantized_once_is_unchanged_by_a_second_time(float_type, values):
    values[:, 0] = np.maximum(np.abs(values[:, 0]), 0.01)
    once = quantize(values, float_type)
    assert np.array_equal(quantize(dequantize(once, float_type), float_type), once)


@pytest.mark.parametrize("float_type", list(FloatType))
def test_a_cut_of_whole_blocks_is_the_cut_of_the_values(float_type):
    matrix = quantized(np.random.default_rng(1).standard_normal((6, 1024), dtype=np.float32), float_type)
    cut = matrix.cut(slice(2, 5), slice(256, 768))
    assert cut.shape == (3, 512)
    assert (cut.before, cut.behind) == (0, 0)
    assert np.shares_memory(cut.data, matrix.data)
    assert np.array_equal(cut.contiguous().dequantize(), matrix.dequantize()[2:5, 256:768])
