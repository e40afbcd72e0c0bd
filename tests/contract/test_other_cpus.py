"""The fast kernels made for lesser CPUs than this one, each in a process of its own: they must compute the same.

A process learns from numba's own variables which CPU to make code for, and its results come back as arrays. CPUs whose
code this one cannot run are skipped.
"""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from numpy.random import SFC64, Generator

from dllama_zmq.formats.random_model import random_blocks
from dllama_zmq.kernels import Batch, CacheSpec, Kernels, KVType, Reference, Rotation, Span, choose_kernels
from dllama_zmq.kernels.needs import Needs
from dllama_zmq.kernels.simd.catalog import GROUPS, NAMES, needed
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.spec import FloatType, Sync

Array = npt.NDArray[Any]

ONE_OF_EACH = [FloatType.Q40, FloatType.Q51, FloatType.Q80, FloatType.Q4_K, FloatType.Q6_K, FloatType.F16]
"""4, 5, 6 and 8 bits; a bias, offsets of f16, factors of 8 blocks, two scales; halves, which some CPUs cannot convert.
Other types are made of these parts."""
ONE_OF_EACH_MIXTURE = [FloatType.Q40, FloatType.Q6_K]
WITHOUT_OFFSETS = [FloatType.Q40, FloatType.Q50, FloatType.Q80, FloatType.Q6_K]
"""The reference adds up the parts of the others in another order."""
WIRE = [f"{what} {sync}" for sync in ("f32", "f16", "q80") for what in ("encoded", "sum", "sum as wire", "wire")]
ROUNDING = 1e-5
"""Of an array's largest value: some 768 roundings of float32 in another order. One wrong byte is 1e-4 or more."""

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="which CPUs are lesser ones is known for x86-64 alone"
)


@dataclass(frozen=True)
class Cpu:
    """LLVM's name of a CPU, what its code may use, and the target that makes of it."""

    name: str
    features: tuple[str, ...]
    dot: str
    fma: bool
    half: bool


V3 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
LESSER = {
    "avxvnni": Cpu("x86-64-v3", (*V3, "avxvnni"), "vnni256", True, True),
    "avx2": Cpu("x86-64-v3", V3, "avx2", True, True),
    "fma without avx2": Cpu("x86-64-v2", ("avx", "f16c", "fma"), "plain", True, True),
    "sse2": Cpu("generic", (), "plain", False, False),
}


def random_matrix(rng: Generator, rows: int, columns: int, kind: FloatType) -> BlockMatrix:
    """Values of RMS 1. Where the columns are not whole blocks, the matrix begins and ends within one."""
    whole = kind.whole_blocks(slice(0, columns)).stop
    first = (whole - columns) // 64 * 32
    data = random_blocks(rng, kind, rows, whole, 1.0)
    return BlockMatrix(data, kind).cut(slice(None), slice(first, first + columns))


