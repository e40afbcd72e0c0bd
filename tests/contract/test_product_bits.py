"""Products of every back end have the same bits on any number of nodes and threads, in any batch, fused or alone."""

from __future__ import annotations

import numpy as np
import pytest
from contract.back_ends import (
    AVAILABLE,
    EVERYWHERE,
    Q80,
    ROWS,
    SAME_BITS,
    SOME_ROWS,
    SYNCS,
    TOKENS,
    activations,
    weights,
    with_threads,
)

from dllama_zmq.kernels import Norm, choose_kernels, tree_sum
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType

SAME_BITS_ROWS = [(*of, rows) for of in SAME_BITS for rows in (ROWS if of[1] in EVERYWHERE else SOME_ROWS)]
SAME_BITS_CUTS = [
    (*of, cut) for of in SAME_BITS for cut in ([1, 15, 16, 17, 128, 255, 256] if of[1] in EVERYWHERE else [17, 128])
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("choice", AVAILABLE)
@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("float_type", EVERYWHERE)
def test_a_product_that_crosses_the_bus_is_written_as_encode_would_write_it(float_type, sync, choice, threads):
    norm = Norm(activations(1, 96, 2)[0], 1e-5)
    with with_threads(choice, threads) as kernels, np.errstate(over="ignore"):
        for rows in (32, 96, 256) if sync == "q80" else (5, 33, 96):
            matrix = weights(rows, 96, float_type, seed=rows)
            plain, encoded = kernels.linear(matrix, segments=3), kernels.linear(matrix, segments=3, wire=sync)
            with_norm = kernels.linear(matrix, norm=norm, wire=sync)
            for n_tokens in TOKENS:
                x = activations(n_tokens, 96)
                wanted = kernels.encode(plain(x), sync)
                found = encoded(x)
                assert found.dtype == np.uint8
                assert np.array_equal(found, wanted), (rows, n_tokens)
                normed = kernels.linear(matrix)(kernels.rms_norm(x, norm.gain, norm.eps))
                assert np.array_equal(with_norm(x), kernels.encode(normed, sync)), (rows, n_tokens)


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
@pytest.mark.parametrize("float_type", EVERYWHERE)
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
@pytest.mark.parametrize("blocks_each", [1, 3])
@pytest.mark.parametrize(("choice", "float_type", "rows"), SAME_BITS_ROWS)
def test_column_slices_over_any_number_of_nodes_add_up_to_the_same_bits(
    choice, float_type, rows, blocks_each, n_tokens
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
@pytest.mark.parametrize(("choice", "float_type", "cut"), SAME_BITS_CUTS)
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


@pytest.mark.parametrize("choice", AVAILABLE)
def test_a_sum_of_nothing_but_negative_zeros_is_zero(choice):
    """Integers of 0 under a negative scale: sums begin at 0, on every CPU and in the reference."""
    blocks = np.zeros((1, 3, 34), np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(-1).tobytes(), np.uint8)
    product = choose_kernels(choice, threads=1).linear(BlockMatrix(blocks.reshape(1, -1), Q80))(activations(2, 96))
    assert product.tobytes() == np.zeros((2, 1), np.float32).tobytes()
