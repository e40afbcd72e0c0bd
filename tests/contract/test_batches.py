"""Attention of several sequences in one call, by every back end: each has the bits that it has alone."""

from __future__ import annotations

import numpy as np
import pytest
from back_ends import AVAILABLE, KV_TYPES, normal, step, with_threads

from dllama_zmq.kernels import Batch, CacheSpec, Kernels, KVCache, Rotation, Span, pages_for
from dllama_zmq.quants import F32

N_PAGES, HEAD_DIM = 40, 24
# Of each sequence, the positions that are there, and the rows that come: decoded tokens and prompts' chunks.
SPANS = [(0, 1), (63, 1), (64, 1), (200, 1), (0, 17), (30, 70), (130, 3), (5, 1), (100, 64)]
# The last: a node that begins and ends in the middle of a group.
HEADS = [[0], [0, 0, 0, 1, 1, 1], [0] * 11, [0, 1, 1, 1, 2, 2]]


def pages_of(spans: list[tuple[int, int]]) -> list[list[int]]:
    """Pages of each sequence, scattered."""
    ids = iter(np.random.default_rng(1).permutation(N_PAGES).tolist())
    return [[next(ids) for _ in range(pages_for(start + count))] for start, count in spans]


def before(cache: KVCache, sequence: int, start: int, pages: list[int], n_heads: int, n_kv_heads: int) -> None:
    """The keys and values of a sequence's first positions."""
    if start:
        q, k, v = (
            normal(100 * sequence + i, start, n, HEAD_DIM) for i, n in enumerate((n_heads, n_kv_heads, n_kv_heads))
        )
        step(cache, 0, Batch([Span(0, start, pages[: pages_for(start)])]), q, k, v)


def attended(kernels: Kernels, spec: CacheSpec, batches: list[list[int]], scattered: bool) -> list[F32]:
    """What the rows of each span give, where those of `batches` are in one call."""
    n_heads, n_kv_heads = len(spec.kv_of_head), spec.n_kv_heads
    pages = pages_of(SPANS) if scattered else [list(range(pages_for(start + count))) for start, count in SPANS]
    found: dict[int, F32] = {}
    for numbers in batches:
        cache = kernels.kv_cache(spec)
        for i in numbers:
            before(cache, i, SPANS[i][0], pages[i], n_heads, n_kv_heads)
        batch = Batch([Span(*SPANS[i], pages[i]) for i in numbers])
        angles = batch.positions[:, None] * np.linspace(0.01, 1, HEAD_DIM // 2)
        rotation = Rotation(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), "half")
        rows = [
            [normal(7 * i + j, SPANS[i][1], n, HEAD_DIM) for i in numbers]
            for j, n in enumerate((n_heads, n_kv_heads, n_kv_heads))
        ]
        out = step(cache, 0, batch, *(np.concatenate(of) for of in rows), rotation)
        ends = np.cumsum([SPANS[i][1] for i in numbers])[:-1]
        found |= dict(zip(numbers, np.split(out.copy(), ends), strict=True))
    return [found[i] for i in range(len(SPANS))]


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (20, None), (64, 30.0), (130, None)])
@pytest.mark.parametrize("kv_of_head", HEADS)
@pytest.mark.parametrize("choice", AVAILABLE)
def test_a_sequence_has_the_bits_beside_others_that_it_has_alone(choice, kv_of_head, window, softcap, kv_type):
    spec = CacheSpec(1, N_PAGES, kv_of_head[-1] + 1, HEAD_DIM, kv_of_head, kv_type, window, softcap)
    everyone = list(range(len(SPANS)))
    with with_threads(choice, 1) as kernels:
        alone = attended(kernels, spec, [[i] for i in everyone], scattered=False)
    decoded = [i for i in everyone if SPANS[i][1] == 1]
    for threads, batches in [
        (1, [everyone]),
        (1, [[i] for i in everyone]),
        (2, [everyone[::-1]]),
        (3, [decoded, [i for i in everyone if i not in decoded]]),
    ]:
        with with_threads(choice, threads) as kernels:
            together = attended(kernels, spec, batches, scattered=True)
        for i, (one, other) in enumerate(zip(together, alone, strict=True)):
            assert np.array_equal(one, other), SPANS[i]


def test_a_span_has_rows_and_the_pages_of_its_positions():
    for span in (Span(0, 0, []), Span(0, 65, [1]), Span(64, 1, [1]), Span(0, 1, [1, 2]), Span(-1, 1, [])):
        with pytest.raises(ValueError, match="its positions take"):
            Batch([span])


def test_the_rows_of_a_micro_batch_are_those_of_the_batch():
    batch = Batch([Span(0, 40, [3]), Span(100, 1, [5, 4]), Span(60, 10, [1, 2])])
    first, second = batch.within(slice(0, 24)), batch.within(slice(24, 51))
    assert first.spans == (Span(0, 24, [3]),)
    assert second.spans == (Span(24, 16, [3]), Span(100, 1, [5, 4]), Span(60, 10, [1, 2]))
    assert batch.within(slice(43, 45)).spans == (Span(62, 2, [1]),)
    for part, rows in ((first, slice(0, 24)), (second, slice(24, 51))):
        assert np.array_equal(part.positions, batch.positions[rows])
    assert second.table.tolist() == [[0, 24, 16, 0], [16, 100, 1, 1], [17, 60, 10, 3]]
    assert second.page_ids.tolist() == [3, 5, 4, 1, 2]
