"""Conversions of f16 for CPUs that have no instruction for them: by integers alone, exact."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from cpus import Emit, module_of
from llvmlite import binding, ir

from dllama_zmq.kernels.simd import llvm
from dllama_zmq.kernels.simd.llvm import F16x16, F32x16, load, pointer
from dllama_zmq.kernels.simd.target import Target
from dllama_zmq.quants import F32

F16 = npt.NDArray[np.float16]
SOFT = Target("plain", False, False, 4, 2, None)


@contextmanager
def compiled(n_args: int, emit: Emit) -> Iterator[Callable[..., None]]:
    """A function of addresses, made for SOFT and run here."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    engine = binding.create_mcjit_compiler(module_of(SOFT, n_args, emit), machine)
    engine.finalize_object()
    yield ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * n_args)(engine.get_function_address("made"))
    engine.close()


def widened(halves: F16) -> F32:
    """llvm.to_f32 of halves, 16 at a time."""
    out = np.empty(halves.shape, np.float32)

    def emit(b: ir.IRBuilder, target: Target, args: list[ir.Value]) -> None:
        value = llvm.to_f32(b, target, load(b, args[0], 0, F16x16))
        b.store(value, pointer(b, args[1], 0, F32x16)).align = 1

    with compiled(2, emit) as convert:
        for i in range(0, len(halves), 16):
            convert(halves.ctypes.data + 2 * i, out.ctypes.data + 4 * i)
    return out


def narrowed(values: F32) -> F16:
    """llvm.to_f16 of values, 16 at a time."""
    values = np.concatenate([values, np.zeros(-len(values) % 16, np.float32)])
    out = np.empty(values.shape, np.float16)

    def emit(b: ir.IRBuilder, target: Target, args: list[ir.Value]) -> None:
        value = llvm.to_f16(b, target, load(b, args[0], 0, F32x16))
        b.store(value, pointer(b, args[1], 0, F16x16)).align = 1

    with compiled(2, emit) as convert:
        for i in range(0, len(values), 16):
            convert(values.ctypes.data + 4 * i, out.ctypes.data + 2 * i)
    return out


def every_half() -> F16:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def bits(values: F16 | F32) -> npt.NDArray[np.integer]:
    return values.view(np.uint16 if values.dtype == np.float16 else np.uint32)


def test_every_half_is_widened_exactly_by_integers_alone():
    halves = every_half()
    wide = widened(halves)
    numbers = ~np.isnan(halves)
    assert np.array_equal(bits(wide)[numbers], bits(halves.astype(np.float32))[numbers])
    assert np.isnan(wide[~numbers]).all()


def test_every_half_comes_back_from_float32_by_integers_alone():
    halves = every_half()
    numbers = halves[~np.isnan(halves)]
    assert np.array_equal(bits(narrowed(numbers.astype(np.float32)))[: len(numbers)], bits(numbers))


def test_float32_is_rounded_to_the_nearest_half_and_to_even_between_two_by_integers_alone():
    halves = every_half()
    finite = np.sort(np.abs(halves[np.isfinite(halves)]).astype(np.float64))
    ties = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)  # float32 holds them all
    near = [np.nextafter(ties, np.float32(to)) for to in (0.0, np.inf)]
    edge = np.float32([65519.996, 65520.0, 65536.0, 3.4e38, np.inf, 2.0**-25, 2.0**-26, 1e-45])
    scattered = np.random.default_rng(0).integers(0, 0x7F800000, 1 << 17, np.uint32).view(np.float32)
    positive = np.concatenate([ties, *near, edge, scattered])
    values = np.concatenate([positive, -positive])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    assert np.array_equal(bits(narrowed(values))[: len(values)], bits(expected))


def test_what_is_not_a_number_stays_that_as_a_half_by_integers_alone():
    values = np.uint32([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFC00000]).view(np.float32)
    assert np.isnan(narrowed(values)[: len(values)]).all()
