"""Any back end with a timer: the seconds and calls of each of its kernels. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

from dllama_zmq.kernels.batch import Batch
from dllama_zmq.kernels.function_linear import FunctionLinear
from dllama_zmq.kernels.interface import CacheSpec, Experts, Kernels, KVCache, Linear, Norm, Rotation
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.spec import Activation, Sync

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Spent:
    __slots__ = ("calls", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0


class Profiled:
    """`kernels` with each call timed under a name, which takes 0.2 us.

    A product that comes `then` is timed as a call of its own, so a layer of one token takes some 10 us longer.

    Products are named by their shape, as "linear 2048+256+256 x 2048": the rows of each matrix, and their columns.
    Products of one shape, such as those of all layers, count together; a norm in a product counts with it. Other
    kernels have the interface's names.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.name, self.native = kernels.name, kernels.native
        self.timed = kernels
        self._spent: dict[str, _Spent] = {}
        self.rms_norm = self._timed("rms_norm", kernels.rms_norm)
        self.encode = self._timed("encode", kernels.encode)
        self.add_up = self._timed("add_up", kernels.add_up)

    @property
    def seconds(self) -> dict[str, float]:
        """Time in each kernel since the last `reset`, in the order in which they were made."""
        return {name: spent.seconds for name, spent in self._spent.items()}

    @property
    def calls(self) -> dict[str, int]:
        """Calls of each kernel since the last `reset`."""
        return {name: spent.calls for name, spent in self._spent.items()}

    def note(self, name: str, seconds: float) -> None:
        """Count a call that was timed elsewhere."""
        spent = self._spent.setdefault(name, _Spent())
        spent.seconds += seconds
        spent.calls += 1

    def reset(self) -> None:
        """Count from zero again."""
        for spent in self._spent.values():
            spent.seconds, spent.calls = 0.0, 0

    def linear(
        self, *matrices: BlockMatrix, segments: int = 1, norm: Norm | None = None, wire: Sync | None = None
    ) -> Linear:
        product = self.timed.linear(*matrices, segments=segments, norm=norm, wire=wire)
        return FunctionLinear(self._timed(_title("linear", matrices), product))

    def gated(
        self, gate: BlockMatrix, up: BlockMatrix, activation: Activation = "silu", norm: Norm | None = None
    ) -> Linear:
        product = self.timed.gated(gate, up, activation, norm)
        return FunctionLinear(self._timed(_title("gated", (gate, up)), product))

    def experts(
        self,
        experts: Iterable[tuple[BlockMatrix, BlockMatrix, BlockMatrix]],
        segments: int = 1,
        activation: Activation = "silu",
    ) -> Experts:
        return self._timed("experts", self.timed.experts(experts, segments, activation))

    def kv_cache(self, spec: CacheSpec) -> KVCache:
        return _ProfiledCache(self.timed.kv_cache(spec), self)

    def _timed(self, name: str, kernel: Callable[_P, _R]) -> Callable[_P, _R]:
        spent = self._spent.setdefault(name, _Spent())

        def timed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            start = perf_counter()
            result = kernel(*args, **kwargs)
            spent.seconds += perf_counter() - start
            spent.calls += 1
            return result

        return timed


class _ProfiledCache:
    def __init__(self, cache: KVCache, profiled: Profiled) -> None:
        self._attend = profiled._timed("attend", cache.attend)

    def attend(
        self,
        layer: int,
        batch: Batch,
        q: F32,
        k: F32,
        v: F32,
        rotation: Rotation | None = None,
        then: Linear | None = None,
    ) -> Any:
        out = self._attend(layer, batch, q, k, v, rotation)
        return out if then is None else then(out)


def _title(kind: str, matrices: Sequence[BlockMatrix]) -> str:
    return f"{kind} {'+'.join(str(matrix.rows) for matrix in matrices)} x {matrices[0].columns}"
