"""Products of every back end: exact within the rounding of float32, and added up in the order that is agreed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from contract.back_ends import (
    PLAIN,
    QUANTIZED,
    QUANTIZED_ROWS,
    ROWS,
    SHAPES,
    TOKENS,
    WITH_OFFSETS,
    U,
    activations,
    block_terms,
    own_parts,
    q80_error,
    weights,
    x_parts,
)

from dllama_zmq.kernels import Norm
from dllama_zmq.quants import U8, BlockMatrix
from dllama_zmq.spec import FloatType


@pytest.mark.parametrize(("columns", "segments"), SHAPES)
@pytest.mark.parametrize(("float_type", "rows"), QUANTIZED_ROWS)
def test_a_quantized_product_is_that_of_the_weights_and_of_activations_in_q80(
    kernels, float_type, rows, columns, segments
):
    matrix, x = weights(rows, columns, float_type), activations(max(TOKENS), columns)
    product = kernels.linear(matrix, segments=segments)
    terms = block_terms(matrix, x)
    exact = terms.sum(-1)
    # A term is two roundings (the scales' product, and the integers by it), and the sum one for each term.
    bound = (terms.shape[-1] + 2) * U * np.abs(terms).sum(-1)
    for n_tokens in TOKENS:
        error = np.abs(product(x[:n_tokens]) - exact[:n_tokens])
        assert (error <= bound[:n_tokens]).all(), n_tokens


@pytest.mark.parametrize(("float_type", "rows"), QUANTIZED_ROWS)
def test_a_quantized_product_is_that_of_the_dequantized_weights_within_the_rounding_of_q80(kernels, float_type, rows):
    matrix, x = weights(rows, 768, float_type), activations(9, 768)
    exact = x.astype(np.float64) @ matrix.dequantize().astype(np.float64).T
    error = np.abs(kernels.linear(matrix)(x) - exact)
    rounding = 50 * U * np.abs(block_terms(matrix, x)).sum(-1)
    assert (error <= q80_error(matrix, x) + rounding).all()
    assert error.max() > rounding.max()  # it is the quantized activations that are multiplied


@pytest.mark.parametrize(("columns", "segments"), SHAPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("float_type", PLAIN)
def test_a_plain_product_is_exact_within_the_rounding_of_float32(kernels, float_type, rows, columns, segments):
    matrix, x = weights(rows, columns, float_type), activations(max(TOKENS), columns)
    product = kernels.linear(matrix, segments=segments)
    w, precise = matrix.dequantize().astype(np.float64), x.astype(np.float64)
    exact, bound = precise @ w.T, columns * U * (np.abs(precise) @ np.abs(w).T)
    for n_tokens in TOKENS:
        error = np.abs(product(x[:n_tokens]) - exact[:n_tokens])
        assert (error <= bound[:n_tokens]).all(), n_tokens


@pytest.mark.parametrize("float_type", list(FloatType))
def test_several_matrices_of_one_input_give_the_products_of_each(kernels, float_type):
    matrices = {n: weights(n, 96, float_type, seed=n) for n in (17, 31, 1, 64)}
    inputs = [activations(n_tokens, 96) for n_tokens in (1, 3, 9)]
    alone = {n: kernels.linear(matrix, segments=3) for n, matrix in matrices.items()}
    expected = {n: [product(x).copy() for x in inputs] for n, product in alone.items()}
    for rows in itertools.permutations(matrices, 3):
        together = kernels.linear(*(matrices[n] for n in rows), segments=3)
        for i, x in enumerate(inputs):
            results = together(x)
            assert isinstance(results, list)
            assert len(results) == 3
            for result, n in zip(results, rows, strict=True):
                assert np.array_equal(result, expected[n][i]), (rows, len(x))


@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_matrices_of_one_input_may_begin_at_other_columns_of_a_block(kernels, float_type, n_tokens):
    firsts = (0, 96, 32, 96)
    matrices = [
        weights(33, 512, float_type, seed).cut(slice(None), slice(first, first + 192))
        for seed, first in enumerate(firsts)
    ]
    x = activations(n_tokens, 192) / 1024
    for result, matrix in zip(kernels.linear(*matrices, segments=2)(x), matrices, strict=True):
        assert np.array_equal(result, kernels.linear(matrix, segments=2)(x))
    gates, ups = (kernels.linear(matrix)(x).astype(np.float64) for matrix in matrices[:2])
    exact = gates / (1 + np.exp(-gates)) * ups
    gated = kernels.gated(matrices[0], matrices[1])(x)
    assert (np.abs(gated - exact) <= 11 * U * np.abs(exact) + 1e-38).all()  # as in the next test


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("float_type", list(FloatType))
def test_gated_is_the_silu_of_one_product_times_the_other(kernels, float_type, rows):
    gate, up = weights(rows, 96, float_type, seed=2), weights(rows, 96, float_type, seed=3)
    gated, each = kernels.gated(gate, up), (kernels.linear(gate), kernels.linear(up))
    for n_tokens in TOKENS:
        x = activations(n_tokens, 96) / 16
        gates, ups = (product(x).astype(np.float64) for product in each)
        inside = np.abs(gates) < 80  # e^88 is the end of float32
        exact = np.where(inside, gates / (1 + np.exp(-np.clip(gates, -80, 80))) * ups, 0)
        # e^-gate is off by 8 U or less, and 1 +, / and * by U each.
        error = np.where(inside, np.abs(gated(x) - exact), 0)
        assert (error <= 11 * U * np.abs(exact) + 1e-38).all(), n_tokens
        assert inside.mean() > 0.5


@pytest.mark.parametrize("n_tokens", [1, 3, 8])
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_blocks_are_added_one_after_another_within_a_segment_and_segments_as_a_tree(kernels, float_type, n_tokens):
    """A block is multiplied by its scale and added with one rounding, where the CPU does that by itself, or two."""
    matrix, x = weights(257, 32 * 40, float_type), activations(n_tokens, 32 * 40)
    w, w_scales, offsets = own_parts(matrix)
    q, q_scales = x_parts(x, w.shape[2])
    n_blocks = w.shape[1]
    separate, fused = np.zeros((2, 4, n_tokens, 257), np.float32)
    for block in range(n_blocks):
        segment = block * 4 // n_blocks
        sums = (q[:, block].astype(np.int32) @ w[:, block].astype(np.int32).T).astype(np.float32)
        scales = q_scales[:, block, None] * w_scales[:, block]
        fused[segment] = sums.astype(np.float64) * scales + fused[segment]
        if offsets is not None:  # the reference adds the offset's part to the block's, first
            raised = q_scales[:, block, None] * q[:, block].sum(-1, dtype=np.float32)[:, None]
            fused[segment] = offsets[:, block].astype(np.float64) * raised + fused[segment]
            separate[segment] += sums * scales + offsets[:, block] * raised
        else:
            separate[segment] += sums * scales
    expected = [(totals[0] + totals[1]) + (totals[2] + totals[3]) for totals in (separate, fused)]
    result = kernels.linear(matrix, segments=4)(x)
    assert any(np.array_equal(result, bits) for bits in expected)


def with_scales(float_type: FloatType, data: U8, d: np.ndarray, offset: np.ndarray) -> BlockMatrix:
    """`data` (rows, blocks, bytes of one) with d and, where the type has it, m or dmin (rows, blocks)."""
    at = float_type.block_bytes - 2 if float_type is FloatType.Q6_K else 0
    data[..., at : at + 2] = d.astype("<f2")[..., None].view(np.uint8)
    if float_type in WITH_OFFSETS:
        data[..., 2:4] = offset.astype("<f2")[..., None].view(np.uint8)
    return BlockMatrix(data.reshape(len(data), -1), float_type)


# A scale and an offset of 1, and of 32, for all values of a block.
ONES, THIRTY_TWOS = [1] * 8 + [0x11] * 4, [0xA0] * 8 + [0] * 4


@pytest.mark.parametrize("n_tokens", TOKENS)
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_integer_sums_are_exact_even_the_largest(kernels, float_type, n_tokens):
    """All weights at their limits (-128 of Q80 too) and activations at theirs, in every combination of signs."""
    rng = np.random.default_rng(6)
    low, high, *others = (0x80, 0x7F) if float_type is FloatType.Q80 else (0, 0xFF, 0x0F, 0xF0)
    data = rng.choice(np.uint8([low, high, *others]), (33, 2, float_type.block_bytes))
    data[0], data[1], data[2, :, ::2], data[2, :, 1::2] = low, high, low, high
    if float_type is FloatType.Q6_K:  # scales of ±1, and the largest
        data[..., 192:208] = np.resize(np.uint8([1, 255, 128]), (33, 1, 1))
    elif float_type.block_values == 256:
        data[..., 4:16] = np.resize([ONES, THIRTY_TWOS], (33, 1, 12))
    matrix = with_scales(float_type, data, np.ones((33, 2)), np.full((33, 2), -8))
    signs = rng.choice(np.float32([-127, 127]), (n_tokens, matrix.columns))
    signs[0] = 127  # whose scale is 1
    signs[-1] = -127
    exact = signs.astype(np.float64) @ matrix.dequantize().astype(np.float64).T
    assert np.array_equal(kernels.linear(matrix)(signs), exact)


@pytest.mark.parametrize("n_tokens", [1, 2, 5, 9])
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_scales_may_be_negative_zero_subnormal_or_the_largest(kernels, float_type, n_tokens):
    rng = np.random.default_rng(7)
    d = np.resize([-0.5, 0.0, -0.0, 2.0**-24, -(2.0**-24), 2.0**-15, 6e-5, 65504, -65504, 1.0], (33, 9))
    data = rng.integers(0, 256, (33, 9, float_type.block_bytes), dtype=np.uint8)
    matrix = with_scales(float_type, data, d, np.clip(np.roll(d, 3) * 8, -65504, 65504))
    x = activations(n_tokens, matrix.columns)
    terms = block_terms(matrix, x)
    error = np.abs(kernels.linear(matrix)(x) - terms.sum(-1))
    assert (error <= (terms.shape[-1] + 2) * U * np.abs(terms).sum(-1)).all()


@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_a_cut_from_anywhere_is_the_whole_for_an_x_of_zeros_elsewhere(kernels, float_type, n_tokens):
    """A node's columns may begin and end within a block."""
    whole, wide = weights(17, 768, float_type), activations(n_tokens, 768)
    of_all = kernels.linear(whole)
    for first in range(0, 288, 32):
        for columns in (32, 224, 256, 480):
            own = slice(first, first + columns)
            x = np.zeros_like(wide)
            x[:, own] = wide[:, own]
            found = kernels.linear(whole.cut(slice(None), own))(np.ascontiguousarray(wide[:, own]))
            assert np.array_equal(found, of_all(x)), own


