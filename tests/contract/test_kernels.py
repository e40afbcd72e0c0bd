"""What every back end must compute. One body for all: a new back end adds its name to `back_ends.AVAILABLE`.

Rounding of float32 is U = 2^-24 of the value for each operation. A sum of n terms in any order is therefore off by at
most n * U times the sum of their magnitudes, and every bound below is that one, with 1% more for products of roundings.

Figures called published are those of the tests of distributed-llama, each with the tolerance given there.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import pytest
from back_ends import (
    AVAILABLE,
    PLAIN,
    PUBLISHED_EXP,
    QUANTIZED,
    SAME_BITS,
    SIX_DIGITS,
    U,
    activations,
    block_terms,
    q80_error,
    silu_times,
    split,
    step,
    weights,
    with_threads,
)

from dllama_zmq.kernels import CacheSpec, Kernels, Norm, Rotation, Run, choose_kernels, tree_sum
from dllama_zmq.models.rope import rope_angles, rope_frequencies
from dllama_zmq.quants import F32, BlockMatrix, dequantize, quantize, split_q80
from dllama_zmq.spec import SYNC_FLOAT, FloatType, Rope, RopeScaling

ROWS = [1, 15, 16, 17, 31, 33, 255, 256, 257]
SHAPES = [(32, 1), (288, 1), (288, 9), (256, 8), (768, 8)]  # columns and segments
Q80 = FloatType.Q80
TOKENS = [*range(1, 10), 16, 33, 64]
SYNCS = ["f32", "f16", "q80"]


@pytest.mark.parametrize(("columns", "segments"), SHAPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("float_type", QUANTIZED)
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


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("float_type", QUANTIZED)
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
    for rows in itertools.permutations((17, 31, 1, 64), 3):
        matrices = [weights(n, 96, float_type, seed=n) for n in rows]
        together = kernels.linear(*matrices, segments=3)
        for n_tokens in (1, 3, 9):
            x = activations(n_tokens, 96)
            results = together(x)
            assert isinstance(results, list)
            assert len(results) == 3
            for result, matrix in zip(results, matrices, strict=True):
                assert np.array_equal(result, kernels.linear(matrix, segments=3)(x)), (rows, n_tokens)


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


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("choice", AVAILABLE)
@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("float_type", list(FloatType))
def test_a_product_that_crosses_the_bus_is_written_as_pack_would_write_it(float_type, sync, choice, threads):
    norm = Norm(activations(1, 96, 2)[0], 1e-5)
    with with_threads(choice, threads) as kernels, np.errstate(over="ignore"):
        for rows in (32, 96, 256) if sync == "q80" else (5, 33, 96):
            matrix = weights(rows, 96, float_type, seed=rows)
            plain, packed = kernels.linear(matrix, segments=3), kernels.linear(matrix, segments=3, wire=sync)
            with_norm = kernels.linear(matrix, norm=norm, wire=sync)
            for n_tokens in TOKENS:
                x = activations(n_tokens, 96)
                wanted = kernels.pack(plain(x), sync)
                found = packed(x)
                assert found.dtype == np.uint8
                assert np.array_equal(found, wanted), (rows, n_tokens)
                normed = kernels.linear(matrix)(kernels.rms_norm(x, norm.gain, norm.eps))
                assert np.array_equal(with_norm(x), kernels.pack(normed, sync)), (rows, n_tokens)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("choice", AVAILABLE)
@pytest.mark.parametrize("float_type", list(FloatType))
def test_a_product_with_a_norm_has_the_bits_of_the_norm_and_then_the_product(choice, float_type, threads):
    matrices = [weights(rows, 96, float_type, seed=rows) for rows in (17, 33)]
    norm, other = (Norm(activations(1, 96, seed)[0], eps) for seed, eps in ((2, 1e-5), (3, 0.5)))
    with with_threads(choice, threads) as kernels, np.errstate(over="ignore"):
        makers = [
            lambda **norm: kernels.linear(*matrices, segments=3, **norm),
            lambda **norm: kernels.linear(matrices[0], **norm),
            lambda **norm: kernels.linear(matrices[0], weights(1, 96, FloatType.F32), weights(5, 96, Q80), **norm),
            lambda **norm: kernels.gated(matrices[0], matrices[0], "gelu", **norm),
            lambda **norm: kernels.gated(matrices[1], weights(33, 96, Q80), **norm),
        ]
        plain, of_one, of_other = ([make(**of) for make in makers] for of in ({}, {"norm": norm}, {"norm": other}))
        for n_tokens in TOKENS:
            x = activations(n_tokens, 96) / 16
            kept = x.copy()
            for with_norm, of in ((of_one, norm), (of_other, other)):
                normed = kernels.rms_norm(x, of.gain, of.eps)
                for product, fused in zip(plain, with_norm, strict=True):
                    for wanted, found in zip(product(normed), fused(x), strict=True):
                        assert np.array_equal(found, wanted), n_tokens
            assert np.array_equal(x, kept)


@pytest.mark.parametrize("choice", AVAILABLE)
@pytest.mark.parametrize("n_tokens", [1, 3, 9])
@pytest.mark.parametrize("float_type", list(FloatType))
def test_threads_do_not_change_the_bits_of_a_product(choice, float_type, n_tokens):
    matrix, other = weights(2100, 256, float_type), weights(2100, 256, float_type, seed=5)
    x = activations(n_tokens, 256) / 16
    results = []
    for threads in (1, 2, 3):
        with with_threads(choice, threads) as kernels, np.errstate(over="ignore"):
            both = kernels.linear(matrix, other)(x)
            results.append([kernels.linear(matrix, segments=2)(x), *both, kernels.gated(matrix, other)(x)])
    for one, two, three in zip(*results, strict=True):
        assert np.array_equal(one, two)
        assert np.array_equal(one, three)


# What makes logits the same bits on any number of nodes.
@pytest.mark.parametrize("n_tokens", [1, 2, 9])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("blocks_each", [1, 3])
@pytest.mark.parametrize(("choice", "float_type"), SAME_BITS)
def test_column_slices_over_any_number_of_nodes_add_up_to_the_same_bits(
    choice, float_type, blocks_each, rows, n_tokens
):
    kernels, segments = choose_kernels(choice, threads=1), 8
    columns = 32 * blocks_each * segments
    matrix, x = weights(rows, columns, float_type), activations(n_tokens, columns)
    whole = kernels.linear(matrix, segments=segments)(x)
    for n_nodes in (1, 2, 4, 8):
        width = columns // n_nodes
        slices = [slice(node * width, (node + 1) * width) for node in range(n_nodes)]
        partials = [
            kernels.linear(matrix.cut(slice(None), part), segments=segments // n_nodes)(
                np.ascontiguousarray(x[:, part])
            )
            for part in slices
        ]
        assert np.array_equal(tree_sum(partials), whole), n_nodes


@pytest.mark.parametrize("segments", [1, 2, 3, 5, 6, 7, 9, 16, 31, 64, 128])
@pytest.mark.parametrize(("choice", "float_type"), SAME_BITS)
def test_segments_are_added_as_a_tree_whatever_their_number(choice, float_type, segments):
    kernels = choose_kernels(choice, threads=1)
    matrix, x = weights(33, 32 * segments, float_type), activations(3, 32 * segments)
    parts = [slice(32 * i, 32 * i + 32) for i in range(segments)]
    each = [kernels.linear(matrix.cut(slice(None), part))(np.ascontiguousarray(x[:, part])) for part in parts]
    assert np.array_equal(kernels.linear(matrix, segments=segments)(x), tree_sum(each))


@pytest.mark.parametrize("n_tokens", [1, 2, 9])
@pytest.mark.parametrize("cut", [1, 15, 16, 17, 128, 255, 256])
@pytest.mark.parametrize(("choice", "float_type"), SAME_BITS)
def test_a_row_has_the_same_bits_whichever_rows_its_node_holds(choice, float_type, cut, n_tokens):
    kernels = choose_kernels(choice, threads=1)
    matrix, x = weights(257, 32 * 40, float_type), activations(n_tokens, 32 * 40)
    nodes = [matrix.cut(rows, slice(None)) for rows in (slice(0, cut), slice(cut, 257))]
    split = np.concatenate([kernels.linear(node)(x) for node in nodes], axis=1)
    assert np.array_equal(split, kernels.linear(matrix)(x))


@pytest.mark.parametrize("columns", [32, 288])
@pytest.mark.parametrize(("choice", "float_type"), SAME_BITS)
def test_a_tokens_products_have_the_same_bits_whatever_is_in_its_batch(choice, float_type, columns):
    kernels = choose_kernels(choice, threads=1)
    matrix, other = weights(33, columns, float_type), weights(33, columns, float_type, seed=5)
    x = activations(64, columns) / 16
    for product in (
        kernels.linear(matrix),
        kernels.linear(matrix, segments=columns // 32),
        kernels.gated(matrix, other),
    ):
        alone = np.concatenate([product(x[t : t + 1]) for t in range(64)])
        for n_tokens in TOKENS:
            assert np.array_equal(product(x[:n_tokens]), alone[:n_tokens]), n_tokens
        assert np.array_equal(product(x[::-1]), alone[::-1])


@pytest.mark.parametrize("n_tokens", [1, 3, 8])
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_blocks_are_added_one_after_another_within_a_segment_and_segments_as_a_tree(kernels, float_type, n_tokens):
    """A block is multiplied by its scale and added with one rounding, where the CPU does that by itself, or two."""
    matrix, x = weights(257, 32 * 40, float_type), activations(n_tokens, 32 * 40)
    w, w_scales, offsets = split(matrix)
    q, q_scales = split_q80(quantize(x, FloatType.Q80))
    separate, fused = np.zeros((2, 4, n_tokens, 257), np.float32)
    for block in range(40):
        sums = (q[:, block].astype(np.int32) @ w[:, block].astype(np.int32).T).astype(np.float32)
        scales = q_scales[:, block, None] * w_scales[:, block]
        fused[block // 10] = sums.astype(np.float64) * scales + fused[block // 10]
        if float_type is FloatType.Q41:  # the reference adds the offset's part to the block's, first
            raised = q_scales[:, block, None] * q[:, block].sum(-1, dtype=np.float32)[:, None]
            fused[block // 10] = offsets[:, block] * raised + fused[block // 10]
            separate[block // 10] += sums * scales + offsets[:, block].astype(np.float32) * raised
        else:
            separate[block // 10] += sums * scales
    expected = [(totals[0] + totals[1]) + (totals[2] + totals[3]) for totals in (separate, fused)]
    result = kernels.linear(matrix, segments=4)(x)
    assert any(np.array_equal(result, bits) for bits in expected)


def blocks(float_type: FloatType, q: np.ndarray, scales: np.ndarray) -> BlockMatrix:
    """A matrix of whole numbers q (rows, blocks, 32) and float16 scales (rows, blocks)."""
    if float_type is FloatType.Q80:
        stored = q.astype(np.int8).view(np.uint8)
    else:
        nibbles = (q + 8).astype(np.uint8)
        stored = nibbles[..., :16] | nibbles[..., 16:] << 4
    scale_bytes = scales.astype("<f2")[..., None].view(np.uint8)
    head = [scale_bytes]
    if float_type is FloatType.Q41:  # its whole numbers are 0..15, here 8 too much
        head.append(np.maximum(-65504, np.minimum(65504, -8 * scales)).astype("<f2")[..., None].view(np.uint8))
    return BlockMatrix(np.concatenate([*head, stored], axis=-1).reshape(len(q), -1), float_type)


@pytest.mark.parametrize("n_tokens", TOKENS)
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_integer_sums_are_exact_even_the_largest(kernels, float_type, n_tokens):
    """All weights at their limits (-128 of Q80 too) and activations at theirs, in every combination of signs."""
    low, high = (-128, 127) if float_type is FloatType.Q80 else (-8, 7)
    rng = np.random.default_rng(6)
    q = rng.choice([low, high], (33, 2, 32))
    q[0], q[1], q[2, :, ::2], q[2, :, 1::2] = low, high, low, high
    matrix = blocks(float_type, q, np.ones((33, 2)))
    signs = rng.choice(np.float32([-127, 127]), (n_tokens, 64))
    signs[0] = 127  # whose scale is 1
    signs[-1] = -127
    assert np.array_equal(kernels.linear(matrix)(signs), signs.astype(np.int64) @ q.reshape(33, 64).T)


@pytest.mark.parametrize("n_tokens", [1, 2, 5, 9])
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_scales_may_be_negative_zero_subnormal_or_the_largest(kernels, float_type, n_tokens):
    rng = np.random.default_rng(7)
    scales = np.resize([-0.5, 0.0, -0.0, 2.0**-24, -(2.0**-24), 2.0**-15, 6e-5, 65504, -65504, 1.0], (33, 9))
    low, high = (-128, 128) if float_type is FloatType.Q80 else (-8, 8)
    matrix = blocks(float_type, rng.integers(low, high, (33, 9, 32)), scales)
    x = activations(n_tokens, 288)
    terms = block_terms(matrix, x)
    error = np.abs(kernels.linear(matrix)(x) - terms.sum(-1))
    assert (error <= (terms.shape[-1] + 2) * U * np.abs(terms).sum(-1)).all()


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
    for rows in (slice(None), slice(5, 38), slice(63, 64)):
        for columns in (slice(None), slice(32, 64), slice(96, 288)):
            cut = BlockMatrix(mapped, float_type).cut(rows, columns)
            contiguous = BlockMatrix(cut.data.copy(), float_type)
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


@pytest.mark.parametrize("n_parts", [1, 2, 3, 4, 8])
def test_a_tree_sum_adds_neighbours_first(n_parts):
    parts = [np.float32([10.0 ** (i % 5), 3.0**i]) for i in range(n_parts)]
    by_hand = {
        1: lambda p: p[0],
        2: lambda p: p[0] + p[1],
        3: lambda p: (p[0] + p[1]) + p[2],
        4: lambda p: (p[0] + p[1]) + (p[2] + p[3]),
        8: lambda p: ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7])),
    }
    assert np.array_equal(tree_sum(parts), by_hand[n_parts](parts))


def same(wire: object, expected: np.ndarray) -> bool:
    """The same bits, not only equal numbers."""
    return isinstance(wire, np.ndarray) and wire.shape == expected.shape and wire.tobytes() == expected.tobytes()


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("n_tokens", [1, 3, 40])
@pytest.mark.parametrize("width", [32, 288, 4096])
def test_activations_are_packed_bit_for_bit_as_the_bus_carries_them(kernels, width, n_tokens, sync):
    x = activations(n_tokens, width)
    x[0, :32] = 0
    x[-1, -32:] = np.arange(-16, 16) / 2  # ties
    for scale in (1.0, 1e-6, 1e-12, 1e-36) if sync != "f32" else (1.0,):
        scaled = x * np.float32(scale)
        packed = kernels.pack(scaled, sync)
        assert packed.dtype == np.uint8
        assert same(packed, quantize(scaled, SYNC_FLOAT[sync])), scale


@pytest.mark.parametrize("sync", ["f32", "f16"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 33), (40, 100)])
def test_widths_that_are_no_whole_blocks_cross_the_bus_as_well(kernels, shape, sync):
    kind = SYNC_FLOAT[sync]
    parts = [quantize(np.random.default_rng(i).standard_normal(shape, dtype=np.float32), kind) for i in range(3)]
    total = tree_sum([dequantize(part, kind) for part in parts])
    assert same(kernels.pack(total, sync), quantize(total, kind))
    assert same(kernels.add_up(parts, sync, packed=False)[1], total)
    wire, arrived = kernels.add_up(parts, sync, packed=True)
    assert same(wire, quantize(total, kind))
    assert same(arrived, dequantize(quantize(total, kind), kind))


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("n_parts", range(1, 10))
@pytest.mark.parametrize("n_tokens", [1, 3, 40])
def test_parts_are_added_up_bit_for_bit_as_a_tree_of_what_crossed_the_bus(kernels, n_tokens, n_parts, sync):
    kind = SYNC_FLOAT[sync]
    for width in (32, 288):
        parts = [quantize(activations(n_tokens, width, seed=i), kind) for i in range(n_parts)]
        total = tree_sum([dequantize(part, kind) for part in parts])
        wire, plain = kernels.add_up(parts, sync, packed=False)
        assert wire is None
        assert plain.dtype == np.float32
        assert same(plain, total)
        wire, arrived = kernels.add_up(parts, sync, packed=True)
        assert same(wire, quantize(total, kind))
        assert same(arrived, dequantize(quantize(total, kind), kind))


@pytest.mark.parametrize("sync", SYNCS)
def test_parts_may_be_read_only_and_lie_anywhere_and_are_left_as_they_are(kernels, sync):
    parts = [quantize(activations(3, 96, seed=i), SYNC_FLOAT[sync]) for i in range(3)]
    message = b"x" + b"".join(part.tobytes() for part in parts)
    size = parts[0].nbytes
    received = [
        np.frombuffer(message, np.uint8, size, 1 + i * size).reshape(part.shape) for i, part in enumerate(parts)
    ]
    expected = tree_sum([dequantize(part, SYNC_FLOAT[sync]) for part in parts])
    assert same(kernels.add_up(received, sync, packed=False)[1], expected)
    assert same(kernels.add_up(parts, sync, packed=True)[0], quantize(expected, SYNC_FLOAT[sync]))
    assert message[1:] == b"".join(part.tobytes() for part in parts)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sync", [None, "q80"])
@pytest.mark.parametrize("float_type", [FloatType.Q40, FloatType.F16])
@pytest.mark.parametrize("choice", AVAILABLE)
def test_what_comes_then_has_the_bits_of_a_call_of_its_own(choice, float_type, sync, threads):
    with with_threads(choice, threads) as kernels:
        norm = Norm(np.linspace(0.5, 2, 256, dtype=np.float32), 1e-5)
        gate, up = weights(512, 256, float_type, seed=1), weights(512, 256, float_type, seed=2)
        firsts = [kernels.gated(gate, up, "silu", norm), kernels.linear(gate, norm=norm)]
        last = kernels.linear(weights(256, 512, float_type, seed=3), segments=2, wire=sync)
        plain = kernels.linear(weights(256, 512, FloatType.F32, seed=4))
        o = kernels.linear(weights(64, 128, float_type, seed=5), wire=sync)
        caches = [kernels.kv_cache(CacheSpec(1, 1, 2, 64, 32, [0, 0, 1, 1], "f16")) for _ in range(2)]
        start = 0
        for n_tokens in (1, 1, 7, 33, 1):  # as few rows of a KV head as one thread takes, and more; and again
            x = activations(n_tokens, 256, seed=n_tokens)
            for first in firsts:
                for then in (last, plain):
                    assert same(first(x, then), then(first(x)))
            run, q, kv = Run(0, start, n_tokens), activations(n_tokens, 128), activations(n_tokens, 64)
            together = caches[0].attend(0, run, q.copy(), kv.copy(), kv.copy(), None, o)
            assert same(together, o(caches[1].attend(0, run, q.copy(), kv.copy(), kv.copy())))
            start += n_tokens


@pytest.mark.parametrize("choice", AVAILABLE)
@pytest.mark.parametrize("sync", SYNCS)
def test_threads_do_not_change_the_bits_of_a_sum_nor_of_what_is_packed(choice, sync):
    x = [activations(40, 1056, seed=i) for i in range(3)]
    parts = [quantize(part, SYNC_FLOAT[sync]) for part in x]
    results = []
    for threads in (1, 2, 3):
        with with_threads(choice, threads) as kernels:
            results.append([kernels.pack(x[0], sync), *kernels.add_up(parts, sync, packed=True)])
    for one, two, three in zip(*results, strict=True):
        assert same(two, one)
        assert same(three, one)


@pytest.mark.parametrize("float_type", list(FloatType))
def test_every_result_is_a_float32_array_of_its_own(kernels, float_type):
    x = activations(3, 64) / 16
    kept = x.copy()
    matrix, run = weights(5, 64, float_type), Run(0, 0, 3)
    cache = kernels.kv_cache(CacheSpec(1, 1, 4, 3, 16, [0, 1, 2, 3], "f32"))
    with np.errstate(over="ignore"):
        results = {
            "linear": (kernels.linear(matrix)(x), (3, 5)),
            "gated": (kernels.gated(matrix, matrix)(x), (3, 5)),
            "rms_norm": (kernels.rms_norm(x, np.ones(64, np.float32), 1e-5), (3, 64)),
            "attend": (cache.attend(0, run, x, x, x), (3, 64)),
            "add_up": (kernels.add_up([quantize(kept, FloatType.F16)] * 2, "f16", packed=True)[1], (3, 64)),
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
    cache = kernels.kv_cache(CacheSpec(1, 1, 1, n_tokens, head_dim, [0] * n_heads, "f32"))
    own = np.zeros((n_tokens, 1, head_dim), np.float32)
    step(cache, 0, Run(0, 0, n_tokens), x, own, own, Rotation(cos, sin, layout))


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
            SCALED, 6,
            {0: 1.239586, 1: 0.680755, 2: 0.077202, 3: -1.412105, 1988: -1.356766, 2022: 0.999923, 2023: 1.000077},
        ),
        (SCALED, 31, {0: 1.318780, 1: 0.510705, 1078: 0.999985, 1079: 1.000015}),
        (
            HALF, 6,
            {0: 1.239586, 1: 0.077202, 2: -1.356766, 3: -1.164938, 1988: -0.522115, 1989: 0.018772,
             2022: 1.361834, 2023: 1.276253},
        ),
        (
            # Worked out in float64. Published are -1.139289 and -0.417384 for [1] and [2]: 31 times a frequency rounded
            # to float32.
            HALF, 31,
            {0: 1.318780, 1: -1.139288, 2: -0.417383, 3: -1.291486, 1078: 1.003737, 1079: 1.002481},
        ),
    ],
)  # fmt: skip
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
