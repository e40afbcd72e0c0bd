"""The CPU that this process runs on, as LLVM names it."""

from __future__ import annotations

import ctypes
import os
from functools import cache

from llvmlite import binding

from dllama_zmq.kernels.simd.target import Target, target_of


@cache
def host_cpu() -> tuple[str, str, str]:
    """(architecture, CPU name, features) that code is made for.

    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, numba's own names, choose another one: to try the code of a lesser CPU.
    """
    architecture = binding.get_process_triple().partition("-")[0]
    name = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name == "generic" else binding.get_host_cpu_features().flatten()
        if architecture in ("aarch64", "arm64") and _arm_has_dot_product():
            features += ",+dotprod"  # which LLVM does not find out on Linux
    if "+amx-int8" in features and not _allows_amx():
        features = features.replace("+amx-int8", "-amx-int8")
    return architecture, name, features


def _arm_has_dot_product() -> bool:
    """The kernel's word for it: AT_HWCAP, HWCAP_ASIMDDP (Documentation/arch/arm64/elf_hwcaps.rst)."""
    auxiliary_value = ctypes.CDLL(None).getauxval
    auxiliary_value.restype, auxiliary_value.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return bool(auxiliary_value(16) >> 20 & 1)


def _allows_amx() -> bool:
    """Ask Linux to let this process and its children use AMX, whose registers make every thread's state 8 kB larger
    (Documentation/arch/x86/xstate.rst); whether it does. Without having asked, the first AMX instruction is fatal."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


@cache
def host_target() -> Target:
    """The target of this process's kernels."""
    architecture, name, features = host_cpu()
    return target_of(architecture, {f[1:]: f[0] == "+" for f in features.split(",") if f}, name)
