"""The one thing a model asks of the other nodes."""

from __future__ import annotations

from typing import Protocol

from dllama_zmq.quants import F32, U8


class Comm(Protocol):
    """Adds up what all nodes hold a part of."""

    def all_reduce(self, partial: F32 | U8) -> F32:
        """The sum of every node's `partial` (T, D), the same bits on all of them.

        U8: as it crosses the bus, (T, bytes of D values): what a product makes that is told `Sums.wire`.
        """
        ...
