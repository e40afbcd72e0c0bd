"""Keys and values of the tokens seen so far, by slot (one conversation), and the runs of tokens that a step brings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dllama_zmq.quants import F32


@dataclass(frozen=True, slots=True)
class Run:
    """`count` rows of a step: tokens of one slot at positions `start`, `start + 1`, ..."""

    slot: int
    start: int
    count: int


class KVCache:
    """One node's KV heads, float32. Memory is taken as positions fill: the arrays begin as untouched pages."""

    def __init__(self, n_layers: int, n_slots: int, n_kv_heads: int, seq_len: int, head_dim: int) -> None:
        self.seq_len = seq_len
        self.n_slots = n_slots
        self._store = np.zeros((n_layers, n_slots, 2, n_kv_heads, seq_len, head_dim), np.float32)

    def extend(self, layer: int, run: Run, keys: F32, values: F32) -> tuple[F32, F32]:
        """Store a run's keys and values (T, K, Hd); return all of the slot up to its end, each (K, S, Hd)."""
        end = run.start + run.count
        store = self._store[layer, run.slot, :, :, :end]
        store[0, :, run.start :] = keys.transpose(1, 0, 2)
        store[1, :, run.start :] = values.transpose(1, 0, 2)
        return store[0], store[1]


def kv_cache_bytes(n_layers: int, n_slots: int, n_kv_heads: int, seq_len: int, head_dim: int) -> int:
    """Bytes of a full KVCache of these sizes."""
    return n_layers * n_slots * 2 * n_kv_heads * seq_len * head_dim * 4
