"""Attention within a window, with a softcap, and of rotated queries and keys, by every back end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from contract.back_ends import (
    ATTENTION_ROUNDING,
    AVAILABLE,
    KV_TYPES,
    U,
    attention_by_hand,
    from_page,
    normal,
    step,
    with_threads,
)
from msgspec.structs import replace

from dllama_zmq.kernels import Batch, CacheSpec, Kernels, KVType, Rotation, pages_for
from dllama_zmq.quants import F32


def windowed(
    kernels: Kernels,
    q: F32,
    k: F32,
    v: F32,
    window: int | None,
    softcap: float | None,
    kv_type: KVType,
    steps: list[int],
) -> F32:
    """Queries, keys and values (T, H or K, 16), whose heads pair up, as steps of so many tokens."""
    kv_of_head = [h * k.shape[1] // q.shape[1] for h in range(q.shape[1])]
    spec = CacheSpec(1, pages_for(len(q)), k.shape[1], q.shape[2], kv_of_head, kv_type, window, softcap)
    cache = kernels.kv_cache(spec)
    out, start = [], 0
    for count in steps:
        rows = slice(start, start + count)
        out.append(step(cache, 0, Batch.alone(start, count), q[rows], k[rows], v[rows]).copy())
        start += count
    return np.concatenate(out)


@pytest.mark.parametrize("steps", [[150], [1] * 150, [64, 3, 60, *[1] * 23]], ids=["whole", "each", "some"])
@pytest.mark.parametrize("window", [1, 2, 16, 17, 63, 64, 65, 100, 149, 150, 1000])
def test_a_token_sees_the_positions_of_its_window_alone(kernels, window, steps):
    q, k, v = normal(30, 150, 4, 16), normal(31, 150, 2, 16), normal(32, 150, 2, 16)
    found = windowed(kernels, q, k, v, window, None, "f32", steps).reshape(q.shape)
    for t in range(150):
        seen = slice(max(0, t - window + 1), t + 1)
        keys, values = (np.ascontiguousarray(of[seen].transpose(1, 0, 2)) for of in (k, v))
        wanted = attention_by_hand(q[t : t + 1], keys, values, [0, 0, 1, 1])
        np.testing.assert_allclose(found[t : t + 1], wanted, rtol=0, atol=ATTENTION_ROUNDING)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("window", [1, 20, 64, 65])
def test_bits_within_a_window_depend_on_neither_the_batch_nor_the_heads_beside(compiled, window, kv_type):
    q, k, v = normal(33, 150, 4, 16), normal(34, 150, 2, 16), normal(35, 150, 2, 16)
    whole = windowed(compiled, q, k, v, window, None, kv_type, [150])
    assert np.array_equal(windowed(compiled, q, k, v, window, None, kv_type, [1] * 150), whole)
    assert np.array_equal(windowed(compiled, q, k, v, window, None, kv_type, [70, 70, 10]), whole)
    first = windowed(
        compiled, np.ascontiguousarray(q[:, :1]), k[:, :1].copy(), v[:, :1].copy(), window, None, kv_type, [150]
    )
    assert np.array_equal(first, whole[:, :16])


@pytest.mark.parametrize("scale", [0.1, 1, 20])
def test_scores_are_kept_within_the_softcap(kernels, scale):
    q, k, v = scale * normal(36, 90, 4, 16), scale * normal(37, 90, 2, 16), normal(38, 90, 2, 16)
    found = windowed(kernels, q, k, v, None, 30.0, "f32", [80, 10]).reshape(q.shape)
    for t in range(90):
        for head in range(4):
            scores = k[: t + 1, head // 2].astype(np.float64) @ q[t, head] / 4
            weight = np.exp(30 * np.tanh(scores / 30))
            wanted = weight @ v[: t + 1, head // 2] / weight.sum()
            # 30 * tanh is off by some 8 U of 30, and a weight by that much of itself.
            np.testing.assert_allclose(found[t, head], wanted, rtol=0, atol=ATTENTION_ROUNDING + 8 * 30 * U * 4)


def test_layers_that_see_all_positions_stand_between_layers_with_a_window(kernels):
    q, k, v = normal(43, 90, 4 * 16), normal(44, 90, 2 * 16), normal(45, 90, 2 * 16)
    spec = CacheSpec(3, 2, 2, 16, [0, 0, 1, 1], "f32", window=20)
    mixed, windowed_alone, whole = (
        kernels.kv_cache(each) for each in (replace(spec, full_layers=[1]), spec, replace(spec, window=None))
    )
    for layer, expected in enumerate([windowed_alone, whole, windowed_alone]):
        for start, count in [(0, 80), (80, 10)]:
            rows, batch = slice(start, start + count), Batch.alone(start, count)
            found, wanted = (
                step(cache, layer, batch, *(x[rows].copy().reshape(count, -1, 16) for x in (q, k, v)))
                for cache in (mixed, expected)
            )
            assert np.array_equal(found, wanted)


def test_scores_are_scaled_as_the_cache_says(kernels):
    q, k, v = normal(46, 70, 4, 16), normal(47, 70, 2, 16), normal(48, 70, 2, 16)
    spec = CacheSpec(1, 2, 2, 16, [0, 0, 1, 1], "f32")
    given, plain = kernels.kv_cache(replace(spec, scale=0.125)), kernels.kv_cache(spec)
    found = step(given, 0, Batch.alone(0, 70), q.copy(), k.copy(), v.copy())
    assert np.array_equal(found, step(plain, 0, Batch.alone(0, 70), q / 2, k.copy(), v.copy()))


def rotated(x: F32, rotation: Rotation) -> F32:
    """x (T, H, Hd) turned pair by pair, in float32: a product is rounded, and so is the sum of two."""
    half = x.shape[2] // 2
    pairs = [(2 * i, 2 * i + 1) if rotation.layout == "interleaved" else (i, i + half) for i in range(half)]
    out = np.empty_like(x)
    for i, (first, second) in enumerate(pairs):
        c, s = rotation.cos[:, i, None], rotation.sin[:, i, None]
        out[:, :, first] = x[:, :, first] * c - x[:, :, second] * s
        out[:, :, second] = x[:, :, first] * s + x[:, :, second] * c
    return out


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("head_dim", [2, 6, 16, 30, 32, 48, 64, 80, 128])
@pytest.mark.parametrize("kv_of_head", [[0], [0, 0, 0, 1, 1], [0] * 11, [0, 1, 2, 2]])
@pytest.mark.parametrize("choice", AVAILABLE)
def test_queries_and_keys_are_rotated_in_place_before_keys_are_stored(choice, kv_of_head, head_dim, layout, kv_type):
    n_heads, n_kv_heads = len(kv_of_head), kv_of_head[-1] + 1
    width = n_heads + 2 * n_kv_heads
    for threads in (1, 3):
        with with_threads(choice, threads) as kernels:
            cache, plain = (
                kernels.kv_cache(CacheSpec(1, 1, n_kv_heads, head_dim, kv_of_head, kv_type)) for _ in range(2)
            )
            for start, count in [(0, 20), (20, 1), (21, 2), (23, 9), (32, 1)]:
                angles = np.random.default_rng(start).uniform(-3, 3, (count, head_dim // 2)).astype(np.float32)
                rotation = Rotation(np.cos(angles), np.sin(angles), layout)
                wide = normal(start, count, (width + 2) * head_dim)  # as one product gives them, and more around
                before = wide.copy()
                q, k, v = np.split(wide.reshape(count, -1, head_dim)[:, 1:-1], [n_heads, n_heads + n_kv_heads], axis=1)
                turned = rotated(q, rotation), rotated(k, rotation), v.copy()
                found = step(cache, 0, Batch.alone(start, count), q, k, v, rotation)
                assert np.array_equal(np.concatenate([q, k, v], axis=1), np.concatenate(turned, axis=1))
                outside = np.r_[:head_dim, -head_dim:0]
                assert np.array_equal(wide[:, outside], before[:, outside])
                assert np.array_equal(found, step(plain, 0, Batch.alone(start, count), *turned))


def test_each_call_is_of_its_own_batch_and_angles(kernels):
    """Whatever a back end keeps of the call before."""
    cache, plain = (kernels.kv_cache(CacheSpec(2, 2, 1, 16, [0, 0], "f32")) for _ in range(2))
    angles = normal(4, 2, 8)
    turns = Rotation(np.cos(angles), np.sin(angles), "half"), Rotation(angles, angles, "interleaved")
    batches = Batch.alone(0, 2), from_page(1, 0, 2), Batch.alone(2, 2)
    for i, (layer, batch, rotation) in enumerate(itertools.product([0, 1], batches, [*turns, None])):
        q, k, v = normal(i, 2, 2, 16), normal(i + 50, 2, 1, 16), normal(i + 100, 2, 1, 16)
        turned = (q.copy(), k.copy()) if rotation is None else (rotated(q, rotation), rotated(k, rotation))
        wanted = step(plain, layer, Batch(batch.spans), *turned, v).copy()
        assert np.array_equal(step(cache, layer, batch, q, k, v, rotation), wanted)
