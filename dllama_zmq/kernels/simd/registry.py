"""The kernels by name: plain Python functions until `build.py` makes them machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Kernel = Callable[[Any, Any, Any], None]
"""(job, first, last): the address of its arguments, and which work items to do. All int64."""

KERNELS: dict[str, Callable[..., None]] = {}


def kernel(function: Callable[..., None], name: str = "") -> Callable[..., None]:
    """Register a function of int64 arguments and no result as a kernel."""
    KERNELS[name or function.__name__] = function
    return function
