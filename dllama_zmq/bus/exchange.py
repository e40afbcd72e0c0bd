"""The interface between the root and the network (`Exchange`), its version for one node (`Solo`), and the wait loop.

A topology is a class for the root and one for the workers: `star.py` and `star_worker.py` are the star. Messages,
deadlines and lost nodes of a step are handled in `steps.py` and `worker_steps.py`, which know no socket.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar, cast

from dllama_zmq.bus.arrays import EncodedArray
from dllama_zmq.bus.messages import Message, RowAsk
from dllama_zmq.bus.steps import Action, Done, Part
from dllama_zmq.bus.waits import Wait
from dllama_zmq.kernels import Batch
from dllama_zmq.quants import F32, U8

A = TypeVar("A")


class Exchange(Protocol):
    """The root's side of the exchange between all nodes; `all_reduce`, `start` and `finish` are those of `Comm`."""

    @property
    def wait_s(self) -> float:
        """Seconds that the root has waited for the others since the step began, or since it asked for more."""
        ...

    @property
    def waits(self) -> Mapping[str, Wait]:
        """The same by worker; each wait counts for the worker whose answer ended it."""
        ...

    def begin(self, batch: Batch, x: F32, asks: Sequence[RowAsk], of_asks: Sequence[EncodedArray]) -> F32:
        """Begin a step on all nodes, with the arrays that its asks need; returns x (T, D), the rows of `batch`, as
        every node sees it. Raises WorkerLost while a worker has not heard this epoch's beacon.
        """
        ...

    def all_reduce(self, partial: F32 | U8) -> F32: ...

    def start(self, partial: F32 | U8) -> None: ...

    def finish(self) -> F32: ...

    def candidates(self) -> list[Part]:
        """Wait for every worker's candidates, which end the step; in node order."""
        ...

    def ask_more(self, again: Sequence[tuple[int, int]]) -> list[Part]:
        """Every worker's best k candidates of the (row, k) in `again`, rows of this step's asks."""
        ...

    def out_of_turn(self) -> dict[bytes, Message]:
        """The last message of each peer since the last call that belongs to no step."""
        ...


class Solo:
    """A single node: its partial sums are the sums."""

    wait_s = 0.0
    waits: Mapping[str, Wait] = {}

    def __init__(self) -> None:
        self._begun: deque[F32] = deque()

    def begin(self, batch: Batch, x: F32, asks: Sequence[RowAsk], of_asks: Sequence[EncodedArray]) -> F32:
        return x

    def all_reduce(self, partial: F32 | U8) -> F32:
        return cast(F32, partial)  # on one node `Reduction.wire` is None: products return float32

    def start(self, partial: F32 | U8) -> None:
        self._begun.append(self.all_reduce(partial))

    def finish(self) -> F32:
        return self._begun.popleft()

    def candidates(self) -> list[Part]:
        return []

    def ask_more(self, again: Sequence[tuple[int, int]]) -> list[Part]:
        return []

    def out_of_turn(self) -> dict[bytes, Message]:
        return {}


def wait(
    actions: Sequence[Action],
    do: Callable[[Action], None],
    receive: Callable[[], A | None],
    hear: Callable[[float, A | None], Sequence[Action]],
) -> list[Part]:
    """Carry out `actions`, then those that follow from each message, until the awaited parts are here.

    do: carries out an action; raises the error of Failed. receive: returns the next message; None when it is time to
    look. hear: that of `RootSteps` or `WorkerSteps`.
    """
    while True:
        for action in actions:
            if isinstance(action, Done):
                return action.parts
            do(action)
        arrived = receive()
        actions = hear(time.monotonic(), arrived)
