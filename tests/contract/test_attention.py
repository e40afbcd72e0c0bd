"""What every back end must make of keys, values and queries. Tolerances: see `back_ends.U`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from contract.back_ends import (
    ATTENTION_ROUNDING,
    AVAILABLE,
    KV_TYPES,
    PUBLISHED_EXP,
    SIX_DIGITS,
    U,
    attend,
    attention_by_hand,
    fill,
    from_page,
    normal,
    step,
    with_threads,
)

from dllama_zmq.kernels import Batch, CacheSpec, Kernels

# The last: a node that begins and ends in the middle of a group.
HEADS = [[0], [0, 1, 2], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 2, 2]]
HALF = 2.0**-11  # rounding to f16 moves a normal number by at most this much of it,
HALF_LEAST = 2.0**-25  # and a smaller one by this


def test_attention_weights_are_the_exact_softmax_and_the_published_one(kernels):
    keys = np.zeros((1, 8, 8), np.float32)
    keys[0, :, 0] = np.arange(8) / 8
    q = np.zeros((1, 1, 8), np.float32)
    q[0, 0, 0] = math.sqrt(8)  # so that the scores, divided by sqrt(8), are the keys
    softmax = attend(kernels, q, keys, np.eye(8, dtype=np.float32)[None], [0])[0]
    published = [0.077399, 0.087780, 0.099500, 0.112761, 0.127778, 0.144793, 0.164072, 0.185917]
    np.testing.assert_allclose(softmax, published, rtol=0, atol=PUBLISHED_EXP)
    powers = [math.exp(i / 8) for i in range(8)]
    np.testing.assert_allclose(softmax, [power / sum(powers) for power in powers], rtol=0, atol=SIX_DIGITS)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_attention_with_scores_in_the_thousands_picks_the_largest(kernels, kv_type):
    keys = np.array([[[5000.0, 0], [9000, 0], [-9000, 0]]], np.float32)
    values = np.array([[[1.0, 2], [3, 4], [5, 6]]], np.float32)
    q = np.ones((1, 1, 2), np.float32)
    assert attend(kernels, q, keys, values, [0], kv_type).tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_that_grow_or_fall_by_thousands_from_chunk_to_chunk_leave_the_largest(kernels, sign, kv_type):
    keys = np.zeros((1, 300, 2), np.float32)
    keys[0, :, 0] = sign * np.arange(300) * 50.0
    values = np.arange(600, dtype=np.float32).reshape(1, 300, 2)
    largest = 299 if sign == 1 else 0
    out = attend(kernels, np.ones((1, 1, 2), np.float32), keys, values, [0], kv_type)
    np.testing.assert_allclose(out, values[:, largest], rtol=0, atol=1e-12)  # the next weight is e^-35


@pytest.mark.parametrize("kv_of_head", HEADS)
@pytest.mark.parametrize(("n_tokens", "n_positions"), [(1, 1), (1, 12), (5, 12), (12, 12)])
def test_attention_is_what_a_loop_over_tokens_and_heads_gives(kernels, kv_of_head, n_tokens, n_positions):
    rng = np.random.default_rng(3)
    q = rng.standard_normal((n_tokens, len(kv_of_head), 16), dtype=np.float32)
    keys, values = rng.standard_normal((2, kv_of_head[-1] + 1, n_positions, 16), dtype=np.float32)
    out = attend(kernels, q, keys, values, kv_of_head).reshape(q.shape)
    expected = attention_by_hand(q, keys, values, kv_of_head)
    np.testing.assert_allclose(out, expected, rtol=0, atol=ATTENTION_ROUNDING)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("head_dim", [16, 48, 64, 80, 128])
@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_attention_far_into_a_sequence_is_that_loop_within_its_rounding(kernels, group, head_dim, kv_type):
    n_tokens, n_positions, n_kv_heads = 3, 700, 2  # eleven chunks, the last in part
    kv_of_head = [kv for kv in range(n_kv_heads) for _ in range(group)]
    q = normal(6, n_tokens, group * n_kv_heads, head_dim)
    keys, values = normal(7, n_kv_heads, n_positions, head_dim), normal(8, n_kv_heads, n_positions, head_dim)
    out = attend(kernels, q, keys, values, kv_of_head, kv_type).reshape(q.shape)
    kept_keys, kept_values = (kept.astype(np.float16 if kv_type == "f16" else np.float32) for kept in (keys, values))
    expected = attention_by_hand(q, kept_keys, kept_values, kv_of_head)
    # Magnitudes of the terms of a score, the largest of all positions; and of a result, weighted.
    by_head = np.abs(keys[kv_of_head]), np.abs(q.transpose(1, 2, 0))
    scores = (by_head[0] @ by_head[1]).max(axis=1).T[..., None].astype(np.float64) / math.sqrt(head_dim)  # (T, H, 1)
    sizes = attention_by_hand(q, kept_keys, np.abs(kept_values), kv_of_head)
    # A score is off by U for each product and the scale, twice more by subtracting the largest (all changes of the
    # largest together are no longer than its way from the lowest); a weight by 4 U for its exp, and 6 for each chunk
    # of 64 positions, where the largest may change; the sums of S by S * U. Twice: above and below the fraction.
    relative = 2 * U * ((head_dim + 6) * scores + 6 * (n_positions / 64 + 1) + 4 + n_positions)
    assert (np.abs(out - expected) <= relative * sizes).all()
    # And the usual case is far better than the worst: roundings go both ways.
    assert np.abs(out - expected).max() <= ATTENTION_ROUNDING
    if kv_type == "f16":
        # Keys move a score by 2^-11 of its terms, so a weight by e to that; values a result by 2^-11 of its terms.
        moved = HALF * scores + HALF_LEAST * np.abs(q).sum(-1, keepdims=True) / math.sqrt(head_dim)
        rounding = 2 * np.expm1(2 * moved) * sizes + HALF * (1 + HALF) * sizes + HALF_LEAST
        error = np.abs(out - attention_by_hand(q, keys, values, kv_of_head))
        assert (error <= rounding + relative * sizes).all()
        assert error.max() > ATTENTION_ROUNDING  # it is f16 that is kept


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("n_positions", [15, 16, 17, 63, 64, 65, 127, 129])
def test_attention_is_that_loop_wherever_a_span_ends(kernels, n_positions, kv_type):
    q = normal(9, n_positions, 4, 16)
    keys, values = normal(10, 2, n_positions, 16), normal(11, 2, n_positions, 16)
    out = attend(kernels, q, keys, values, [0, 0, 1, 1], kv_type).reshape(q.shape)
    kept = (keys.astype(np.float16), values.astype(np.float16)) if kv_type == "f16" else (keys, values)
    expected = attention_by_hand(q, *kept, [0, 0, 1, 1])
    np.testing.assert_allclose(out, expected, rtol=0, atol=ATTENTION_ROUNDING)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_a_prompt_and_then_tokens_one_by_one_attend_as_all_at_once(kernels, kv_type):
    q, k, v = normal(4, 9, 4, 16), normal(12, 9, 2, 16), normal(13, 9, 2, 16)
    kv_of_head = [0, 0, 1, 1]
    cache = kernels.kv_cache(CacheSpec(2, 2, 2, 16, kv_of_head, kv_type))
    pieces = []
    for start, count in [(0, 6), (6, 1), (7, 1), (8, 1)]:
        rows = slice(start, start + count)
        pieces.append(step(cache, 1, from_page(1, start, count), q[rows], k[rows], v[rows]).copy())
        for layer, page in [(0, 1), (1, 0), (0, 0)]:  # another layer and another page keep their own
            step(cache, layer, from_page(page, start, count), q[rows], -k[rows], -v[rows])
    whole = attend(kernels, q, k.transpose(1, 0, 2), v.transpose(1, 0, 2), kv_of_head, kv_type)
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=0, atol=ATTENTION_ROUNDING)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_a_token_attends_with_the_same_bits_whatever_is_in_its_batch(compiled, kv_type):
    n_positions, kv_of_head = 150, [0, 0, 0, 1, 1, 1]
    q, k, v = normal(4, n_positions, 6, 48), normal(12, n_positions, 2, 48), normal(13, n_positions, 2, 48)
    cache = compiled.kv_cache(CacheSpec(1, 3, 2, 48, kv_of_head, kv_type))
    whole = step(cache, 0, Batch.alone(0, n_positions), q, k, v)
    for count in (1, 2, 7, 33):
        pieces = []
        for start in range(0, n_positions, count):
            rows = [of[start : start + count] for of in (q, k, v)]
            pieces.append(step(cache, 0, Batch.alone(start, len(rows[0])), *rows).copy())
        assert np.array_equal(np.concatenate(pieces), whole), count


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_a_head_has_the_same_bits_whichever_heads_its_node_holds(kernels, n_tokens, kv_type):
    kv_of_head = [0, 0, 1, 1, 2, 2, 3, 3]
    q, keys, values = normal(14, n_tokens, 8, 32), normal(15, 4, 100, 32), normal(16, 4, 100, 32)
    whole = attend(kernels, q, keys, values, kv_of_head, kv_type).reshape(n_tokens, 8, 32)
    for n_nodes in (2, 4, 8):  # with eight, two nodes hold the same keys and values
        for node in range(n_nodes):
            heads = range(node * 8 // n_nodes, (node + 1) * 8 // n_nodes)
            own = slice(kv_of_head[heads[0]], kv_of_head[heads[-1]] + 1)
            mine = attend(
                kernels,
                np.ascontiguousarray(q[:, heads[0] : heads[-1] + 1]),
                keys[own],
                values[own],
                [kv_of_head[h] - own.start for h in heads],
                kv_type,
            )
            assert np.array_equal(mine.reshape(n_tokens, len(heads), 32), whole[:, heads[0] : heads[-1] + 1])


@pytest.mark.parametrize("choice", AVAILABLE)
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("n_tokens", [1, 11])
def test_threads_do_not_change_the_bits_of_attention(choice, n_tokens, kv_type):
    kv_of_head = [0, 0, 0, 1, 2, 2, 2, 2]
    q, keys, values = normal(17, n_tokens, 8, 48), normal(18, 3, 200, 48), normal(19, 3, 200, 48)
    results = []
    for threads in (1, 2, 3):
        with with_threads(choice, threads) as kernels:
            results.append(attend(kernels, q, keys, values, kv_of_head, kv_type))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


@pytest.mark.parametrize("later", [100, 1e37])
def test_no_token_attends_to_a_later_one(kernels, later):
    rng = np.random.default_rng(5)
    q = rng.standard_normal((4, 2, 16), dtype=np.float32)
    keys, values = rng.standard_normal((2, 1, 10, 16), dtype=np.float32)
    before = attend(kernels, q, keys, values, [0, 0])
    keys[0, 8:], values[0, 8:] = 100, later
    after = attend(kernels, q, keys, values, [0, 0])
    assert np.array_equal(before[:2], after[:2])
    assert not np.isclose(before[2:], after[2:]).any()


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 6e4])
@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 5), (3, 1), (10, 7), (60, 9), (64, 1)])
def test_what_an_abandoned_sequence_left_at_later_positions_is_never_seen(kernels, start, count, garbage, kv_type):
    n_positions, kv_of_head = 130, [0, 0, 1]
    q, k, v = normal(20, count, 3, 16), normal(21, start + count, 2, 16), normal(22, start + count, 2, 16)
    bits = []
    for left in (None, garbage):
        cache = kernels.kv_cache(CacheSpec(1, 4, 2, 16, kv_of_head, kv_type))
        if left is not None:
            rows = np.full((n_positions, 2, 16), left, np.float32)
            with np.errstate(invalid="ignore", over="ignore"):
                fill(cache, 0, 1, rows, rows, 3)
        fill(cache, 0, 1, k[:start], v[:start], 3)
        bits.append(step(cache, 0, from_page(1, start, count), q, k[start:], v[start:]).copy())
    assert np.isfinite(bits[0]).all()
    assert np.array_equal(*bits)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("count", [1, 9])
def test_keys_values_and_queries_may_be_parts_of_one_wider_array(kernels, count, kv_type):
    """As one product gives them: rows lie apart, values of a row together."""
    wide = normal(23, count, 16 * (6 + 2 + 2))
    q, k, v = (wide[:, a:b].reshape(count, -1, 16) for a, b in ((0, 96), (96, 128), (128, 160)))
    assert np.shares_memory(k, wide)
    results = []
    for one in ((q, k, v), [np.ascontiguousarray(part) for part in (q, k, v)]):
        cache = kernels.kv_cache(CacheSpec(1, 1, 2, 16, [0, 0, 0, 1, 1, 1], kv_type))
        results.append(step(cache, 0, Batch.alone(0, count), *one))
    assert np.array_equal(*results)


def test_rows_of_keys_may_lie_further_apart_than_those_of_values(kernels):
    q, v = normal(24, 3, 1, 16), normal(25, 3, 1, 16)
    k = normal(26, 3, 2, 16)[:, :1]
    results = []
    for keys in (k, np.ascontiguousarray(k)):
        cache = kernels.kv_cache(CacheSpec(1, 1, 1, 16, [0], "f32"))
        results.append(step(cache, 0, Batch.alone(0, 3), q, keys, v))
    assert np.array_equal(*results)


def test_values_too_large_for_f16_are_kept_as_its_largest(kernels):
    q, keys = np.ones((1, 1, 16), np.float32), np.zeros((1, 1, 16), np.float32)
    values = np.linspace(-1e6, 1e6, 16, dtype=np.float32).reshape(1, 1, 16)
    out = attend(kernels, q, keys, values, [0], "f16")
    assert np.array_equal(out[0], np.where(values[0, 0] < 0, np.float32(-65504), np.float32(65504)))


def test_a_query_that_is_not_a_number_gives_none(kernels):
    q, keys, values = normal(27, 2, 2, 16), normal(28, 2, 70, 16), normal(29, 2, 70, 16)
    q[1, 0, 3] = np.nan
    with np.errstate(invalid="ignore"):
        out = attend(kernels, q, keys, values, [0, 1]).reshape(2, 2, 16)
    assert np.isnan(out[1, 0]).all()
    assert np.isfinite(out[0]).all()
    assert np.isfinite(out[1, 1]).all()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0xFFC00000, 0x7FFFFFFF, 0xFFC12345])
@pytest.mark.parametrize("place", ["q", "keys", "values"])
@pytest.mark.parametrize("n_heads", [1, 4])
def test_no_kind_of_nan_becomes_a_number(compiled: Kernels, n_heads, place, bits):
    arrays = {"q": normal(27, 1, n_heads, 16), "keys": normal(28, 1, 70, 16), "values": normal(29, 1, 70, 16)}
    arrays[place].view(np.uint32)[0, 0, :] = bits
    assert np.isnan(attend(compiled, **arrays, kv_of_head=[0] * n_heads)[0, :16]).all()
