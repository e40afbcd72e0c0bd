"""Grok-1 as its publisher defines it, in plain loops in float64. Source: github.com/xai-org/grok-1, model.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from drawn import BASE, draw

from dllama_zmq.quants import F32
from dllama_zmq.spec import ModelSpec, Rope

F64 = npt.NDArray[np.float64]
Enter = Callable[[F64], F64]

EMBEDDING_MULTIPLIER = 78.38367176906169
OUTPUT_MULTIPLIER = 0.5773502691896257
ATTENTION_MULTIPLIER = 0.08838834764831845
MAX_ATTENTION_VALUE = 30.0

# The published key size: ATTENTION_MULTIPLIER is 128 ** -0.5.
GROK1 = ModelSpec(
    arch="grok1",
    dim=512,
    hidden_dim=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=128,
    vocab_size=131,
    seq_len=192,
    weight_type=BASE.weight_type,
    rope=Rope(layout="half"),
    activation="gelu",
    n_experts=8,
    n_active_experts=2,
    norm_topk=False,
)


def grok1_tensors() -> dict[str, F32]:
    """Embeddings such that what is added to them counts; queries such that scores are bent by the limit of 30."""
    tensors = draw("grok1", GROK1, embedding_scale=2.0**-6)
    return {name: values * 8 if name.endswith("attention.q") else values for name, values in tensors.items()}


def grok1_logits(spec: ModelSpec, tensors: dict[str, F32], tokens: list[int], enter: Enter = lambda x: x) -> F64:
    """Logits (T, V) after each token. `enter`: what becomes of an input of every product but the router's."""
    w = {name: values.astype(np.float64) for name, values in tensors.items()}
    group = spec.n_heads // spec.n_kv_heads
    h = [w["embedding"][token] * EMBEDDING_MULTIPLIER for token in tokens]
    for i in range(spec.n_layers):
        layer = f"layers.{i}."
        normed = [enter(norm(row, w[f"{layer}attention_norm"][0])) for row in h]
        q, k, v = ([heads(w[f"{layer}attention.{name}"] @ row, 128) for row in normed] for name in "qkv")
        q, k = ([[turned(head, t) for head in row] for t, row in enumerate(rows)] for rows in (q, k))
        for t in range(len(tokens)):
            out = []
            for head in range(spec.n_heads):
                scores = [float(q[t][head] @ k[s][head // group]) * ATTENTION_MULTIPLIER for s in range(t + 1)]
                weights = softmax([MAX_ATTENTION_VALUE * math.tanh(x / MAX_ATTENTION_VALUE) for x in scores])
                out.append(sum(weights[s] * v[s][head // group] for s in range(t + 1)))
            attended = w[f"{layer}attention.o"] @ enter(np.concatenate(out))
            h[t] = h[t] + norm(attended, w[f"{layer}ffn_norm"][0])
        for t in range(len(tokens)):
            x = norm(h[t], w[f"{layer}moe_norm"][0])
            probabilities = softmax([float(row @ x) for row in w[f"{layer}router"]])
            best = sorted(range(spec.n_experts), key=lambda e: -probabilities[e])[: spec.n_active_experts]
            each = [probabilities[e] * expert(w, f"{layer}experts.{e}.", x, enter) for e in best]
            mixed = sum(each[1:], start=each[0])
            h[t] = h[t] + norm(mixed, w[f"{layer}moe_out_norm"][0])
    return np.array([w["head"] @ enter(norm(row, w["final_norm"][0])) * OUTPUT_MULTIPLIER for row in h])


def q80(x: F64) -> F64:
    """x as Q80 has it (FORMATS.md §1)."""
    blocks = x.reshape(-1, 32)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 127
    whole = np.rint(np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0))
    values: F64 = (whole * scales.astype(np.float16).astype(np.float64)).reshape(-1)
    return values


def norm(x: F64, gain: F64) -> F64:
    return gain * x / math.sqrt(float(np.mean(x**2)) + 1e-5)


def heads(row: F64, width: int) -> list[F64]:
    return [row[i : i + width] for i in range(0, len(row), width)]


def turned(head: F64, position: int) -> F64:
    """Rotary embedding: value i turns with value i + half."""
    out, half = head.copy(), len(head) // 2
    for i in range(half):
        angle = position * 10000.0 ** (-2 * i / len(head))
        out[i] = head[i] * math.cos(angle) - head[i + half] * math.sin(angle)
        out[i + half] = head[i + half] * math.cos(angle) + head[i] * math.sin(angle)
    return out


def softmax(values: list[float]) -> list[float]:
    terms = [math.exp(value - max(values)) for value in values]
    return [term / sum(terms) for term in terms]


def expert(w: dict[str, F64], name: str, x: F64, enter: Enter) -> F64:
    gate = w[f"{name}gate"] @ enter(x)
    gelu = np.array([g / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) for g in gate])
    return w[f"{name}down"] @ enter(gelu * (w[f"{name}up"] @ enter(x)))
