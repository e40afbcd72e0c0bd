"""Payload bytes that a plan puts on the bus, predicted. `dllama-zmq netstat` holds them against what was measured.

Payload is arrays alone; what headers and ZMTP framing add is `bus/meter.py`'s business. Per token and worker
S = 2L * B(D) and R = 2L * B(D), with B(m) = 4m in f32, 2m in f16 and 34m/32 in q80, beside the step's x and the
candidates, which have lines of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from dllama_zmq.spec import SYNC_FLOAT, ModelSpec, Sync


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes between the root and one worker. `sent` flows from the root to the worker."""

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


def candidate_bytes(k: int, vocab_rows: int) -> int:
    """Bytes of one row's answer from a node with `vocab_rows` of the vocabulary.

    Best k: k ids (i32) and k logits (f32), and one log-sum-exp (f64). k = 0, the whole slice: f32 logits alone.
    """
    return 4 * vocab_rows if k == 0 else 8 * min(k, vocab_rows) + 8


def step_traffic(spec: ModelSpec, sync: Sync, n_tokens: int, vocab_rows: int, sampled: tuple[int, ...]) -> Traffic:
    """One step of `n_tokens` tokens, of which one row for each entry of `sampled` (its k) has its logits taken."""
    row = SYNC_FLOAT[sync].row_bytes(spec.dim)
    stages = 2 * spec.n_layers
    return Traffic(
        step_sent=n_tokens * row,
        sums_sent=n_tokens * stages * row,
        partials_received=n_tokens * stages * row,
        candidates_received=sum(candidate_bytes(k, vocab_rows) for k in sampled),
    )
