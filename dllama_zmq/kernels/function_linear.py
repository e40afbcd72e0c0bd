"""A function as a `Linear`, for back ends whose product takes several steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dllama_zmq.kernels.interface import Linear
from dllama_zmq.quants import F32


class FunctionLinear:
    """A function of x as a `Linear`: `then` is called with its result."""

    def __init__(self, product: Callable[[F32], Any]) -> None:
        self._product = product

    def __call__(self, x: F32, /, then: Linear | None = None) -> Any:
        out = self._product(x)
        return out if then is None else then(out)
