"""An embedding is the normalized mean of the last hidden states, the same bits however its tokens were evaluated."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from generating import tokens_of
from integration.nodes import InMemory, Start, a_root, a_worker, form, inproc
from tiny import tiny_spec, write_tiny_pair

from dllama_zmq import load
from dllama_zmq.errors import RequestError
from dllama_zmq.formats import write_m
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sampling import Sampling
from dllama_zmq.spec import FloatType, ModelSpec

GOLDEN = Path(__file__).parents[1] / "golden"
EXPERTS = {"n_experts": 4, "n_active_experts": 2}
SPECS = {
    "Q40": tiny_spec(dim=128, hidden_dim=256, n_heads=8, seq_len=512, weight_type=FloatType.Q40),
    "Q80 experts": tiny_spec(
        dim=128, hidden_dim=256, n_heads=8, seq_len=512, weight_type=FloatType.Q80, arch="mixtral", **EXPERTS
    ),
}
TOKENS = np.random.default_rng(5).integers(3, 280, 200).tolist()


def embedded(engine: Engine, tokens: list[int]) -> F32:
    sequence = engine.embed(tokens)
    while sequence.state != "finished":
        for _, error in engine.step().failed:
            raise error
    assert sequence.pooling is not None
    return sequence.pooling.vector()


@pytest.fixture(scope="module", params=SPECS)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return SPECS[request.param]


@pytest.fixture
def engine(spec: ModelSpec) -> Engine:
    return an_engine(spec)


def an_engine(spec: ModelSpec) -> Engine:
    return Engine(Root(zmq.Context.instance(), InMemory(spec), RootSettings()), 8)


@pytest.fixture(scope="module")
def alone(spec: ModelSpec) -> F32:
    """The embedding of TOKENS, evaluated in one chunk after the other on one node, alone."""
    return embedded(an_engine(spec), TOKENS)


@pytest.mark.parametrize("case", ["gqa", "llama31", "tied"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_an_embedding_is_the_mean_hidden_state_by_which_transformers_makes_its_logits(
    tmp_path: Path, case: str, nodes: int
) -> None:
    """Logits are linear in the hidden states, so the mean of the ones gives the mean of the others."""
    with np.load(GOLDEN / f"llama_{case}.npz") as golden:
        arrays = dict(golden)
    spec = msgspec.json.decode(str(arrays["spec"]), type=ModelSpec)
    tensors = {
        t.name: BlockMatrix.from_array(arrays[t.name].astype(np.float32), t.float_type) for t in tensor_table(spec)
    }
    write_m(tmp_path / "m.m", spec, tensors)
    head = arrays["head"].astype(np.float64)
    assert np.linalg.matrix_rank(head) == spec.dim
    hidden = np.linalg.lstsq(head, arrays["logits"].mean(axis=0, dtype=np.float64))[0]
    with load(tmp_path / "m.m", nodes=nodes, kv_cache="f32") as model:
        vector = model.embed(arrays["tokens"].tolist())
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, hidden / np.linalg.norm(hidden), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 17, 64, 128])
def test_it_has_the_same_bits_in_any_chunks(engine: Engine, alone: F32, rows: int) -> None:
    engine.scheduler.prefill_rows = rows
    np.testing.assert_array_equal(embedded(engine, TOKENS), alone)


def test_it_has_the_same_bits_beside_others_and_after_a_rewind(engine: Engine, alone: F32) -> None:
    answers = [engine.add(TOKENS[i:], Sampling(), max_tokens=60) for i in (0, 50, 150)]
    engine.step()
    sequences = [engine.embed(TOKENS), engine.embed(TOKENS)]
    for n in range(200):
        engine.step()
        if n in (2, 9):
            engine.scheduler.rewind()
        if all(sequence.state == "finished" for sequence in sequences):
            break
    for sequence in sequences:
        np.testing.assert_array_equal(sequence.pooling.vector(), alone)
    assert any(answer.state != "finished" for answer in answers)


def test_the_prefix_cache_leaves_out_none_of_its_tokens(engine: Engine, alone: F32) -> None:
    tokens_of(engine, TOKENS, 3)
    np.testing.assert_array_equal(embedded(engine, TOKENS), alone)


def test_tokens_evaluated_for_an_embedding_are_not_evaluated_again_for_an_answer(engine: Engine) -> None:
    embedded(engine, TOKENS)
    sequence = engine.add(TOKENS, Sampling(), 3)
    while sequence.state != "finished":
        engine.step()
    assert sequence.n_cached == len(TOKENS) // 64 * 64


@pytest.mark.parametrize("nodes", [2, 4])
def test_it_has_the_same_bits_on_any_number_of_nodes(
    context: zmq.Context[zmq.Socket[bytes]], start: Start, spec: ModelSpec, alone: F32, nodes: int
) -> None:
    places = inproc()
    with a_root(context, InMemory(spec), places, n_workers=nodes - 1, kernels="auto") as root:
        for _ in range(nodes - 1):
            start(a_worker(context, places))
        form(root)
        np.testing.assert_array_equal(embedded(Engine(root, 8), TOKENS), alone)


def test_it_is_a_vector_of_length_one_of_the_text_or_its_tokens(tmp_path: Path) -> None:
    write_tiny_pair(tmp_path)
    with load(tmp_path / "tiny.m") as model:
        vector = model.embed("once upon a time")
        assert vector.shape == (model.spec.dim,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        np.testing.assert_array_equal(vector, model.embed(model.tokenizer.encode("once upon a time")))
        assert not np.array_equal(vector, model.embed("the cat"))
        with pytest.raises(RequestError, match="this model's own context is 64"):
            model.embed([5] * 64)
        with pytest.raises(RequestError, match="empty"):
            model.embed([])
        with pytest.raises(RequestError, match="token 288"):
            model.embed([1, 288])
        assert not model.engine.busy
