"""What compiled back ends promise beyond the reference: memory used again, and no garbage for what is no number."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from contract.back_ends import EVERYWHERE, PLAIN, QUANTIZED, activations, weights

from dllama_zmq.kernels import Batch, CacheSpec, Norm, tree_sum
from dllama_zmq.quants import BlockMatrix, dequantize, quantize
from dllama_zmq.spec import SYNC_FLOAT, FloatType


def makers(kernels, n_tokens):
    """Every kind of result, made anew at each call: name -> function."""
    x, gain = activations(n_tokens, 64) / 16, np.ones(64, np.float32)
    matrix = weights(64, 64, FloatType.Q40)
    normed = kernels.linear(matrix, norm=Norm(gain, 1e-5))
    linear, several, gated = kernels.linear(matrix), kernels.linear(matrix, matrix), kernels.gated(matrix, matrix)
    batch = Batch.alone(0, n_tokens)
    cache = kernels.kv_cache(CacheSpec(1, 1, 4, 16, [0, 1, 2, 3], "f16"))
    parts = [quantize(x, FloatType.Q80)] * 2
    return {
        "linear": lambda: linear(x),
        "first of several": lambda: several(x)[0],
        "last of several": lambda: several(x)[1],
        "gated": lambda: gated(x),
        "of a norm": lambda: normed(x),
        "rms_norm": lambda: kernels.rms_norm(x, gain, 1e-5),
        "attend": lambda: cache.attend(0, batch, x, x, x),
        "encode": lambda: kernels.encode(x, "q80"),
        "sum as it crosses": lambda: kernels.add_up(parts, "q80", encoded=True)[0],
        "sum as it arrives": lambda: kernels.add_up(parts, "q80", encoded=True)[1],
        "sum as it is": lambda: kernels.add_up(parts, "q80", encoded=False)[1],
    }


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_results_that_are_held_share_no_memory_and_keep_what_they_say(compiled, n_tokens):
    held, contents = [], []
    for _ in range(3):
        for make in makers(compiled, n_tokens).values():
            held.append(make())
            contents.append(held[-1].copy())
    for i, (result, content) in enumerate(zip(held, contents, strict=True)):
        assert np.array_equal(result, content), i
        assert not any(np.shares_memory(result, other) for other in held[i + 1 :]), i


@pytest.mark.parametrize(
    "hold",
    [
        lambda result: result[-1:, :1],
        lambda result: result.reshape(-1)[2:],
        lambda result: result.T,
        memoryview,
    ],
)
def test_a_view_of_a_result_holds_it(compiled, hold):
    for name, make in makers(compiled, 3).items():
        view = hold(np.asarray(make()))
        content = bytes(view)
        others = [make() for _ in range(3)]
        for other in others:
            other[...] = 77
        assert bytes(view) == content, name


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_a_result_that_was_dropped_is_the_memory_of_the_next(compiled, n_tokens):
    for name, make in makers(compiled, n_tokens).items():
        places = set()
        for _ in range(5):
            result = make()
            places.add(result.__array_interface__["data"][0])
            del result
        assert len(places) == 1, name


def test_nothing_is_allocated_from_token_to_token(compiled):
    gain, x = np.ones(8192, np.float32), activations(16, 64)
    wide, narrow = compiled.linear(weights(8192, 64, FloatType.Q40)), compiled.linear(weights(64, 8192, FloatType.Q80))
    normed = compiled.linear(weights(64, 8192, FloatType.Q40), norm=Norm(gain, 1e-5))
    parts = [quantize(activations(16, 8192), FloatType.Q80)] * 4

    def step(n_tokens: int) -> None:
        narrow(wide(x[:n_tokens]))
        normed(wide(x[:n_tokens]))
        compiled.encode(compiled.add_up([part[:n_tokens] for part in parts], "q80", encoded=True)[1], "q80")
        compiled.rms_norm(wide(x[:n_tokens]), gain, 1e-5)

    for n_tokens in (16, 1, 16):
        step(n_tokens)
    gc.collect()
    tracemalloc.start()
    try:
        for n_tokens in (1, 16, 3, 1):
            step(n_tokens)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 8192, peak  # less than one result


@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("float_type", list(FloatType))
def test_a_product_has_the_sums_of_its_segments_and_is_whole_afterwards(compiled, float_type, n_tokens):
    matrix = weights(33, 512, float_type).cut(slice(None), slice(96, 352))
    product, x = compiled.linear(matrix, segments=4), activations(n_tokens, 256)
    whole = product(x).copy()
    assert np.array_equal(tree_sum([product.segment(x, i, 4).copy() for i in range(4)]), whole)
    assert np.array_equal(product(x), whole)


@pytest.mark.parametrize("n_tokens", [1, 2, 4, 9])
@pytest.mark.parametrize(
    ("float_type", "value"),
    [(kind, value) for kind in QUANTIZED for value in ([np.nan, np.inf, -np.inf] if kind in EVERYWHERE else [np.inf])],
)
def test_a_quantized_product_of_what_is_no_number_is_none_and_leaves_other_tokens_alone(
    compiled, float_type, value, n_tokens
):
    matrix, other = weights(33, 96, float_type), weights(33, 96, float_type, seed=5)
    x = activations(n_tokens, 96) / 16
    norm = Norm(np.ones(96, np.float32), 1e-5)
    products = (
        compiled.linear(matrix),
        compiled.linear(matrix, segments=3),
        compiled.gated(matrix, other),
        compiled.linear(matrix, norm=norm),
    )
    for product in products:
        clean = product(x)
        for column in (0, 31, 40, 95):
            for token in range(n_tokens):
                dirty = x.copy()
                dirty[token, column] = value
                result = product(dirty)
                assert np.isnan(result[token]).all()
                assert np.array_equal(np.delete(result, token, 0), np.delete(clean, token, 0))


@pytest.mark.parametrize("n_tokens", [1, 2, 4, 9])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("float_type", PLAIN)
def test_a_plain_product_of_what_is_no_finite_number_is_none_either(compiled, float_type, value, n_tokens):
    product, x = compiled.linear(weights(33, 96, float_type)), activations(n_tokens, 96)
    clean = product(x)
    for token in range(n_tokens):
        dirty = x.copy()
        dirty[token, 40] = value
        result = product(dirty)
        assert (np.isnan(result[token]) if np.isnan(value) else ~np.isfinite(result[token])).all()
        assert np.array_equal(np.delete(result, token, 0), np.delete(clean, token, 0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_crosses_the_bus_as_none(compiled, value):
    x = activations(3, 96)
    x[1, 40] = value
    clean = dequantize(quantize(activations(3, 96), FloatType.Q80), FloatType.Q80)
    arrived = dequantize(compiled.encode(x, "q80"), FloatType.Q80)
    assert np.isnan(arrived[1, 32:64]).all()
    assert np.array_equal(np.delete(arrived.reshape(9, 32), 4, 0), np.delete(clean.reshape(9, 32), 4, 0))
    for sync in ("f32", "f16"):
        sent = compiled.encode(x, sync)
        wire, total = compiled.add_up([sent, sent], sync, encoded=True)
        for result in (dequantize(sent, SYNC_FLOAT[sync]), total, dequantize(wire, SYNC_FLOAT[sync])):
            assert not np.isfinite(result[1, 40])
            assert np.isfinite(np.delete(result, 96 + 40)).all()
    wire, total = compiled.add_up([compiled.encode(x, "q80")] * 2, "q80", encoded=True)
    assert np.isnan(total[1, 32:64]).all()
    assert np.isfinite(np.delete(total.reshape(9, 32), 4, 0)).all()


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_a_weight_that_is_no_number_reaches_its_own_row_alone(compiled, n_tokens):
    x = activations(n_tokens, 64)
    for float_type in PLAIN:
        values = weights(33, 64, float_type).dequantize()
        clean = compiled.linear(BlockMatrix.from_array(values, float_type))(x)
        values[17, 5] = np.nan
        result = compiled.linear(BlockMatrix.from_array(values, float_type))(x)
        assert np.isnan(result[:, 17]).all()
        assert np.array_equal(np.delete(result, 17, 1), np.delete(clean, 17, 1))


def test_a_norm_of_what_is_no_number_is_none(compiled):
    x = activations(3, 96)
    x[1, 40] = np.nan
    normed = compiled.rms_norm(x, np.ones(96, np.float32), 1e-5)
    assert np.isnan(normed[1]).all()
    assert np.isfinite(normed[[0, 2]]).all()


def test_a_tokens_norm_has_the_same_bits_whatever_is_in_its_batch(compiled):
    x, gain = activations(64, 288), activations(1, 288)[0]
    alone = np.concatenate([compiled.rms_norm(x[t : t + 1], gain, 1e-5) for t in range(64)])
    for n_tokens in (2, 5, 64):
        assert np.array_equal(compiled.rms_norm(x[:n_tokens], gain, 1e-5), alone[:n_tokens])


def test_heads_wider_than_the_kernels_go_are_refused_by_name(compiled):
    compiled.kv_cache(CacheSpec(1, 1, 1, 512, [0], "f32"))
    with pytest.raises(ValueError, match="514"):
        compiled.kv_cache(CacheSpec(1, 1, 1, 514, [0], "f32"))
