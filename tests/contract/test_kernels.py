"""Rotation, norms and activations of every back end. One body for all: a new back end adds its name to
`back_ends.AVAILABLE`.

Figures called published are those of the tests of distributed-llama, each with the tolerance given there.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import pytest
from contract.back_ends import AVAILABLE, PUBLISHED_EXP, SIX_DIGITS, U, activations, silu_times, step, weights

from dllama_zmq.kernels import Batch, CacheSpec, Kernels, Rotation, choose_kernels
from dllama_zmq.models.rope import rope_angles, rope_frequencies
from dllama_zmq.quants import F32, quantize
from dllama_zmq.spec import FloatType, Rope, RopeScaling


@pytest.mark.parametrize("float_type", list(FloatType))
def test_every_result_is_a_float32_array_of_its_own(kernels, float_type):
    x = activations(3, 64) / 16
    kept = x.copy()
    matrix, batch = weights(5, 64, float_type), Batch.alone(0, 3)
    cache = kernels.kv_cache(CacheSpec(1, 1, 4, 16, [0, 1, 2, 3], "f32"))
    with np.errstate(over="ignore"):
        results = {
            "linear": (kernels.linear(matrix)(x), (3, 5)),
            "gated": (kernels.gated(matrix, matrix)(x), (3, 5)),
            "rms_norm": (kernels.rms_norm(x, np.ones(64, np.float32), 1e-5), (3, 64)),
            "attend": (cache.attend(0, batch, x, x, x), (3, 64)),
            "add_up": (kernels.add_up([quantize(kept, FloatType.F16)] * 2, "f16", encoded=True)[1], (3, 64)),
        }
    for name, (result, shape) in results.items():
        assert (name, result.dtype, result.shape) == (name, np.float32, shape)
        assert result.flags.c_contiguous
        assert not np.shares_memory(result, x)
    for result in kernels.linear(matrix, matrix)(x):  # of several matrices, rows may lie apart
        assert (result.dtype, result.shape, result.strides[1]) == (np.float32, (3, 5), 4)
        assert not np.shares_memory(result, x)
    for one, other in itertools.combinations(results.values(), 2):
        assert not np.shares_memory(one[0], other[0])
    assert np.array_equal(x, kept)


def rotate(kernels: Kernels, x: F32, cos: F32, sin: F32, layout: Literal["interleaved", "half"]) -> None:
    """Turn x (T, H, Hd) in place, as queries that attend to themselves."""
    n_tokens, n_heads, head_dim = x.shape
    cache = kernels.kv_cache(CacheSpec(1, 1, 1, head_dim, [0] * n_heads, "f32"))
    own = np.zeros((n_tokens, 1, head_dim), np.float32)
    step(cache, 0, Batch.alone(0, n_tokens), x, own, own, Rotation(cos, sin, layout))


@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("n_tokens", [1, 3, 33])
@pytest.mark.parametrize("head_dim", [2, 16, 80, 128])
def test_rotation_is_in_place_by_the_angles_of_each_token_wherever_its_rows_lie(kernels, head_dim, n_tokens, layout):
    wide = np.random.default_rng(8).standard_normal((n_tokens, 5 * head_dim), dtype=np.float32)
    before = wide.copy()
    x = wide[:, head_dim : 4 * head_dim].reshape(n_tokens, 3, head_dim)
    cos, sin = rope_angles(rope_frequencies(Rope(), head_dim), np.arange(7, 7 + n_tokens))
    rotate(kernels, x, cos, sin, layout)
    assert np.array_equal(wide[:, :head_dim], before[:, :head_dim])
    assert np.array_equal(wide[:, 4 * head_dim :], before[:, 4 * head_dim :])
    old = before[:, head_dim : 4 * head_dim].reshape(x.shape).astype(np.float64)
    half = head_dim // 2
    first, second = (
        (slice(0, None, 2), slice(1, None, 2)) if layout == "interleaved" else (slice(half), slice(half, None))
    )
    u, v, c, s = old[..., first], old[..., second], cos[:, None].astype(np.float64), sin[:, None].astype(np.float64)
    bound = 2 * U * (np.abs(u) + np.abs(v))  # two products, one sum
    assert (np.abs(x[..., first] - (u * c - v * s)) <= bound).all()
    assert (np.abs(x[..., second] - (u * s + v * c)) <= bound).all()


@pytest.mark.parametrize("n_tokens", [1, 5, 33])
@pytest.mark.parametrize("width", [2, 15, 16, 17, 288, 4096])
def test_rms_norm_is_exact_within_the_rounding_of_float32(kernels, width, n_tokens):
    rng = np.random.default_rng(9)
    x, gain = rng.standard_normal((n_tokens, width), dtype=np.float32), rng.standard_normal(width, dtype=np.float32)
    precise = x.astype(np.float64)
    exact = precise / np.sqrt((precise**2).mean(-1, keepdims=True) + 1e-5) * gain
    # The sum of squares is off by width * U (half of that is left of it under the root), six other steps by U each.
    assert (np.abs(kernels.rms_norm(x, gain, 1e-5) - exact) <= (width / 2 + 6) * U * np.abs(exact)).all()


def test_rms_norm_divides_by_the_root_mean_square_and_multiplies_by_the_gain(kernels):
    x = np.arange(1, 9, dtype=np.float32)[None] / 10
    gain = np.array([1, 1, 1, 1, -2, 0, 1, 1], np.float32)
    np.testing.assert_allclose(kernels.rms_norm(x, gain, 1e-5), x * 1.980256 * gain, rtol=0, atol=SIX_DIGITS)


def test_rms_norm_takes_each_row_by_itself_and_adds_epsilon_to_the_mean_square(kernels):
    x = np.array([[3e-3, 4e-3], [300, 400]], np.float32)
    normed = kernels.rms_norm(x, np.ones(2, np.float32), 1.25e-5)
    # 3e-3 / sqrt(1.25e-5 + 1.25e-5) = 0.6; 300 / sqrt(125000) = 0.848528
    np.testing.assert_allclose(normed, [[0.6, 0.8], [0.848528, 1.131371]], rtol=0, atol=SIX_DIGITS)


def test_silu_has_its_exact_values_and_the_published_ones(kernels):
    gate = np.arange(8, dtype=np.float32)[None] / 8
    silu = silu_times(kernels, gate, np.ones_like(gate))[0]
    published = [0, 0.066401, 0.140544, 0.222250, 0.311233, 0.407116, 0.509461, 0.617802]
    np.testing.assert_allclose(silu, published, rtol=0, atol=PUBLISHED_EXP)
    np.testing.assert_allclose(silu, [x / (1 + math.exp(-x)) for x in gate[0]], rtol=0, atol=SIX_DIGITS)
    np.testing.assert_allclose(silu_times(kernels, gate, gate - 2)[0], silu * (gate[0] - 2), rtol=0, atol=SIX_DIGITS)


def test_silu_of_values_far_out_is_zero_or_the_value_itself_without_a_warning(kernels):
    gate = np.array([[-1e4, -100, 100, 1e4]], np.float32)
    assert silu_times(kernels, gate, np.ones_like(gate)).tolist()[0] == pytest.approx([0, 0, 100, 1e4], abs=1e-37)


SCALED = Rope(500000.0, "interleaved", RopeScaling(32, 1, 4, 8192))
HALF = Rope(500000.0, "half")


@pytest.mark.parametrize(
    ("rope", "position", "figures"),
    [
        (
            SCALED,
            6,
            {0: 1.239586, 1: 0.680755, 2: 0.077202, 3: -1.412105, 1988: -1.356766, 2022: 0.999923, 2023: 1.000077},
        ),
        (SCALED, 31, {0: 1.318780, 1: 0.510705, 1078: 0.999985, 1079: 1.000015}),
        (
            HALF,
            6,
            {
                0: 1.239586,
                1: 0.077202,
                2: -1.356766,
                3: -1.164938,
                1988: -0.522115,
                1989: 0.018772,
                2022: 1.361834,
                2023: 1.276253,
            },
        ),
        (
            # Worked out in float64. Published are -1.139289 and -0.417384 for [1] and [2]: 31 times a frequency rounded
            # to float32.
            HALF,
            31,
            {0: 1.318780, 1: -1.139288, 2: -0.417383, 3: -1.291486, 1078: 1.003737, 1079: 1.002481},
        ),
    ],
)
def test_rotated_ones_have_the_published_values(kernels, rope, position, figures):
    ones = np.ones((1, 32, 64), np.float32)
    angles = rope_angles(rope_frequencies(rope, 64), np.array([position]))
    rotate(kernels, ones, *angles, rope.layout)
    for index, figure in figures.items():
        assert ones.ravel()[index] == pytest.approx(figure, rel=0, abs=SIX_DIGITS), index


@pytest.mark.parametrize("choice", ["auto", *AVAILABLE])
def test_a_back_end_is_found_by_its_name_and_auto_is_one_of_them(choice):
    name = choose_kernels(choice, threads=1).name
    assert name in AVAILABLE
    assert choice in ("auto", name)
