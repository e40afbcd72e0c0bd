"""A KV cache with few pages, and one that holds earlier texts: every text is the one that it would be alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from integration.nodes import FORM_S, Context, Start, a_worker, inproc, pump_until
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.bus.messages import Bye
from dllama_zmq.kernels import KV_PAGE
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.sequence import Sequence as Generation
from dllama_zmq.sampling import Sampling
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import FloatType

SEQ_LEN = 384
N_ONE = SEQ_LEN // KV_PAGE  # pages of one sequence
N_FEW = N_ONE + 1
NODES = pytest.mark.parametrize("n_nodes", [1, 2])
TYPES = pytest.mark.parametrize("weight_type", [FloatType.Q40, FloatType.Q80, FloatType.F16], ids=lambda it: it.name)


@contextmanager
def an_engine(
    context: Context, start: Start, folder: Path, n_nodes: int, weight_type: FloatType, n_pages: int | None = None
) -> Iterator[Engine]:
    """An engine of 16 sequences whose KV cache has `n_pages`, or enough for all of them."""
    spec = tiny_spec(dim=128, hidden_dim=256, n_heads=8, n_kv_heads=4, seq_len=SEQ_LEN, weight_type=weight_type)
    names, places = [f"worker{i}" for i in range(1, n_nodes)], inproc()
    kv_bytes = None if n_pages is None else Plan.make(spec, n_nodes).kv_bytes(0, n_pages * KV_PAGE)
    with write_tiny_model(folder / "tiny.m", spec) as model:
        root = Root(context, model, RootSettings(names=names, spin_s=0.0, kv_bytes=kv_bytes), places)
        for name in names:
            start(a_worker(context, places, name))
        root.wait_ready(time.monotonic() + FORM_S)
        try:
            yield Engine(root, 16)
        finally:
            root.close("the test is over")


def random_tokens(rng: np.random.Generator, n_tokens: int) -> list[int]:
    return [int(token) for token in rng.integers(3, 288, n_tokens)]


def run(engine: Engine, *sequences: Generation) -> list[list[int]]:
    """What each sequence has generated when all are done."""
    while engine.busy:
        outcome = engine.step()
        assert not outcome.failed
    return [sequence.tokens[sequence.n_prompt :] for sequence in sequences]


def forget(engine: Engine) -> None:
    """The prefix cache is empty."""
    engine.scheduler.pool.reset(engine.scheduler.pool.n_pages)


@NODES
@TYPES
def test_sequences_that_share_few_pages_are_preempted_and_have_the_texts_they_have_alone(
    context: Context, start: Start, tmp_path: Path, n_nodes: int, weight_type: FloatType
) -> None:
    rng = np.random.default_rng(5)
    # The first ones come to need three pages each, of which they are sure of two when they are let in.
    sizes = [(40, 110), (55, 90), (62, 80), (50, 100), (150, 40), (1, 1), (100, 20), (190, 5)]
    asked = [
        (random_tokens(rng, n_prompt), Sampling(float(i % 2), seed=i), n_new)
        for i, (n_prompt, n_new) in enumerate(sizes)
    ]
    with an_engine(context, start, tmp_path, n_nodes, weight_type, N_FEW) as engine:
        scheduler = engine.scheduler
        assert scheduler.pool.n_pages == N_FEW
        alone = []
        for prompt, sampling, n_new in asked:
            forget(engine)
            alone += run(engine, engine.add(prompt, sampling, n_new))
        forget(engine)
        assert scheduler.n_preemptions == 0
        together = run(engine, *(engine.add(prompt, sampling, n_new) for prompt, sampling, n_new in asked))
        assert together == alone
        assert scheduler.n_preemptions > 0  # how often depends on how long steps took
        assert scheduler.pool.n_in_use == 0


@NODES
@TYPES
def test_a_text_is_the_same_with_its_prefix_from_the_cache_and_without(
    context: Context, start: Start, tmp_path: Path, n_nodes: int, weight_type: FloatType
) -> None:
    rng = np.random.default_rng(6)
    base = random_tokens(rng, 210)
    prompts = [base, *([*base[:n], *random_tokens(rng, KV_PAGE)] for n in (0, 1, 63, 64, 65, 200)), base]

    def text(prompt: Sequence[int], i: int) -> Generation:
        sequence = engine.add(prompt, Sampling(float(i % 2), seed=i), 10)
        run(engine, sequence)
        return sequence

    with an_engine(context, start, tmp_path, n_nodes, weight_type) as engine:
        cached = [text(prompt, i) for i, prompt in enumerate(prompts)]
        assert [one.n_cached for one in cached] == [0, 0, 0, 0, 64, 64, 192, 192]
        turns = [text([*one.tokens, *random_tokens(rng, 20)], i) for i, one in enumerate(cached)]
        for turn, before in zip(turns, cached, strict=True):  # its last token has no keys and values yet
            assert turn.n_cached == (len(before.tokens) - 1) // KV_PAGE * KV_PAGE > 0
        for i, one in enumerate([*cached, *turns]):
            forget(engine)
            again = text(one.tokens[: one.n_prompt], i % len(cached))
            assert again.n_cached == 0
            assert again.tokens == one.tokens


def test_a_worker_comes_back_with_less_memory_and_the_texts_continue_with_fewer_pages(
    context: Context, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(8)
    prompts = [random_tokens(rng, 100) for _ in range(4)]
    with an_engine(context, start, tmp_path, 2, FloatType.Q40) as engine:
        root = engine.root
        alone = []
        for prompt in prompts:
            forget(engine)
            alone += run(engine, engine.add(prompt, Sampling(), 40))
        n_pages = engine.scheduler.pool.n_pages
        assert n_pages == 16 * N_ONE
        sequences = [engine.add(prompt, Sampling(), 40) for prompt in prompts]
        for _ in range(20):
            engine.step()
        just_enough = root.memory(1).model  # with one sequence
        monkeypatch.setattr("dllama_zmq.worker.worker.free_memory_bytes", lambda: just_enough)
        assert root.link is not None
        root.link.send(root.roster.members[0].identity, "worker1", Bye(True, "join again"))
        pump_until(root, lambda: root.n_pages == N_ONE)
        root.wait_ready(time.monotonic() + FORM_S)
        assert run(engine, *sequences) == alone
        assert engine.scheduler.pool.n_pages == N_ONE


@NODES
def test_the_pages_that_were_used_last_are_kept_and_older_ones_go(
    context: Context, start: Start, tmp_path: Path, n_nodes: int
) -> None:
    rng = np.random.default_rng(7)
    first, second, third = (random_tokens(rng, 2 * KV_PAGE + 1) for _ in range(3))
    with an_engine(context, start, tmp_path, n_nodes, FloatType.Q40, N_FEW) as engine:

        def cached(prompt: Sequence[int]) -> int | None:
            sequence = engine.add(prompt, Sampling(), 1)
            run(engine, sequence)
            return sequence.n_cached

        texts = [cached(prompt) for prompt in (first, second, third, first)]
        assert texts == [0, 0, 0, 2 * KV_PAGE]  # 6 pages of 7: all are there
        assert cached(random_tokens(rng, 3 * KV_PAGE + 1)) == 0  # takes one that is free, and then the oldest
        assert cached(first) == 2 * KV_PAGE
        assert cached(second) == 0
