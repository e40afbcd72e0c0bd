"""Blocks of GGUF that stand-ins are made for: exact values as gguf-py gives them, and how far the stand-ins are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from k_quantizers import K_QUANTIZERS

from dllama_zmq.quants import F32, U8, dequantize
from dllama_zmq.quants.k_quants import Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, SourceType
from dllama_zmq.spec import FloatType

GOLDEN = Path(__file__).parents[1] / "golden" / "gguf_blocks.npz"
TYPES = [Q4_K, Q5_K, Q6_K, Q5_0, Q5_1]
K_TYPES = [Q4_K, Q5_K, Q6_K]
# Relative RMS of what stands in against the exact values. Q41: two f16 roundings, the RMS of each about 0.58 · 2^-12.
# Q80: steps of 1/127 of what the scales of 32 values can reach, so 1/(127 · sqrt(12)) of that.
MAX_ERROR = {"Q4_K": 1e-3, "Q5_K": 1e-2, "Q6_K": 1e-2}


def golden(kind: SourceType) -> tuple[U8, F32]:
    with np.load(GOLDEN) as arrays:
        return arrays[f"{kind.name}_bytes"], arrays[f"{kind.name}_values"]


def relative_rms(got: F32, exact: F32) -> float:
    return float(np.sqrt(np.square(got - exact, dtype=np.float64).sum() / np.square(exact, dtype=np.float64).sum()))


def realistic(rng: np.random.Generator) -> F32:
    """Weights as models have them: rows of other sizes, a few columns that stick out, tails heavier than normal."""
    values = rng.standard_t(5, (64, 1024)) * 0.02 * np.exp(0.3 * rng.standard_normal((64, 1)))
    values[:, rng.integers(0, 1024, 8)] *= 6
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_values_are_those_of_gguf_py_to_the_last_bit(kind: SourceType) -> None:
    data, expected = golden(kind)
    assert np.array_equal(kind.dequantize(data), expected)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_stand_ins_of_extreme_blocks_are_near(kind: SourceType) -> None:
    data, expected = (blocks[2:] for blocks in golden(kind))  # the first two use but one of a block's integers
    got = dequantize(kind.convert(data), kind.read_as).reshape(-1, 32)
    exact = expected.reshape(-1, 32)
    fits = np.abs(exact).max(-1) < 65504  # larger numbers than an f16 have no stand-in
    assert fits.mean() > 0.7
    # 2^-7 of the largest of 32: half a step of Q80, and for blocks of tiny numbers half a step of an f16.
    bound = np.abs(exact).max(-1) * 2.0**-7 + 127 * 2.0**-24
    if kind is Q4_K:  # scale and offset each within 2^-11, or half a step of an f16
        bound = np.abs(exact).max(-1) * 2.0**-10 + 16 * 2.0**-25
        fits &= np.abs(exact).max(-1) > 1e-2 * np.abs(np.ptp(exact, axis=-1))
    if kind is Q5_0:
        assert np.array_equal(got, exact)
    assert (np.abs(got - exact).max(-1) <= bound)[fits].all()


@pytest.mark.parametrize("kind", K_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("weights", ["normal", "realistic"])
def test_stand_ins_of_weights_are_near(kind: SourceType, weights: str) -> None:
    rng = np.random.default_rng(5)
    values = realistic(rng) if weights == "realistic" else rng.standard_normal((64, 1024)).astype(np.float32)
    data = K_QUANTIZERS[kind.name](values)
    exact = kind.dequantize(data)
    error = relative_rms(dequantize(kind.convert(data), kind.read_as), exact)
    own = relative_rms(exact, values)
    print(f"{kind.name}, {weights} weights: {own:.2%} from the weights; its stand-in {error:.3%} from it")
    assert error < MAX_ERROR[kind.name]
    assert own < 0.15
    assert error < own / 3  # what stands in adds less than a tenth of the type's own error, in squares


def test_q4_k_keeps_its_integers() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((4, 512)).astype(np.float32)
    data = K_QUANTIZERS["Q4_K"](values)
    blocks = Q4_K.convert(data).reshape(-1, 20)
    assert Q4_K.read_as is FloatType.Q41
    low, high = blocks[:, 4:] & 15, blocks[:, 4:] >> 4
    q = np.concatenate([low, high], axis=1)  # in the order of the values
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    offsets = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
    back = np.rint((Q4_K.dequantize(data).reshape(-1, 32) - offsets) / scales)
    assert np.array_equal(back, q)


def test_no_stand_in_is_beyond_what_writers_of_q80_make() -> None:
    rng = np.random.default_rng(9)
    for kind in (Q5_K, Q6_K, Q5_1, Q5_0):
        data = rng.integers(0, 256, (512, kind.block_bytes), dtype=np.uint8)
        for at in [208] if kind is Q6_K else [0, 2] if kind in (Q5_K, Q5_1) else [0]:
            sizes = np.exp(rng.uniform(np.log(6e-8), np.log(10), 512)) * rng.choice([-1, 1], 512)
            data[:, at : at + 2] = sizes.astype("<f2")[:, None].view(np.uint8)
        integers = kind.convert(data).reshape(-1, 34)[:, 2:].view(np.int8)
        assert integers.min() >= -127
        assert integers.max() > 100 or kind is Q5_0


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_any_bytes_are_taken(kind: SourceType) -> None:
    data = np.random.default_rng(4).integers(0, 256, (3, 700 * kind.block_bytes), dtype=np.uint8)
    assert kind.dequantize(data).shape == (3, 700 * kind.block_values)
    assert kind.convert(data).shape == (3, kind.read_as.row_bytes(700 * kind.block_values))
    assert kind.convert(data[:0]).shape == (0, kind.read_as.row_bytes(700 * kind.block_values))
