"""A sequence's logits are the same bits alone and beside others, in any chunks and pages, on any number of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import zmq
from integration.nodes import Context, InMemory, Start, a_root, a_worker, form, inproc
from tiny import tiny_spec

from dllama_zmq.kernels import Batch, Span, pages_for
from dllama_zmq.quants import F32
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.spec import FloatType, ModelSpec, Rope

N_PAGES = 64
LENGTHS = [70, 1, 64, 17, 130, 33, 65, 2, 63, 100, 16, 129, 5, 31, 80, 48]
CHUNKS = [1, 1, 1, 17, 64, 128]  # a decoded token, or a part of a prompt


def wide(weight_type: FloatType, **numbers: Any) -> ModelSpec:
    return tiny_spec(
        dim=128, hidden_dim=256, n_heads=8, vocab_size=256, seq_len=64 * N_PAGES, weight_type=weight_type, **numbers
    )


EXPERTS = {"n_experts": 4, "n_active_experts": 2}
MODELS: dict[str, tuple[ModelSpec, dict[str, Any]]] = {
    "Q40": (wide(FloatType.Q40), {}),
    "Q40, keys and values in f32, two threads": (wide(FloatType.Q40), {"kv_type": "f32", "threads": 2}),
    "Q80, a window": (wide(FloatType.Q80, window=40), {}),
    "Q41": (wide(FloatType.Q41), {}),
    "F16": (wide(FloatType.F16), {}),
    "F32, sync q80": (wide(FloatType.F32), {"sync": "q80"}),
    "Q40 experts": (wide(FloatType.Q40, arch="mixtral", **EXPERTS), {}),
    "F16 experts, norms of q and k": (wide(FloatType.F16, arch="qwen3moe", **EXPERTS), {}),
    "Q80 experts, a softcap": (
        wide(FloatType.Q80, arch="grok1", rope=Rope(layout="half"), activation="gelu", **EXPERTS),
        {"kv_type": "f32"},
    ),
    "Q80, a Gemma 3": (
        wide(
            FloatType.Q80,
            arch="gemma3",
            rope=Rope(1e6, "half"),
            window_rope=Rope(layout="half"),
            activation="gelu",
            window=40,
            full_every=2,
            query_scalar=24,
        ),
        {},
    ),
    "Q41, a Gemma 2": (
        wide(
            FloatType.Q41,
            arch="gemma2",
            rope=Rope(layout="half"),
            activation="gelu",
            window=70,
            full_every=2,
            query_scalar=24,
        ),
        {"threads": 2},
    ),
}


@dataclass
class Text:
    """Tokens, of which the first are computed, and the pages that they have."""

    tokens: list[int]
    done: int = 0
    pages: list[int] = field(default_factory=list)
    rows: list[F32] = field(default_factory=list)


def texts(n: int) -> list[Text]:
    """The first `n` of them."""
    rng = np.random.default_rng(7)
    return [Text(rng.integers(3, 256, length).tolist()) for length in LENGTHS][:n]


def logits_alone(root: Root) -> list[F32]:
    """The logits of each text without the others, a step for its first half and one for its second."""
    found = []
    for text in texts(len(LENGTHS)):
        middle = (len(text.tokens) + 1) // 2
        halves = [(0, text.tokens[:middle]), (middle, text.tokens[middle:])]
        rows = [root.logits(Batch.alone(start, len(half)), half) for start, half in halves if half]
        found.append(np.concatenate(rows))
    return found


@cache
def on_one_node(name: str) -> list[F32]:
    """`logits_alone` of one node of one thread."""
    spec, settings = MODELS[name]
    settings = {**settings, "threads": 1, "kernels": "simd"}
    return logits_alone(Root(zmq.Context.instance(), InMemory(spec), RootSettings(**settings)))


def steps(running: list[Text], seed: int) -> Iterator[tuple[list[Text], list[Span], list[int]]]:
    """Steps over some of the texts each, in chunks and pages as chance has them, until all are computed."""
    rng = np.random.default_rng(seed)
    free = rng.permutation(N_PAGES).tolist()
    while running := [text for text in running if text.done < len(text.tokens)]:
        chosen = [text for text in running if rng.random() < 0.8] or running[:1]
        spans, tokens = [], []
        for text in chosen:
            count = min(int(rng.choice(CHUNKS)), len(text.tokens) - text.done)
            text.pages += [free.pop() for _ in range(pages_for(text.done + count) - len(text.pages))]
            spans.append(Span(text.done, count, list(text.pages)))
            tokens += text.tokens[text.done : text.done + count]
            text.done += count
        yield chosen, spans, tokens


def assert_same_bits(root: Root, alone: list[F32], n: int, seed: int) -> None:
    """`n` texts in batches have the logits that each has alone."""
    running = texts(n)
    for chosen, spans, tokens in steps(running, seed):
        rows = root.logits(Batch(spans), tokens)
        for text, part in zip(chosen, np.split(rows, np.cumsum([span.count for span in spans])[:-1]), strict=True):
            text.rows.append(part)
    for number, (text, expected) in enumerate(zip(running, alone, strict=False)):
        assert np.array_equal(np.concatenate(text.rows), expected), (number, [len(part) for part in text.rows])


@pytest.mark.parametrize("n_nodes", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_same_bits_alone_and_in_any_batch_on_any_number_of_nodes(
    name: str, n_nodes: int, context: Context, start: Start
) -> None:
    spec, settings = MODELS[name]
    places = inproc()
    for _ in range(n_nodes - 1):
        start(a_worker(context, places, spin_s=1e-3))
    with a_root(context, InMemory(spec), places, n_workers=n_nodes - 1, kernels="simd", **settings) as root:
        form(root)
        # What travels as q80 is rounded, and one node sends nothing.
        alone = logits_alone(root) if "sync" in settings else on_one_node(name)
        for n, seed in ((3, 1), (16, 2)):
            assert_same_bits(root, alone, n, seed)
