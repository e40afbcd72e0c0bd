"""A helper process that compiles kernels for this CPU, each into an object file. It alone imports numba.

numba translates; LLVM optimizes and makes machine code once, when a kernel and all its functions are in one module.
numba would do both for every function by itself and again in each caller, which takes up to 3 times as long. LLVM's
vectorizers are off: code that profits from vectors is written with them.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
from llvmlite import binding
from numba import types
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
from numba.core.registry import cpu_target

from dllama_zmq.kernels.simd.helpers import answer
from dllama_zmq.kernels.simd.host import host_cpu
from dllama_zmq.kernels.simd.registry import KERNELS, module_of, symbol_of

_MODULES = ("products", "mixture", "repacking", "rows", "attention", "sums", "threads", "sequences")
_SPEED_LEVEL = 2


def all_kernels() -> dict[str, Callable[..., None]]:
    """Every kernel of this package by name, as a function of Python."""
    for module in _MODULES:
        importlib.import_module(f"{__package__}.{module}")
    return {name: function for name, function in KERNELS.items() if not module_of(name)}


def object_of(name: str) -> bytes:
    """An object file in which a kernel is a C function of its name (without its module)."""
    symbol = symbol_of(name)
    module = binding.parse_assembly(_assembly(name))
    for value in (*module.functions, *module.global_variables):
        if value.name != symbol and not value.is_declaration:
            value.linkage = "internal"
    module.link_in(binding.parse_assembly(_without_runtime(module)))
    machine = target_machine()
    tuning = binding.create_pipeline_tuning_options(speed_level=_SPEED_LEVEL)
    tuning.loop_vectorization = tuning.slp_vectorization = False
    passes = binding.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    code: bytes = machine.emit_object(module)
    return code


def target_machine() -> binding.TargetMachine:
    """LLVM's view of this CPU."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    _, name, features = host_cpu()
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(cpu=name, features=features, opt=3, reloc="pic", codemodel="default")


class _Library(JITCodeLibrary):
    """The LLVM code of a function, of which no machine code is made."""

    def _finalize_specific(self) -> None:
        pass

    def get_pointer_to_function(self, name: str) -> int:
        """An address that nobody calls: numba only stores it."""
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 1


class _Translator(JITCPUCodegen):
    """Makes LLVM code for this CPU, for no execution engine."""

    _library_class = _Library

    def _add_module(self, module: binding.ModuleRef) -> None:
        pass

    def set_env(self, env_name: str, env: Any) -> None:
        pass


@cache
def _translate_only() -> None:
    """Let numba make no machine code in this process from now on."""
    cpu_target.target_context._internal_codegen = _Translator(__name__)  # type: ignore[no-untyped-call]


def _without_runtime(module: binding.ModuleRef) -> str:
    """Traps in place of the functions of numba's runtime that raise exceptions: no kernel does."""
    missing = [f.name for f in module.functions if f.is_declaration and f.name.startswith(("numba_", "NRT_"))]
    traps = [f'define internal void @"{name}"() {{ call void @llvm.trap() unreachable }}' for name in missing]
    return "\n".join(["declare void @llvm.trap()", *traps])


def _assembly(name: str) -> str:
    """One kernel's LLVM code, its function renamed to its symbol."""
    function = _function(name)
    _translate_only()
    signature = types.void(*[types.int64] * len(inspect.signature(function).parameters))
    compiled = numba.cfunc(signature, error_model="numpy")(function)
    return compiled.inspect_llvm().replace(compiled.native_name, symbol_of(name))


def _function(name: str) -> Callable[..., None]:
    if module := module_of(name):
        importlib.import_module(module)
        return KERNELS[name]
    return all_kernels()[name]


if __name__ == "__main__":
    answer(object_of, sys.stdin.buffer, sys.stdout.buffer)