@pytest.mark.parametrize("n_tokens", [1, 2, 5, 9])
@pytest.mark.parametrize("float_type", list(FloatType))
def test_blocks_of_zeros_and_tiny_activations_add_nothing(kernels, float_type, n_tokens):
    matrix, x = weights(33, 96, float_type), np.zeros((n_tokens, 96), np.float32)
    product = kernels.linear(matrix)
    x[:, ::2] = -0.0
    assert not product(x).any()
    middle = activations(n_tokens, 32)
    x[:, 32:64] = middle
    alone = kernels.linear(matrix.cut(slice(None), slice(32, 64)))(middle)
    np.testing.assert_allclose(product(x), alone, rtol=0, atol=1e-5 * np.abs(alone).max())
    if float_type in QUANTIZED:
        assert np.array_equal(product(x), alone)
        x[:, :32] = 1e-39  # under what an f16 scale can say
        x[:, 64:] = -1e-7
        assert np.array_equal(product(x), alone)


@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_activations_too_large_for_an_f16_scale_are_as_large_as_it_can_say(kernels, float_type, n_tokens):
    matrix = weights(17, 64, float_type)
    x = activations(n_tokens, 64) * np.float32(1e6)
    terms = block_terms(matrix, x)
    assert (
        np.abs(kernels.linear(matrix)(x) - terms.sum(-1)) <= (terms.shape[-1] + 2) * U * np.abs(terms).sum(-1)
    ).all()


