"""PROTOCOL.md suffices: a worker written from it alone serves a real root and gives the numbers of one node."""

from __future__ import annotations

import ast
import contextlib
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import integration.stranger as stranger
import integration.stranger_blocks as stranger_blocks
import integration.stranger_shard as stranger_shard
import numpy as np
import pytest
import zmq
from contexts import a_context
from generating import tokens_of
from integration.nodes import InMemory
from integration.stranger import Stranger
from msgspec.structs import replace
from tiny import tiny_spec, tiny_tokenizer_data, write_tiny_model

from dllama_zmq.bus.links import Endpoints
from dllama_zmq.formats import ModelFile, read_tokenizer, write_t
from dllama_zmq.kernels import Batch
from dllama_zmq.quants import F32
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sampling import Sampling
from dllama_zmq.sharding import Ask, best_candidates, merge_candidates
from dllama_zmq.spec import Architecture, FloatType, ModelSpec, Rope, RopeScaling, Sync
from dllama_zmq.tokenizer import Tokenizer
from dllama_zmq.worker import Worker, WorkerSettings


def arch_spec(arch: Architecture, **numbers: Any) -> ModelSpec:
    """A quantized model of an architecture whose pairs of RoPE are in half layout."""
    rope = Rope(1e4, "half")
    return tiny_spec(
        arch=arch, dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q40, rope=rope, norm_eps=1e-6, **numbers
    )


GEMMA: dict[str, Any] = {"activation": "gelu", "window": 3, "full_every": 2, "query_scalar": 24}
TOKENS = [1, 40, 41, 42, 200, 7, 7, 13]
SPECS = {
    "f32": tiny_spec(),
    "f16": tiny_spec(weight_type=FloatType.F16),
    "q40": tiny_spec(dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q40),
    "q80": tiny_spec(dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q80),
    "llama 3.1": tiny_spec(
        dim=128,
        hidden_dim=256,
        n_heads=8,
        weight_type=FloatType.Q40,
        rope=Rope(5e5, "interleaved", RopeScaling(8, 1, 4, 32)),
    ),
    "gelu and a window": tiny_spec(
        dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q40, activation="gelu", window=5
    ),
    "factors": tiny_spec(
        dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q40, rope=Rope(1e4, factors=(1, 1, 1, 2, 3, 4, 5, 6))
    ),
    "several types": tiny_spec(
        dim=128,
        hidden_dim=256,
        n_heads=8,
        weight_type=FloatType.Q40,
        stored=(
            ("layers.0.attention.v", FloatType.Q80),
            ("layers.1.ffn.down", FloatType.Q41),
            ("head", FloatType.Q41),
        ),
    ),
    "K-quants": tiny_spec(  # of 4 nodes each has 64 columns of o and 192 of down
        dim=256,
        hidden_dim=768,
        n_heads=8,
        weight_type=FloatType.Q4_K,
        stored=(
            ("layers.0.attention.v", FloatType.Q51),
            ("layers.0.attention.o", FloatType.Q5_K),
            ("layers.0.ffn.down", FloatType.Q6_K),
            ("layers.1.attention.o", FloatType.Q6_K),
            ("layers.1.attention.v", FloatType.Q50),
            ("layers.1.ffn.gate", FloatType.Q5_K),
            ("head", FloatType.Q6_K),
        ),
    ),
    "qwen2": arch_spec("qwen2"),
    "qwen3": arch_spec("qwen3"),
    "qwen3moe": arch_spec("qwen3moe", n_experts=6, n_active_experts=2, norm_topk=False),
    "mixtral": arch_spec("mixtral", n_experts=4, n_active_experts=2),
    "grok1": arch_spec("grok1", n_experts=4, n_active_experts=2, activation="gelu", norm_topk=False),
    "gemma2": arch_spec("gemma2", **GEMMA),
    "gemma3": arch_spec("gemma3", **GEMMA, window_rope=Rope(1e3, "half")),
    "half": tiny_spec(dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q40, rope=Rope(1e4, "half")),
}


Context: TypeAlias = zmq.Context[zmq.Socket[bytes]]
Running: TypeAlias = Callable[[], None]


def a_stranger(context: Context, root: str) -> Running:
    return Stranger(context, root).run


def a_worker(context: Context, root: str) -> Running:
    return Worker(context, WorkerSettings(root, spin_s=0.0, watch=False)).run


@contextlib.contextmanager
def cluster(
    model: ModelFile, n_nodes: int, sync: Sync = "f32", worker: Callable[[Context, str], Running] = a_stranger
) -> Iterator[Root]:
    """A real root over inproc, formed, with `worker` for all its workers."""
    with a_context() as context:
        name = f"inproc://{secrets.token_hex(6)}"
        names = [f"worker{i}" for i in range(1, n_nodes)]
        settings = RootSettings(names=names, sync=sync, kernels="numpy", spin_s=0.0)
        root = Root(context, model, settings, Endpoints([f"{name}-steps"], [f"{name}-replies"]))
        threads = [threading.Thread(target=worker(context, f"{name}-replies"), daemon=True) for _ in names]
        for thread in threads:
            thread.start()
        try:
            root.wait_ready(time.monotonic() + 20)
            yield root
        finally:
            root.close("the test is over")
            for thread in threads:
                thread.join(20)
            assert not any(thread.is_alive() for thread in threads)


