"""The CPU that code is made for: what the kernels use of it. All other source is the same for every CPU.

`dot` names how four adjacent products of bytes are summed, which plain LLVM vector code does not do well:

    vnni512, vnni256   vpdpbusd (AVX-512 VNNI, AVX-VNNI): u8 x i8, four products into an i32 lane
    avx2               vpmaddubsw and vpmaddwd: u8 x i8, pairs into i16, pairs of those into i32
    sdot               Arm's dot product (ARMv8.2): i8 x i8, four products into an i32 lane
    neon               smlal (ARMv8.0, such as a Raspberry Pi 4): i8 x i8, products into i16, four of those into i32
    plain              LLVM's vector multiplies and adds (SSE, RISC-V, POWER, ...)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Dot = Literal["vnni512", "vnni256", "avx2", "sdot", "neon", "plain"]

_X86_LEAST = ("avx2", "fma", "f16c")
_X86_VNNI512 = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")

_AHEAD = {"sapphirerapids": 4096, "emeraldrapids": 4096, "graniterapids": 8192, "znver3": 2048, "znver5": 6144}
"""Bytes that a product of few tokens prefetches ahead, by LLVM's name of a CPU: what was measured to read fastest
(tools/BENCHMARKS.md; the second has the cores of the first). Zen 4 reads fastest without: see `load_in_order`."""
_SPREAD = {"graniterapids", "znver3", "znver5"}
"""CPUs that were measured to read faster if each line is prefetched by itself, between two loads."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the kernels need to know of a CPU.

    fma: it has fused multiply-adds. half: it has conversions of f16.
    tokens: the most tokens that one pass over a tile serves: as many accumulators as fit into its vector registers.
    paired: the most tokens with which a pass goes over both tiles of a pair.
    ahead: bytes that a product of few tokens prefetches ahead; 0 if the CPU does that by itself.
    spread: lines are prefetched one by one between the loads, not all of a block at once.
    amx: AMX multiplies 16 tokens and more (`amx.py`).
    pause: LLVM's name of the hint to a spinning core, and its arguments.
    """

    dot: Dot
    fma: bool
    half: bool
    tokens: int
    paired: int
    pause: tuple[str, tuple[int, ...]] | None
    ahead: int = 0
    spread: bool = False
    amx: bool = False

    @property
    def products(self) -> str:
        """How products of bytes are taken, for people."""
        return f"{self.dot}, amx" if self.amx else self.dot


def target_of(architecture: str, features: dict[str, bool], cpu: str = "") -> Target:
    """The target for an LLVM architecture name ("x86_64", "aarch64", ...), feature map and CPU name."""

    def has(*names: str) -> bool:
        return all(features.get(name, False) for name in names)

    if architecture in ("x86_64", "i386", "i686"):
        pause = ("llvm.x86.sse2.pause", ())
        if not has(*_X86_LEAST):
            return Target("plain", has("fma"), has("f16c"), 4, 2, pause)
        if has(*_X86_VNNI512):
            # LLVM goes by the model's number, for which a hypervisor may give another's. Only these have AMX.
            if has("amx-tile") and cpu not in _AHEAD:
                cpu = "graniterapids" if has("prefetchi") else "sapphirerapids"
            return Target("vnni512", True, True, 8, 8, pause, _AHEAD.get(cpu, 0), cpu in _SPREAD, has("amx-int8"))
        dot: Dot = "vnni256" if has("avxvnni") else "avx2"
        return Target(dot, True, True, 4, 2, pause, _AHEAD.get(cpu, 0), cpu in _SPREAD)
    if architecture in ("aarch64", "arm64"):
        return Target("sdot" if has("dotprod") else "neon", True, True, 4, 2, ("llvm.aarch64.hint", (1,)))
    return Target("plain", False, False, 4, 2, None)


def missing(architecture: str, features: Collection[str]) -> str:
    """The instructions that faster products would use and this CPU lacks, in words; empty where it lacks none."""
    if architecture in ("x86_64", "i386", "i686"):
        least = [name for name in _X86_LEAST if name not in features]
        if least:
            return ", ".join(name.upper() for name in least)
        has_vnni = "avxvnni" in features or all(name in features for name in _X86_VNNI512)
        return "" if has_vnni else "VNNI (AVX-512 or AVX)"
    if architecture in ("aarch64", "arm64"):
        return "" if "dotprod" in features else "dot product (ARMv8.2: Raspberry Pi 5, Cortex-A76 and later)"
    return ""
