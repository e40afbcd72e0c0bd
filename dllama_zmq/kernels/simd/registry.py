"""The kernels by name: plain Python functions until `build.py` makes them machine code.

A kernel of another package is named as `module:kernel`: the process that compiles it imports that module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Kernel = Callable[[Any, Any, Any], None]
"""(job, first, last): the address of its arguments, and which work items to do. All int64."""

KERNELS: dict[str, Callable[..., None]] = {}


def kernel(function: Callable[..., None], symbol: str = "") -> Callable[..., None]:
    """Register a function of int64 arguments and no result as a kernel."""
    symbol, module = symbol or function.__name__, function.__module__
    KERNELS[symbol if module.startswith(f"{__package__}.") else f"{module}:{symbol}"] = function
    return function


def module_of(name: str) -> str:
    """The module of a kernel of another package; empty for the others."""
    return name.rpartition(":")[0]


def symbol_of(name: str) -> str:
    """The name of a kernel's C function."""
    return name.rpartition(":")[2]
