"""CPUs that are not at hand: their targets, and the code that LLVM makes for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import binding, ir

from dllama_zmq.kernels.simd.layout import BLOCKS, PairBlock
from dllama_zmq.kernels.simd.llvm import I64
from dllama_zmq.kernels.simd.microkernels import FloatMicrokernel, IntegerMicrokernel, LaneType
from dllama_zmq.kernels.simd.target import Target, target_of

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


def integer_microkernel(block: PairBlock, n_tokens: int, n_tiles: int) -> tuple[int, Emit]:
    return 6, lambda b, target, args: IntegerMicrokernel(target, block, n_tokens, n_tiles).emit(b, *args)


def float_microkernel(lanes: LaneType, n_rows: int, n_tiles: int) -> tuple[int, Emit]:
    return 6, lambda b, target, args: FloatMicrokernel(target, lanes, n_rows, n_tiles).emit(b, *args)


MICROKERNELS: dict[str, tuple[Callable[[Any, int, int], tuple[int, Emit]], Any]] = {
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
def assembly(cpu: str, kind: str, n_tokens: int, n_tiles: int = 1) -> list[str]:
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
    module = module_of(target_for(cpu), *microkernel(which, n_tokens, n_tiles))
    module.triple, module.data_layout = triple, str(machine.target_data)
    return [line for line in machine.emit_assembly(module).splitlines() if re.match(r"\t[a-z{]", line)]


def those_with(pattern: str, lines: list[str]) -> list[str]:
    return [line for line in lines if re.search(pattern, line)]
