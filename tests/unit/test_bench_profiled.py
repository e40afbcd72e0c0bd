"""A back end with a clock in it: the same results as without, and seconds and calls by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from dllama_zmq.errors import UsageError
from dllama_zmq.kernels import Batch, CacheSpec, KernelChoice, Kernels, Norm, Rotation, choose_kernels
from dllama_zmq.kernels.profiled import Profiled
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.spec import FloatType, Sync

T, D, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 3, 64, 128, 4, 2, 16
CHOICES = [choice for choice in get_args(KernelChoice) if choice != "auto"]
Arrays = list[npt.NDArray[Any]]


@pytest.fixture(params=CHOICES)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    try:
        return choose_kernels(request.param, 1)
    except UsageError as error:
        pytest.skip(str(error))


def values(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def matrix(rows: int, columns: int, seed: int = 0) -> BlockMatrix:
    return BlockMatrix.from_array(values(rows, columns, seed=seed), FloatType.Q40)


def products(kernels: Kernels) -> Arrays:
    x = values(T, D)
    several = kernels.linear(matrix(64, D), matrix(32, D, 1), matrix(32, D, 2))(x)
    return [
        *several,
        kernels.linear(matrix(D, D), segments=2)(x),
        kernels.gated(matrix(HIDDEN, D), matrix(HIDDEN, D, 1), "gelu", Norm(values(D), 1e-5))(x),
    ]


def experts(kernels: Kernels) -> Arrays:
    each = [(matrix(HIDDEN, D, 3 * e), matrix(HIDDEN, D, 3 * e + 1), matrix(D, HIDDEN, 3 * e + 2)) for e in range(3)]
    chosen = np.array([[0, 2]] * T)
    return [kernels.experts(each, 2, "gelu")(values(T, D), chosen, np.abs(values(T, 2)))]


def attention(kernels: Kernels) -> Arrays:
    cache = kernels.kv_cache(CacheSpec(1, 1, KV_HEADS, HEAD_DIM, [0, 0, 1, 1], "f16", window=2, softcap=1.0))
    batch = Batch.alone(0, T)
    angles = values(T, HEAD_DIM // 2)
    q, k, v = (values(T, n * HEAD_DIM, seed=n) for n in (HEADS, KV_HEADS, KV_HEADS))
    return [cache.attend(0, batch, q, k, v, Rotation(np.cos(angles), np.sin(angles), "half")), q, k]


def rows(kernels: Kernels) -> Arrays:
    return [kernels.rms_norm(values(T, D), values(D), 1e-5)]


def wire(kernels: Kernels) -> Arrays:
    sync: Sync = "q80"
    parts = [kernels.encode(values(T, D, seed=seed), sync) for seed in (0, 1)]
    encoded, total = kernels.add_up(parts, sync, encoded=True)
    assert encoded is not None
    return [*parts, encoded, total]


@pytest.mark.parametrize("use", [products, experts, attention, rows, wire])
def test_results_are_the_same_bits(kernels: Kernels, use: Callable[[Kernels], Arrays]) -> None:
    expected = [array.copy() for array in use(kernels)]
    for found, wanted in zip(use(Profiled(kernels)), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_calls_and_seconds_are_by_kernel_and_products_by_shape(kernels: Kernels) -> None:
    profiled = Profiled(kernels)
    assert profiled.name == kernels.name
    start = time.perf_counter()
    for use in (products, attention, rows, wire):
        use(profiled)
    took_s = time.perf_counter() - start
    assert profiled.calls == {
        "rms_norm": 1,
        "encode": 2,
        "add_up": 1,
        "linear 64+32+32 x 64": 1,
        "linear 64 x 64": 1,
        "gated 128+128 x 64": 1,
        "attend": 1,
    }
    assert profiled.seconds.keys() == profiled.calls.keys()
    assert all(seconds > 0 for seconds in profiled.seconds.values())
    assert sum(profiled.seconds.values()) < took_s


def test_products_of_one_shape_count_together_and_making_them_is_no_call() -> None:
    profiled = Profiled(choose_kernels("numpy", 1))
    first, second = (profiled.linear(matrix(32, D, seed)) for seed in (0, 1))
    assert profiled.calls["linear 32 x 64"] == 0
    x = values(1, D)
    first(x)
    second(x)
    second(x)
    assert profiled.calls["linear 32 x 64"] == 3


def test_reset_counts_from_zero_and_forgets_no_kernel() -> None:
    profiled = Profiled(choose_kernels("numpy", 1))
    product = profiled.linear(matrix(32, D))
    product(values(1, D))
    profiled.reset()
    assert set(profiled.calls.values()) == {0}
    assert set(profiled.seconds.values()) == {0.0}
    product(values(1, D))
    assert profiled.calls["linear 32 x 64"] == 1
