"""Predicted payload bytes on the bus; `dllama-zmq netstat` compares them with those measured.

Payload is the arrays without headers and ZMTP framing, which `bus/meter.py` counts. Per token and worker the sums sent
are 2L * B(D) bytes, and so are the partial sums received: B(m) = 4m in f32, 2m in f16, 34m/32 in q80. The step's x, the
ids of its pages (4 bytes for 64 positions of a sequence) and the candidates come on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dllama_zmq.errors import PlanError
from dllama_zmq.sharding.candidates import Reply
from dllama_zmq.spec import SYNC_FLOAT, ModelSpec, Sync


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes between the root and one worker; `sent` is from root to worker."""

    step_sent: int
    sums_sent: int
    partials_received: int
    candidates_received: int

    @property
    def sent(self) -> int:
        return self.step_sent + self.sums_sent

    @property
    def received(self) -> int:
        return self.partials_received + self.candidates_received


def check_sync(spec: ModelSpec, sync: Sync) -> None:
    """Raise PlanError if the model's width is not whole blocks of `sync`."""
    block = SYNC_FLOAT[sync].block_values
    if spec.dim % block:
        raise PlanError(f"sync {sync} needs whole blocks of {block}; this model is {spec.dim} wide: use f32 or f16")


def candidate_bytes(reply: Reply) -> int:
    """Bytes of one row's candidates from a node: ids (i32), logits (f32) and two log-sum-exps (f64)."""
    return 4 * (reply.n_ids + reply.n_logits) + 16


def step_traffic(spec: ModelSpec, sync: Sync, n_tokens: int, replies: Sequence[Reply], n_pages: int = 1) -> Traffic:
    """The traffic of one step of `n_tokens` tokens and `n_pages` page ids; `replies`: of the worker, for each row that
    is sampled."""
    row = SYNC_FLOAT[sync].row_bytes(spec.dim)
    stages = 2 * spec.n_layers
    return Traffic(
        step_sent=n_tokens * row + 4 * n_pages,
        sums_sent=n_tokens * stages * row,
        partials_received=n_tokens * stages * row,
        candidates_received=sum(map(candidate_bytes, replies)),
    )
