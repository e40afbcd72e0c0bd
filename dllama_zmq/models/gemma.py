"""Gemma 2 (arXiv:2408.00118) and Gemma 3 (arXiv:2503.19786): a norm before and behind each half of a layer, and layers
with a window between layers without.

Gains are those of the file plus 1 where it leaves that out, as Hugging Face folders do; readers add it.
transformers rounds the embedding's scale to the type that it computes in; in F32, and in llama.cpp, it is as here.
"""

from __future__ import annotations

import math

import numpy as np

from dllama_zmq.kernels import Batch
from dllama_zmq.models.comm import Comm
from dllama_zmq.models.llama import Attention, FeedForward, Llama
from dllama_zmq.models.qwen import HeadNormedAttention
from dllama_zmq.quants import F32

ATTENTION_SOFTCAP, LOGIT_SOFTCAP = 50.0, 30.0
"""Gemma 2's limits of attention's scores and of logits."""


class _Gemma2Attention(Attention):
    out_norm = "attention_out_norm"


class _Gemma3Attention(HeadNormedAttention):
    out_norm = "attention_out_norm"


class _FeedForward(FeedForward):
    out_norm = "ffn_out_norm"


class Gemma3(Llama):
    attention: type[Attention] = _Gemma3Attention
    feed_forward = _FeedForward
    norms = ("attention_norm", "attention_out_norm", "ffn_norm", "ffn_out_norm")

    def forward(self, x: F32, batch: Batch, comm: Comm) -> F32:
        return super().forward(x * np.float32(math.sqrt(self._spec.dim)), batch, comm)


class Gemma2(Gemma3):
    attention = _Gemma2Attention
    attention_softcap = ATTENTION_SOFTCAP

    def logits(self, x: F32) -> F32:
        capped: F32 = np.float32(LOGIT_SOFTCAP) * np.tanh(super().logits(x) / np.float32(LOGIT_SOFTCAP))
        return capped
