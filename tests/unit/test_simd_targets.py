"""Code for CPUs that are not at hand, as LLVM's assembly."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from cpus import (
    AVX512,
    CALLS,
    CPUS,
    MICROKERNELS,
    PAUSE_ARM,
    PAUSE_X86,
    SPECIAL,
    X86,
    assembly,
    groups,
    module_of,
    target_for,
    those_with,
)
from llvmlite import binding

from dllama_zmq.kernels.simd.layout import BLOCKS
from dllama_zmq.kernels.simd.microkernels import IntegerMicrokernel
from dllama_zmq.kernels.simd.target import Target, target_of


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


DOT_PRODUCTS = {"avx512": "vpdpbusd", "avxvnni": "vpdpbusd", "avx2": "vpmaddubsw", "dotprod": "sdot"}


@pytest.mark.parametrize("kind", list(MICROKERNELS))
@pytest.mark.parametrize("cpu", list(CPUS))
def test_code_for_every_cpu_calls_nothing_and_has_no_dot_product_that_the_cpu_has_not(cpu, kind):
    for n_tokens in groups(cpu):  # both of one assembly, which takes a second to make where there are few registers
        lines = assembly(cpu, kind, n_tokens)
        assert lines
        assert not those_with(CALLS[CPUS[cpu][0]], lines), n_tokens
        special = {re.search(SPECIAL, line)[2] for line in those_with(SPECIAL, lines)}
        assert special <= {DOT_PRODUCTS.get(cpu)}, n_tokens


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
        ("aarch64", ["neon"], Target("neon", True, True, 4, 2, PAUSE_ARM)),
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


@pytest.mark.parametrize("n_tokens", [1, 2, 4])
@pytest.mark.parametrize("kind", ["q40", "q5_k", "q6_k", "q80"])
def test_weights_are_loaded_in_the_order_of_memory_where_the_cpu_reads_ahead_by_itself(kind, n_tokens):
    loads = re.findall(r"vmovup.\t(\d*)\(%r\w+,%r\w+\), %zmm", "\n".join(assembly("avx512", kind, n_tokens, 2)))
    of_weights = [int(offset or 0) for offset in loads]
    assert len(of_weights) == len(set(of_weights)) == 2 * BLOCKS[kind].bits
    assert of_weights == sorted(of_weights)


@pytest.mark.parametrize("n_tokens", [1, 8])
def test_the_factors_of_a_group_are_converted_once_for_its_blocks(n_tokens):
    code = "\n".join(assembly("avx512", "q5_k", n_tokens, 2))
    assert code.count("vcvtph2ps") == 4
    assert "vcvtph2ps" not in code[code.index("vpdpbusd") : code.rindex("vpdpbusd")]


@pytest.mark.parametrize("kind", ["q40", "q80"])
def test_unpacked_weights_stay_in_registers_for_four_tokens(kind):
    """A block's 16 vectors of unpacked weights meet 4 tokens each: on the stack they would be read 64 times."""
    assert len(those_with(r"\(%rsp\)", assembly("avx2", kind, 4))) < 32
