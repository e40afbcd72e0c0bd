"""A loaded worker's part of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dllama_zmq.bus.star_worker import StarWorker
from dllama_zmq.models import Model
from dllama_zmq.quants import F32
from dllama_zmq.sharding import Ask, Plan, best_candidates
from dllama_zmq.worker.asks import encode_answers


@dataclass(slots=True)
class Shard:
    """One node's model, and its present or last step."""

    model: Model
    plan: Plan
    node: int
    comm: StarWorker
    n_pages: int
    heard: int = 0
    asks: dict[int, Ask] = field(default_factory=dict)  # of the last step, by row, and the logits of these rows
    logits: dict[int, F32] = field(default_factory=dict)

    def answer(self, asks: Mapping[int, Ask]) -> None:
        """Send candidates of rows of the last step."""
        if not asks:
            self.comm.answer([])
            return
        logits = np.stack([self.logits[row] for row in asks])
        best = best_candidates(logits, list(asks.values()), self.plan.slices[self.node].vocab.start)
        self.comm.answer(encode_answers(best))
