"""Which kernels a model needs, and how far compiling them is. Knows no compiler."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from dllama_zmq.kernels.interface import KVType
from dllama_zmq.reporting import Reporter
from dllama_zmq.spec import FloatType

_DOING = "compiling kernels for this CPU, once"


class Needs(Struct, frozen=True):
    """What decides which kernels a node needs.

    types: of the matrices that are multiplied. expert_types: of those of experts. kernels: others that
    are needed, by name (those of other packages as `module:kernel`).
    """

    types: frozenset[FloatType]
    expert_types: frozenset[FloatType] = frozenset()
    kv_type: KVType = "f16"
    kernels: tuple[str, ...] = ()


class Compiling(Struct, frozen=True):
    """How far compiling is.

    fraction: of the expected cost, 0 to 1. spent_s: since it began. expected_s: the present estimate of the whole.
    """

    fraction: float
    spent_s: float
    expected_s: float

    @property
    def percent(self) -> int:
        """The fraction, in percent."""
        return int(100 * self.fraction)

    def __str__(self) -> str:
        return f"{_DOING}: {self.spent_s:.0f} of {self.expected_s:.0f} s"


def reported_to(reporter: Reporter) -> Callable[[Compiling], None]:
    """A callback that reports the progress of compiling to `reporter`."""
    return lambda now: reporter.activity(_DOING, now.percent, 100, "%")
