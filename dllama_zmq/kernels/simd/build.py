"""Compile every kernel for this CPU into one object file. Imports numba, so nothing else may import this eagerly."""

from __future__ import annotations

import importlib
import inspect
import sys
import time
from collections import deque
from collections.abc import Callable

import numba
from llvmlite import binding
from numba import types

from dllama_zmq.kernels.simd.helpers import answer, helpers
from dllama_zmq.kernels.simd.host import host_cpu
from dllama_zmq.kernels.simd.registry import KERNELS

_MODULES = ("products", "mixture", "packing", "rows", "attention", "wire", "threads", "chaining", "trade")
_LOOK_S = 0.02


def kernel_names() -> list[str]:
    """Every kernel, in the order in which they are compiled."""
    for module in _MODULES:
        importlib.import_module(f"dllama_zmq.kernels.simd.{module}")
    return list(KERNELS)


def build_object(on_progress: Callable[[int, int], None]) -> bytes:
    """An object file in which every kernel is a C function of its name; on_progress(done, of)."""
    whole: binding.ModuleRef | None = None
    names = kernel_names()
    for name, assembly in zip(names, _assemblies(names, on_progress), strict=True):
        part = binding.parse_assembly(assembly)
        for value in (*part.functions, *part.global_variables):  # numba numbers its names, in each process from 1 on
            if value.name != name and not value.is_declaration:
                value.linkage = "internal"
        if whole is None:
            whole = part
        else:
            whole.link_in(part)
    if whole is None:
        raise RuntimeError("there are no kernels")
    whole.link_in(binding.parse_assembly(_without_runtime(whole)))
    object_code: bytes = target_machine().emit_object(whole)
    return object_code


def _assemblies(names: list[str], on_progress: Callable[[int, int], None]) -> list[str]:
    """The kernels' LLVM, made here and, on this machine's other cores, by helpers: numba does one at a time."""
    left, made = deque(names), dict[str, str]()
    with helpers(left, made) as at_work:
        while at_work() or left:  # in this order: what a helper gives back is in `left` before it is gone
            on_progress(len(made), len(names))
            try:
                name = left.popleft()
            except IndexError:
                time.sleep(_LOOK_S)
            else:
                made[name] = _assembly(name)
    on_progress(len(names), len(names))
    return [made[name] for name in names]


def target_machine() -> binding.TargetMachine:
    """LLVM's view of this CPU."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    _, name, features = host_cpu()
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(cpu=name, features=features, opt=3, reloc="pic", codemodel="default")


def _without_runtime(module: binding.ModuleRef) -> str:
    """Definitions for what numba's runtime would offer to code that raises exceptions: no kernel does."""
    missing = [f.name for f in module.functions if f.is_declaration and f.name.startswith(("numba_", "NRT_"))]
    traps = [f'define void @"{name}"() {{ call void @llvm.trap() unreachable }}' for name in missing]
    return "\n".join(["declare void @llvm.trap()", *traps])


def _assembly(name: str) -> str:
    """One kernel's optimized LLVM, its function renamed to `name`; all else in it is its own."""
    function = KERNELS[name]
    signature = types.void(*[types.int64] * len(inspect.signature(function).parameters))
    compiled = numba.cfunc(signature, error_model="numpy")(function)
    return compiled.inspect_llvm().replace(compiled.native_name, name)


if __name__ == "__main__":  # a helper
    kernel_names()
    answer(_assembly, sys.stdin.buffer, sys.stdout.buffer)