def results(kernels: Kernels, whole: bool) -> Iterator[tuple[str, Array]]:
    """What a back end computes of seeded numbers, by name: the whole interface, with odd numbers of rows and tokens.

    whole: with all types of weights and of caches. What has a name is the same array in any case.
    """
    rng = Generator(SFC64(11))

    def normal(*shape: int) -> F32:
        return rng.standard_normal(shape, dtype=np.float32)

    # Blocks of very different magnitude, one of zeros, and the far ends of a byte.
    x = np.ldexp(normal(15, 768), np.repeat(rng.integers(-10, 10, (15, 24)), 32, axis=1))
    x[:, 32:64] = 0
    x[13], x[14] = 127, -127
    for kind in FloatType:
        matrix, other = random_matrix(rng, 83, 768, kind), random_matrix(rng, 83, 768, kind)
        if kind.is_quantized:  # the least and the largest integers throughout, beside the f16 scales
            integers = slice(0, 208) if kind is FloatType.Q6_K else slice(2 if kind in WITHOUT_OFFSETS else 4, None)
            blocks = matrix.data.reshape(83, -1, kind.block_bytes)
            blocks[:7, :, integers], blocks[7:14, :, integers] = (128, 127) if kind is FloatType.Q80 else (0, 255)
        each = [tuple(random_matrix(rng, *of, kind) for of in ((96, 64), (96, 64), (50, 96))) for _ in "abc"]
        rows = [normal(n_tokens, 64) for n_tokens in (1, 2)]  # by themselves, and grouped
        if not whole and kind not in ONE_OF_EACH:
            continue
        for n_tokens in (1, 2, 15):
            yield f"{kind.name.lower()} {n_tokens}", kernels.linear(matrix, segments=3)(x[:n_tokens])
        first, second = kernels.linear(matrix, other)(x)
        yield f"{kind.name.lower()} of two", np.concatenate([first, second], axis=1)
        yield f"gated {kind.name.lower()}", kernels.gated(matrix, other)(x / np.float32(1000))
        yield f"gelu {kind.name.lower()}", kernels.gated(matrix, other, "gelu")(x / np.float32(1000))
        if not whole and kind not in ONE_OF_EACH_MIXTURE:
            continue
        chosen, mix = np.array([[0, 1], [1, 2]]), np.array([[0.3, 0.7], [0.5, 0.5]], np.float32)
        for tokens in rows:
            n_tokens = len(tokens)
            yield (
                f"experts {kind.name.lower()} {n_tokens}",
                kernels.experts(each, 3)(tokens, chosen[:n_tokens], mix[:n_tokens]),
            )
    yield "norm", kernels.rms_norm(x[:, :723].copy(), normal(723), 1e-5)
    layouts: list[Literal["interleaved", "half"]] = ["interleaved", "half"]
    for layout in layouts:
        for head_dim in (24, 80):
            angles = rng.uniform(-3, 3, (15, head_dim // 2)).astype(np.float32)
            rotation = Rotation(np.cos(angles), np.sin(angles), layout)
            q, k, v = normal(15, 3 * head_dim), normal(15, head_dim), normal(15, head_dim)
            cache = kernels.kv_cache(CacheSpec(1, 1, 1, head_dim, [0, 0, 0], "f16"))
            yield f"attention {layout} {head_dim}", cache.attend(0, Batch.alone(0, 15), q, k, v, rotation)
            yield f"rotated {layout} {head_dim}", np.concatenate([q, k], axis=1)
    cache = kernels.kv_cache(CacheSpec(1, 4, 2, 24, [0, 0, 0, 1, 1], "f16", window=20, softcap=30.0))
    q, k, v = normal(90, 5 * 24), normal(90, 2 * 24), normal(90, 2 * 24)
    yield "attention within a window", cache.attend(0, Batch.alone(0, 90), q, k, v)
    # As Gemma's: wide heads that share one of keys, a layer with a window before one without.
    wide = CacheSpec(2, 4, 1, 256, [0, 0, 0, 0], "f16", window=20, softcap=5.0, full_layers=(1,), scale=1 / 13)
    cache = kernels.kv_cache(wide)
    q, k, v = normal(70, 4 * 256), normal(70, 256), normal(70, 256)
    for layer in range(2):
        yield f"attention of wide heads in layer {layer}", cache.attend(layer, Batch.alone(0, 70), q, k, v)
    syncs: list[Sync] = ["f32", "f16", "q80"]
    for sync in syncs:
        parts = [kernels.encode(np.ldexp(normal(3, 96), i - 3), sync) for i in range(7)]
        yield f"encoded {sync}", np.concatenate(parts)
        yield f"sum {sync}", kernels.add_up(parts, sync, encoded=False)[1]
        wire, arrived = kernels.add_up(parts, sync, encoded=True)
        assert wire is not None
        yield f"wire {sync}", wire
        yield f"sum as wire {sync}", arrived
    kv_types: list[KVType] = ["f16", "f32"] if whole else ["f16"]
    for kv_type in kv_types:
        cache = kernels.kv_cache(CacheSpec(1, 6, 2, 24, [0, 0, 0, 1, 1], kv_type))
        alone = [[Span(start, count, [3, 1])] for start, count in ((0, 70), (70, 1), (71, 9))]
        for spans in (*alone, [Span(0, 1, [4]), Span(80, 1, [3, 1]), Span(0, 66, [2, 5])]):
            batch = Batch(spans)
            q, k, v = (normal(batch.n_rows, n * 24) for n in (5, 2, 2))
            yield f"attention {kv_type} {spans}", cache.attend(0, batch, q, k, v)


def collected(kernels: Kernels, whole: bool = True) -> dict[str, Array]:
    if kernels.name == "simd":
        from dllama_zmq.kernels.simd.library import library

        few = needed(Needs(frozenset(ONE_OF_EACH), frozenset(ONE_OF_EACH_MIXTURE)))
        # All at once: the processes that compile would be started anew for each of 20 groups.
        library().load(NAMES if whole else [*few, *GROUPS["sums"]])
    return {name: array.copy() for name, array in results(kernels, whole)}


def missing(cpu: Cpu) -> list[str]:
    from llvmlite import binding

    here = binding.get_host_cpu_features()
    return [name for name in cpu.features if not here.get(name, False)]


@pytest.fixture(scope="module")
def reference() -> dict[str, Array]:
    return collected(Reference())


@pytest.fixture(scope="module")
def native() -> dict[str, Array]:
    """By the kernels made for this very CPU."""
    return collected(choose_kernels("simd", threads=1))


# Kernels are compiled for each at first, which takes 12 s of a core: for the two that differ most, one of each kind of
# type. To compile all of them takes 23 s: of every CPU, for a release.
@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((name, False), id=name) for name in ("avx2", "sse2")),
        *(pytest.param((name, True), id=f"{name}, all types", marks=pytest.mark.release) for name in LESSER),
    ],
)
def lesser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cpu, dict[str, Array]]:
    """A CPU of LESSER, and the results of the kernels made for it."""
    name, whole = request.param
    cpu = LESSER[name]
    if missing(cpu):
        pytest.skip(f"this CPU has no {', '.join(missing(cpu))}")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"lesser {name} {whole}"
    folder.mkdir(exist_ok=True)
    env = os.environ | {
        "NUMBA_CPU_NAME": cpu.name,
        "NUMBA_CPU_FEATURES": ",".join(f"+{name}" for name in cpu.features),
        # Kept from run to run as this CPU's kernels are, apart from those, for which others would wait meanwhile.
        "XDG_CACHE_HOME": str(Path.home() / ".cache" / "dllama-zmq" / f"lesser {name}"),
    }
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the test processes share one computation
        if not (folder / "results.npz").exists():
            command = [sys.executable, __file__, folder / "results.npz", *(["whole"] if whole else [])]
            subprocess.run(command, env=env, check=True, timeout=280)
    with np.load(folder / "results.npz") as file:
        found = dict(file)
    assert found.pop("target").tolist() == [cpu.dot, str(cpu.fma), str(cpu.half)]
    assert list(found) == [name for name, _ in results(Reference(), whole)]
    return cpu, found


