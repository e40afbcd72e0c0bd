"""Grok-1: a mixture of experts with a norm behind each half of a layer. Source: github.com/xai-org/grok-1, model.py.

The results of those norms go into x, by which every node chooses experts: they must be the same bits on all nodes.
"""

from __future__ import annotations

import numpy as np

from dllama_zmq.kernels import Batch
from dllama_zmq.models.comm import Comm
from dllama_zmq.models.experts import MixtureOfExperts
from dllama_zmq.models.llama import Attention, Llama
from dllama_zmq.quants import F32

EMBEDDING_SCALE = 78.38367176906169
LOGIT_SCALE = 0.5773502691896257


class _NormedAttention(Attention):
    out_norm = "ffn_norm"  # its name in a `.m` file


class _NormedExperts(MixtureOfExperts):
    norm = "moe_norm"
    out_norm = "moe_out_norm"


class Grok1(Llama):
    attention = _NormedAttention
    feed_forward = _NormedExperts
    norms = ("attention_norm", "ffn_norm", "moe_norm", "moe_out_norm")
    attention_softcap = 30.0

    def forward(self, x: F32, batch: Batch, comm: Comm) -> F32:
        return super().forward(x * np.float32(EMBEDDING_SCALE), batch, comm)

    def logits(self, x: F32) -> F32:
        return super().logits(x) * np.float32(LOGIT_SCALE)
