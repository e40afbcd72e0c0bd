"""Measure a step by the root's clock and counters and the seconds that workers report."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from dllama_zmq.bus.client_messages import NodeTimes, StepStats
from dllama_zmq.bus.exchange import Exchange
from dllama_zmq.bus.messages import Candidates
from dllama_zmq.bus.meter import Meter
from dllama_zmq.bus.roster import ROOT
from dllama_zmq.bus.slowest import Spent, times_of_step
from dllama_zmq.bus.steps import Part


class Stopwatch:
    """Measures a step from `start` to `stop`. On one node alone it reads a clock and nothing else.

    unnamed: the nodes that are never reported as the slowest.
    """

    def __init__(self, exchange: Exchange, meter: Meter, unnamed: Callable[[], Collection[str]]) -> None:
        self._exchange = exchange
        self._meter = meter
        self._unnamed = unnamed
        self._start_s = self._start_on_core_s = 0.0
        self._start_bytes = 0, 0

    def start(self) -> None:
        """Start measuring a step."""
        self._start_s = time.monotonic()
        if self._exchange.waits:
            self._start_on_core_s = time.thread_time()
            self._start_bytes = self._meter.payload("sent"), self._meter.payload("received")

    def stop(self, parts: Sequence[Part]) -> tuple[StepStats, dict[str, NodeTimes]]:
        """The figures of the step, and each node's seconds. parts: the workers' last messages of the step.

        Without `parts` no node is reported as the slowest.
        """
        wall_s = time.monotonic() - self._start_s
        if not self._exchange.waits:
            return StepStats(wall_s, 0.0, 0, 0, {}), {ROOT: NodeTimes(wall_s)}
        on_core_s, exchange, nodes = time.thread_time() - self._start_on_core_s, self._exchange, {}
        if parts:
            nodes = times_of_step(_spent(exchange.wait_s, wall_s, on_core_s, parts), exchange.waits)
            for name in self._unnamed():
                nodes[name] = NodeTimes(nodes[name].compute_s, nodes[name].wait_s)
        waited_for_s = {name: times.waited_for_s for name, times in nodes.items() if times.waited_for_s > 0}
        n_sent, n_received = self._start_bytes
        n_sent, n_received = self._meter.payload("sent") - n_sent, self._meter.payload("received") - n_received
        return StepStats(wall_s, exchange.wait_s, n_sent, n_received, waited_for_s), nodes


def _spent(wait_s: float, wall_s: float, on_core_s: float, parts: Sequence[Part]) -> dict[str, Spent]:
    """The seconds of each node in a step: the root's as measured, the workers' as reported."""
    compute_s = max(0.0, wall_s - wait_s)
    spent = {ROOT: Spent(compute_s, max(0.0, compute_s - on_core_s), wait_s)}
    for part in parts:
        if isinstance(part.message, Candidates):
            said = part.message
            spent[part.name] = Spent(said.compute_s, said.paused_s, said.wait_s)
    return spent
