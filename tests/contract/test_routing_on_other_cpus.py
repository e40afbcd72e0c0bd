"""Experts are chosen alike on every CPU, after norms that are alike: NumPy and BLAS take this one for an older one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from dllama_zmq.models.alike import norm_alike
from dllama_zmq.models.experts import Router
from dllama_zmq.quants import F32
from dllama_zmq.shapes import shape

T, D, E = 200, 2048, 128
CORES = ["Nehalem", "Sandybridge", "Haswell"]


def numbers() -> tuple[F32, F32, F32]:
    """x, router and gain: pairs of experts that differ by the order of their columns, so that sums of all pairs tie."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((E, D), dtype=np.float32)
    rows[1::2] = rows[::2, ::-1]
    x = rng.standard_normal((T, D), dtype=np.float32) * 50
    x[:, D // 2 :] = x[:, : D // 2][:, ::-1]
    gain = np.ones(D, np.float32)
    return x, rows, gain


def choices() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The router's, and those of a product in float32."""
    x, rows, gain = numbers()
    spec = replace(shape("qwen3-30b-a3b"), n_active_experts=7)
    plain = np.argsort(-(x @ rows.T), axis=1, kind="stable")[:, :7]
    return Router(spec, rows, gain)(x)[0], np.sort(plain, axis=1)


def norms() -> F32:
    """What Grok-1 adds to x, for sums that are no round numbers."""
    x, _, gain = numbers()
    return norm_alike(x * np.float32(1 / 3), gain, 1e-5)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are x86 cores")
@pytest.mark.parametrize("core", CORES)
def test_an_older_core_chooses_the_same_experts(tmp_path, core):
    env = os.environ | {"OPENBLAS_CORETYPE": core, "NPY_DISABLE_CPU_FEATURES": "AVX2,FMA3", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, tmp_path / "chosen.npy"], env=env, check=True, timeout=60)
    assert np.array_equal(np.load(tmp_path / "chosen.npy"), choices()[0])
    assert np.array_equal(np.load(tmp_path / "chosen.npy.norms.npy"), norms())


def test_sums_in_float32_would_not_do():
    exact, plain = choices()
    assert not np.array_equal(exact, plain)


if __name__ == "__main__":
    np.save(sys.argv[1], choices()[0])
    np.save(f"{sys.argv[1]}.norms.npy", norms())