def logits(root: Root) -> F32:
    """A prompt of two steps, then two more tokens, one by one."""
    n = len(TOKENS) - 3
    rows = [root.logits(Batch.alone(0, 3), TOKENS[:3]), root.logits(Batch.alone(3, n - 2), TOKENS[3 : n + 1])]
    rows += [root.logits(Batch.alone(i, 1), [TOKENS[i]]) for i in (n + 1, n + 2)]
    return np.concatenate(rows)


def alone(model: ModelFile) -> Root:
    return Root(zmq.Context.instance(), model, RootSettings(kernels="numpy"))


@pytest.mark.parametrize("n_nodes", [2, 4])
@pytest.mark.parametrize("name", SPECS)
def test_a_worker_written_from_the_document_gives_the_logits_of_one_node(name: str, n_nodes: int) -> None:
    spec: ModelSpec = SPECS[name]
    with InMemory(spec) as model, cluster(model, n_nodes) as root:
        expected, got = logits(alone(model)), logits(root)
        if spec.weight_type.is_quantized:
            np.testing.assert_array_equal(got, expected)
        else:  # the order of additions within a float product is the library's
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sync", ["f16", "q80"])
def test_a_worker_written_from_the_document_speaks_every_type_of_the_wire(sync: Sync, tmp_path: Path) -> None:
    with write_tiny_model(tmp_path / "tiny.m", SPECS["q40"]) as model:
        with cluster(model, 4, sync, a_worker) as root:
            expected = logits(root)
        with cluster(model, 4, sync) as root:
            got = logits(root)
        np.testing.assert_array_equal(got, expected)
        assert not np.array_equal(got, logits(alone(model))), "the wire rounds"


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(0.9, top_p=0.95, seed=3),
        Sampling(1.5, top_k=100, seed=4),
        Sampling(1.2, typical_p=0.9, seed=5),
        Sampling(1.0, min_p=0.01, repetition_penalty=1.2, frequency_penalty=0.5, logit_bias={7: 2.0}, seed=6),
        Sampling(presence_penalty=1.0, logprobs=5),
    ],
)
def test_its_candidates_are_those_that_the_root_samples_from(sampling: Sampling, tmp_path: Path) -> None:
    write_t(tmp_path / "tiny.t", tiny_tokenizer_data())
    tokenizer = read_tokenizer(tmp_path / "tiny.t")
    with write_tiny_model(tmp_path / "tiny.m", SPECS["q40"]) as model, cluster(model, 2) as root:
        expected, got = ([*tokens(which, tokenizer, sampling)] for which in (alone(model), root))
        assert got == expected
        assert len(got) == 20


MASK = np.packbits(np.arange(SPECS["q40"].vocab_size) % 3 == 0, bitorder="little")
LISTED = np.arange(0, 288, 7, dtype=np.int32)
ASKS = {
    0: Ask(1),
    2: Ask(5, 0.7, logprobs=True, listed=LISTED),
    3: Ask(0, 0.7, listed=LISTED[:3]),
    4: Ask(3, 2.0, mask=MASK),
    7: Ask(200, 1.0, logprobs=True, listed=LISTED[2:], mask=MASK),
}
MORE = {0: 40, 3: 9, 4: 0}


@pytest.mark.parametrize("worker", [a_stranger, a_worker])
def test_each_row_is_answered_what_it_asks_for_and_again_with_more(worker, tmp_path: Path) -> None:
    with write_tiny_model(tmp_path / "tiny.m", SPECS["q40"]) as model, cluster(model, 4, worker=worker) as root:
        every = logits_of(model)
        for asks, rows in (
            (ASKS, root.evaluate(Batch.alone(0, len(TOKENS)), TOKENS, ASKS)[0]),
            ({row: replace(ASKS[row], k=k) for row, k in MORE.items()}, root.more(MORE)[0]),
        ):
            for (row, ask), found in zip(asks.items(), rows, strict=True):
                expected = merge_candidates(best_candidates(every[[row]], [ask], 0), ask, [0])
                n = min(found.n_sure, expected.n_sure)
                assert n >= ask.k or found.complete
                assert found.ids[:n].tolist() == expected.ids[:n].tolist()
                assert found.logits[:n].tolist() == expected.logits[:n].tolist()
                assert found.listed.tolist() == expected.listed.tolist()
                sums = (found.log_sum_exp, found.raw_log_sum_exp)
                assert sums == pytest.approx((expected.log_sum_exp, expected.raw_log_sum_exp), rel=1e-13)


def logits_of(model: ModelFile) -> F32:
    """Of all rows of TOKENS."""
    return alone(model).logits(Batch.alone(0, len(TOKENS)), TOKENS)


def tokens(root: Root, tokenizer: Tokenizer, sampling: Sampling) -> Iterator[int]:
    return iter(tokens_of(Engine(root, 1), TOKENS, 20, sampling))


def test_the_stranger_imports_nothing_of_the_package() -> None:
    names: set[str] = set()
    for module in (stranger, stranger_shard, stranger_blocks):
        tree = ast.parse(Path(module.__file__).read_text())
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    third_party = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert third_party == {"integration", "msgpack", "numpy", "zmq"}  # integration: its own shard