def agrees(result: Array, expected: Array) -> bool:
    return bool((np.abs(result - expected) <= ROUNDING * np.abs(expected).max()).all())


def test_kernels_for_this_cpu_and_for_a_lesser_one_compute_what_the_reference_does(native, lesser, reference):
    _, found = lesser
    assert list(native) == list(reference)
    for results in (native, found):
        arithmetic = [name for name in results if name not in WIRE]
        assert [name for name in arithmetic if not agrees(results[name], reference[name])] == []


def test_what_crosses_the_bus_has_the_same_bytes_from_every_cpu_and_from_the_reference(native, lesser, reference):
    _, found = lesser
    for results in (native, found):
        assert [name for name in WIRE if results[name].tobytes() != reference[name].tobytes()] == []


def test_cpus_that_multiply_and_add_alike_compute_the_same_bits(native, lesser):
    from dllama_zmq.kernels.simd.host import host_target

    cpu, found = lesser
    if cpu.fma != host_target().fma:
        pytest.skip("one of the two rounds products before it adds them")
    assert [name for name in found if native[name].tobytes() != found[name].tobytes()] == []


def test_without_fused_multiply_adds_a_quantized_product_has_the_bits_of_the_reference(lesser, reference):
    cpu, found = lesser
    if cpu.fma:
        pytest.skip("this one adds products that it has not rounded")
    kinds = [kind.name.lower() for kind in WITHOUT_OFFSETS]
    names = [name for name in found if name.split()[0] in kinds]
    assert len(names) >= 4 * len({*WITHOUT_OFFSETS} & {*ONE_OF_EACH})
    assert [name for name in names if found[name].tobytes() != reference[name].tobytes()] == []


if __name__ == "__main__":
    from dllama_zmq.kernels.simd.host import host_target

    target = host_target()
    words = np.array([target.dot, target.fma, target.half])
    np.savez(Path(sys.argv[1]), target=words, **collected(choose_kernels("simd", threads=1), "whole" in sys.argv[2:]))