@pytest.mark.parametrize("odd", [0, 1, 3])
@pytest.mark.parametrize("float_type", list(FloatType))
def test_a_matrix_may_be_cut_from_a_read_only_one_that_lies_anywhere(kernels, float_type, odd):
    whole = weights(64, 288, float_type)
    mapped = np.frombuffer(bytes(odd) + whole.data.tobytes(), np.uint8)[odd:].reshape(whole.data.shape)
    assert not mapped.flags.writeable
    column_by_column = np.asfortranarray(mapped)
    for data, rows in itertools.product((mapped, column_by_column), (slice(None), slice(5, 38), slice(63, 64))):
        for columns in (slice(None), slice(32, 64), slice(96, 288)):
            cut = replace(whole, content=data).cut(rows, columns)
            contiguous = replace(cut, content=cut.data.copy())
            x = activations(3, cut.columns)
            assert np.array_equal(kernels.linear(cut)(x), kernels.linear(contiguous)(x)), (rows, columns)
            for one, other in zip(kernels.linear(cut, cut)(x), kernels.linear(contiguous, contiguous)(x), strict=True):
                assert np.array_equal(one, other)
            assert np.array_equal(kernels.gated(cut, cut)(x / 16), kernels.gated(contiguous, contiguous)(x / 16))


@pytest.mark.parametrize("float_type", list(FloatType))
def test_activations_may_lie_apart_or_be_read_only(kernels, float_type):
    matrix, wide = weights(17, 64, float_type), activations(8, 128)
    norm = Norm(activations(1, 128)[0, ::2], 1e-5)
    frozen = np.frombuffer(wide.tobytes(), np.float32).reshape(wide.shape)
    for product in (kernels.linear(matrix), kernels.linear(matrix, norm=norm)):
        for x in (wide[:, 32:96], wide[::2, :64], frozen[:, 64:], frozen[1:2, :64]):
            assert np.array_equal(product(x), product(x.copy()))
