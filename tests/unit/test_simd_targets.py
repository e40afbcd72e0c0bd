"""Code for CPUs that are not at hand, as LLVM's assembly; and f16 conversions for those that have none of their own."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from llvmlite import binding, ir

from dllama_zmq.kernels.simd import llvm
from dllama_zmq.kernels.simd.layout import BLOCKS, PairBlock
from dllama_zmq.kernels.simd.llvm import I64, F16x16, F32x16, load, pointer
from dllama_zmq.kernels.simd.microkernels import FloatMicrokernel, IntegerMicrokernel, LaneType
from dllama_zmq.kernels.simd.target import Target, target_of
from dllama_zmq.quants import F32

F16 = npt.NDArray[np.float16]
Emit = Callable[[ir.IRBuilder, Target, list[ir.Value]], None]

X86 = ["avx2", "fma", "f16c"]
AVX512 = ["avx512f", "avx512bw", "avx512vl", "avx512vnni"]
CPUS = {
    "avx512": ("x86_64", [*X86, *AVX512]),
    "avxvnni": ("x86_64", [*X86, "avxvnni"]),
    "avx2": ("x86_64", X86),
    "avx": ("x86_64", ["avx"]),
    "sse2": ("x86_64", []),
    "dotprod": ("aarch64", ["neon", "dotprod"]),
    "neon": ("aarch64", ["neon"]),
    "vector": ("riscv64", ["m", "a", "f", "d", "v"]),
    "scalar": ("riscv64", ["m", "a", "f", "d"]),
}
"""A name of this file, an architecture, and what its code may use beyond the least that every such CPU has."""
LEAST = {"x86_64": "x86-64", "aarch64": "generic", "riscv64": "generic-rv64"}
# Whatever leaves for a symbol: in code that calls nothing, one of the compiler's helpers (__extendhfsf2, fmaf, ...).
CALLS = {
    "x86_64": r"\t(callq?|jmpq?)\s+[A-Za-z_*]",
    "aarch64": r"\t(blr?\s|b\s+[A-Za-z_])",
    "riscv64": r"\t(call|tail|jalr?)\s",
}
# What only some CPUs have; to the others it is an illegal instruction.
SPECIAL = r"\t(\{vex\}\s+)?(vpdpbusd|vpmaddubsw|pmaddubsw|[su]dot|usdot)\b"
PAUSE_X86, PAUSE_ARM = ("llvm.x86.sse2.pause", ()), ("llvm.aarch64.hint", (1,))


def integer_microkernel(block: PairBlock, n_tokens: int) -> tuple[int, Emit]:
    return 6, lambda b, target, args: IntegerMicrokernel(target, block, n_tokens, 1).emit(b, *args)


def float_microkernel(lanes: LaneType, n_rows: int) -> tuple[int, Emit]:
    return 6, lambda b, target, args: FloatMicrokernel(target, lanes, n_rows).emit(b, *args)


MICROKERNELS = {
    "q40": (integer_microkernel, BLOCKS["q40"]),
    "q80": (integer_microkernel, BLOCKS["q80"]),
    "q5_k": (integer_microkernel, BLOCKS["q5_k"]),
    "q6_k": (integer_microkernel, BLOCKS["q6_k"]),
    "f16": (float_microkernel, "f16"),
    "f32": (float_microkernel, "f32"),
}


def target_for(cpu: str) -> Target:
    architecture, features = CPUS[cpu]
    return target_of(architecture, dict.fromkeys(features, True))


def groups(cpu: str) -> list[int]:
    """How many tokens a micro-kernel serves: one, four, and the most for this CPU."""
    return sorted({1, 4, target_for(cpu).tokens})


def module_of(target: Target, n_args: int, emit: Emit) -> binding.ModuleRef:
    """One function `made` of `n_args` i64, whose body is `emit(builder, target, args)`."""
    module = ir.Module("made")
    made = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * n_args), "made")
    b = ir.IRBuilder(made.append_basic_block())
    emit(b, target, list(made.args))
    b.ret_void()
    return binding.parse_assembly(str(module))


@cache
def assembly(cpu: str, kind: str, n_tokens: int) -> list[str]:
    """The instructions of a micro-kernel of MICROKERNELS for a CPU of CPUS."""
    architecture, features = CPUS[cpu]
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = f"{architecture}-unknown-linux-gnu"
    machine = binding.Target.from_triple(triple).create_target_machine(
        cpu=LEAST[architecture],
        features=",".join(f"+{name}" for name in features),
        opt=3,
        reloc="pic",
        codemodel="default",
    )
    microkernel, which = MICROKERNELS[kind]
    module = module_of(target_for(cpu), *microkernel(which, n_tokens))
    module.triple, module.data_layout = triple, str(machine.target_data)
    return [line for line in machine.emit_assembly(module).splitlines() if re.match(r"\t[a-z{]", line)]


def those_with(pattern: str, lines: list[str]) -> list[str]:
    return [line for line in lines if re.search(pattern, line)]


@pytest.mark.parametrize("kind", ["q40", "q80"])
@pytest.mark.parametrize(
    ("cpu", "instruction", "register"),
    [
        ("avx512", r"\tvpdpbusd\b", r"%zmm\d+$"),
        ("avxvnni", r"\t\{vex\}\s+vpdpbusd\b", r"%ymm\d+$"),
        ("avx2", r"\tvpmaddubsw\b", r"%ymm\d+$"),
        ("avx2", r"\tvpmaddwd\b", r"%ymm\d+$"),
        ("dotprod", r"\tsdot\b", r"\tv\d+\.4s, v\d+\.16b, v\d+\.16b$"),
        ("neon", r"\t(smull2?|smlal2?|mul|mla)\s", r"\tv\d+\.(8h|4s), "),
        ("sse2", r"\tpmullw\b", r"%xmm\d+$"),
    ],
)
def test_bytes_are_multiplied_by_the_widest_instruction_that_a_cpu_has_for_it(cpu, instruction, register, kind):
    for n_tokens in groups(cpu):
        lines = assembly(cpu, kind, n_tokens)
        # Each token meets 512 bytes or 512 nibbles, at most 64 at a time.
        found = those_with(instruction, lines)
        assert len(found) >= n_tokens * (2 if "wd" in instruction else 8), (n_tokens, lines)
        assert all(re.search(register, line) for line in those_with(instruction, lines)), (n_tokens, found)


@pytest.mark.parametrize("kind", ["q40", "q80"])
@pytest.mark.parametrize("cpu", ["avx2", "avx", "sse2", "neon", "vector", "scalar"])
def test_no_cpu_is_given_a_dot_product_that_it_has_not(cpu, kind):
    allowed = "vpmaddubsw" if cpu == "avx2" else None
    for n_tokens in groups(cpu):
        special = {re.search(SPECIAL, line)[2] for line in those_with(SPECIAL, assembly(cpu, kind, n_tokens))}
        assert special <= {allowed}, n_tokens


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize(
    ("cpu", "instruction"),
    [
        ("avx512", r"\tvfmadd\d+ps\b.*%zmm\d+$"),
        ("avxvnni", r"\tvfmadd\d+ps\b.*%ymm\d+$"),
        ("avx2", r"\tvfmadd\d+ps\b.*%ymm\d+$"),
        ("avx", r"\tvmulps\b.*%ymm\d+$"),
        ("sse2", r"\tmulps\b.*%xmm\d+$"),
        ("dotprod", r"\tfmla\tv\d+\.4s"),
        ("neon", r"\tfmla\tv\d+\.4s"),
        ("vector", r"\tvfmul\.v[vf]\b"),
        ("scalar", r"\tfmul\.s\b"),
    ],
)
def test_floats_are_multiplied_and_added_in_whole_registers_with_one_rounding_where_there_is_that(
    cpu, instruction, kind
):
    for n_rows in groups(cpu):
        lines = assembly(cpu, kind, n_rows)
        assert len(those_with(instruction, lines)) >= n_rows, (n_rows, lines)
        assert target_for(cpu).fma or not those_with(r"\t\w*f?n?m(add|la)\d*(ps|ss|\.s|\.v[vf])?\b", lines), n_rows


@pytest.mark.parametrize(
    ("cpu", "instruction"),
    [
        ("avx512", r"\tvcvtph2ps\b"),
        ("avxvnni", r"\tvcvtph2ps\b"),
        ("avx2", r"\tvcvtph2ps\b"),
        ("neon", r"\tfcvtl\b"),
        ("dotprod", r"\tfcvtl\b"),
    ],
)
@pytest.mark.parametrize("kind", ["q40", "q80", "f16"])
def test_halves_are_converted_by_the_cpu_where_it_can(cpu, instruction, kind):
    assert those_with(instruction, assembly(cpu, kind, 1))


@pytest.mark.parametrize("kind", list(MICROKERNELS))
@pytest.mark.parametrize("cpu", list(CPUS))
def test_code_for_every_cpu_calls_nothing(cpu, kind):
    for n_tokens in groups(cpu):
        lines = assembly(cpu, kind, n_tokens)
        assert lines
        assert not those_with(CALLS[CPUS[cpu][0]], lines), n_tokens


@pytest.mark.parametrize(
    ("architecture", "features", "target"),
    [
        ("x86_64", [*X86, *AVX512], Target("vnni512", True, True, 8, 8, PAUSE_X86)),
        ("x86_64", [*X86, *AVX512, "avxvnni"], Target("vnni512", True, True, 8, 8, PAUSE_X86)),
        ("x86_64", [*X86, *AVX512, "amx-int8"], Target("vnni512", True, True, 8, 8, PAUSE_X86, amx=True)),
        ("x86_64", [*X86, "amx-int8"], Target("avx2", True, True, 4, 2, PAUSE_X86)),
        # Skylake-X has AVX-512 without VNNI: its 512-bit multiplies are not worth a form of their own.
        ("x86_64", [*X86, "avx512f", "avx512bw", "avx512vl"], Target("avx2", True, True, 4, 2, PAUSE_X86)),
        ("x86_64", [*X86, "avxvnni"], Target("vnni256", True, True, 4, 2, PAUSE_X86)),
        ("x86_64", X86, Target("avx2", True, True, 4, 2, PAUSE_X86)),
        ("x86_64", ["avx", "fma", "f16c"], Target("plain", True, True, 4, 2, PAUSE_X86)),
        ("x86_64", ["avx2", "fma"], Target("plain", True, False, 4, 2, PAUSE_X86)),
        ("x86_64", ["avx", "f16c"], Target("plain", False, True, 4, 2, PAUSE_X86)),
        ("x86_64", ["avx512vnni", "avxvnni"], Target("plain", False, False, 4, 2, PAUSE_X86)),
        ("x86_64", [], Target("plain", False, False, 4, 2, PAUSE_X86)),
        ("i686", [], Target("plain", False, False, 4, 2, PAUSE_X86)),
        ("aarch64", ["neon", "dotprod"], Target("sdot", True, True, 4, 2, PAUSE_ARM)),
        ("arm64", ["dotprod"], Target("sdot", True, True, 4, 2, PAUSE_ARM)),
        ("aarch64", ["neon"], Target("plain", True, True, 4, 2, PAUSE_ARM)),
        ("riscv64", ["v"], Target("plain", False, False, 4, 2, None)),
        ("powerpc64le", [], Target("plain", False, False, 4, 2, None)),
    ],
)
def test_a_target_is_what_its_features_say(architecture, features, target):
    assert target_of(architecture, dict.fromkeys(features, True)) == target


WITHOUT_PERMISSION = """
import ctypes
from dllama_zmq.kernels.simd.host import host_cpu
libc = ctypes.CDLL(None)
class Stack(ctypes.Structure):  # stack_t of sigaltstack(2)
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("n_bytes", ctypes.c_size_t)]
too_small_for_amx = 4096
room = ctypes.create_string_buffer(too_small_for_amx)
assert libc.sigaltstack(ctypes.byref(Stack(ctypes.addressof(room), 0, too_small_for_amx)), None) == 0
assert "-amx-int8" in host_cpu()[2], host_cpu()
import numpy as np
from dllama_zmq.kernels import choose_kernels
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType
matrix = BlockMatrix.from_array(np.ones((32, 32), np.float32), FloatType.Q80)
assert choose_kernels("simd", 1).linear(matrix)(np.ones((32, 32), np.float32)).shape == (32, 32)
"""


def test_where_linux_does_not_allow_amx_products_do_without():
    if "+amx-int8" not in binding.get_host_cpu_features().flatten():
        pytest.skip("this CPU has no AMX")
    done = subprocess.run([sys.executable, "-c", WITHOUT_PERMISSION], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("absent", [*X86, *AVX512])
def test_one_feature_too_few_is_a_lesser_target(absent):
    features = dict.fromkeys([*X86, *AVX512], True)
    del features[absent]
    assert target_of("x86_64", features).dot == ("plain" if absent in X86 else "avx2")


def test_a_feature_that_is_named_as_missing_is_missing():
    assert target_of("x86_64", dict.fromkeys(X86, True) | {"fma": False}).dot == "plain"


# --- f16 without hardware ---------------------------------------------------------------------------------------------

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


def product_of_both_tiles(target, n_tokens):
    """Its LLVM code, for weights in Q40."""
    kernel = IntegerMicrokernel(target, BLOCKS["q40"], n_tokens, 2)
    return str(module_of(target, 6, lambda b, target, args: kernel.emit(b, *args)))


@pytest.mark.parametrize(
    ("name", "features", "n_bytes"),
    [
        ("sapphirerapids", AVX512, 4096),
        ("graniterapids", AVX512, 8192),
        ("znver5", AVX512, 6144),
        ("znver4", AVX512, 0),
        ("x86-64-v4", AVX512, 0),
        ("znver3", [], 2048),
        ("skylake", [], 0),
    ],
)
def test_a_product_of_one_token_asks_for_memory_ahead_on_cpus_that_read_faster_so(name, features, n_bytes):
    target = target_of("x86_64", dict.fromkeys([*X86, *features], True), name)
    assert target.ahead == n_bytes
    module = product_of_both_tiles(target, 1)
    assert module.count("call void @llvm.prefetch") == (BLOCKS["q40"].nbytes // 64 if n_bytes else 0)


@pytest.mark.parametrize(
    ("name", "features", "same"),
    [
        ("rocketlake", ["amx-tile"], "sapphirerapids"),
        ("rocketlake", ["amx-tile", "prefetchi"], "graniterapids"),
        ("sapphirerapids", ["amx-tile"], "sapphirerapids"),
        ("rocketlake", ["prefetchi"], "rocketlake"),
    ],
)
def test_a_cpu_under_the_name_of_an_older_one_is_known_by_its_instructions(name, features, same):
    having = dict.fromkeys([*X86, *AVX512, *features], True)
    assert target_of("x86_64", having, name) == target_of("x86_64", dict.fromkeys([*X86, *AVX512], True), same)


@pytest.mark.parametrize(
    ("name", "features", "bytes_of_a_load", "n_loads"),
    [("graniterapids", AVX512, 64, 8), ("znver5", AVX512, 64, 8), ("znver3", [], 32, 9)],
)
def test_on_some_cpus_a_line_is_asked_for_before_each_load_of_weights_and_not_all_at_once(
    name, features, bytes_of_a_load, n_loads
):
    target = target_of("x86_64", dict.fromkeys([*X86, *features], True), name)
    module = product_of_both_tiles(target, 1)
    order = re.findall(rf"call void @llvm.prefetch|load <{bytes_of_a_load} x i8>", module)
    assert order[: 2 * n_loads] == ["call void @llvm.prefetch", f"load <{bytes_of_a_load} x i8>"] * n_loads


def test_a_product_of_8_tokens_asks_for_memory_ahead_on_every_cpu():
    module = product_of_both_tiles(target_for("avx512"), 8)
    assert module.count("call void @llvm.prefetch") == BLOCKS["q40"].nbytes // 64
