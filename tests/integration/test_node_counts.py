"""The same answer on any number of nodes: the real bus over inproc, small random models, compared with one node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from generating import events_of, tokens_of
from tiny import tiny_spec, tiny_tensors, tiny_tokenizer_data

from dllama_zmq import load
from dllama_zmq.errors import PlanError, RequestError
from dllama_zmq.formats import write_m, write_t
from dllama_zmq.local import LocalModel
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.root.scheduler import Finished, Token
from dllama_zmq.sampling import Sampling
from dllama_zmq.sharding import PREFILL_TOKENS
from dllama_zmq.spec import FloatType, ModelSpec, Sync

NODE_COUNTS = [2, 4, 8]
SEQ_LEN = 256
VOCAB_SIZE = 301  # over 8 nodes: 37 or 38 each
TEXT = np.random.default_rng(11).integers(0, VOCAB_SIZE, 250).tolist()
PROMPT = TEXT[:50]
N_GENERATED = 12
GREEDY, SAMPLED = Sampling(), Sampling(temperature=0.9, top_p=0.95, seed=1234)

# Q40 with 2 KV heads: from 4 nodes on, some nodes share one.
MODELS = [(FloatType.Q40, 2), (FloatType.Q40, 8), (FloatType.Q80, 2)]


def cancelling_tensors(spec: ModelSpec) -> Iterator[tuple[str, BlockMatrix]]:
    """A random model in which the first and the last block of each FFN are large and cancel out.

    In it, adding partial sums in another order moves x by 1e-5. In any other that is 1e-7, which the rounding of the
    next product's activations to Q80 hides from the logits nearly always.
    """
    for name, matrix in tiny_tensors(spec, seed=3):
        values = matrix.dequantize().copy()
        if name.endswith(("gate", "up")):
            values[-32:] = values[:32]
        elif name.endswith("down"):
            values[:, :32] *= 1000
            values[:, -32:] = -values[:, :32]
        yield name, BlockMatrix.from_array(values, matrix.float_type)


@dataclass(frozen=True, slots=True)
class Models:
    """Model files, each written when it is first asked for."""

    folder: Path

    def path(self, weight_type: FloatType, n_kv_heads: int = 2) -> Path:
        path = self.folder / f"{weight_type.name}-{n_kv_heads}.m"
        if not path.exists():
            spec = tiny_spec(
                n_heads=8,
                n_kv_heads=n_kv_heads,
                head_dim=32,
                hidden_dim=256,
                vocab_size=VOCAB_SIZE,
                seq_len=SEQ_LEN,
                weight_type=weight_type,
            )
            write_m(
                path, spec, tiny_tensors(spec, seed=3) if weight_type is FloatType.F32 else cancelling_tensors(spec)
            )
            write_t(path.with_suffix(".t"), tiny_tokenizer_data(VOCAB_SIZE))
        return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def generated(model: LocalModel, sampling: Sampling) -> list[int]:
    """The tokens that follow PROMPT."""
    return tokens_of(model.engine, PROMPT, N_GENERATED, sampling)


@cache
def answers(path: Path, nodes: int) -> tuple[F32, list[int], list[int]]:
    """Logits after each token of TEXT, and the tokens that follow PROMPT: greedy and sampled."""
    with load(path, nodes=nodes) as model:
        return model.logits(TEXT), generated(model, GREEDY), generated(model, SAMPLED)


@pytest.mark.parametrize("nodes", NODE_COUNTS)
@pytest.mark.parametrize(("weight_type", "n_kv_heads"), MODELS)
def test_logits_are_the_same_bits_on_any_number_of_nodes(models, weight_type, n_kv_heads, nodes):
    path = models.path(weight_type, n_kv_heads)
    alone, together = answers(path, 1)[0], answers(path, nodes)[0]
    assert alone.shape == (len(TEXT), VOCAB_SIZE)
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("nodes", NODE_COUNTS)
@pytest.mark.parametrize(("weight_type", "n_kv_heads"), MODELS)
def test_greedy_and_sampled_tokens_are_the_same_on_any_number_of_nodes(models, weight_type, n_kv_heads, nodes):
    path = models.path(weight_type, n_kv_heads)
    _, greedy, sampled = answers(path, 1)
    assert len(greedy) == len(sampled) == N_GENERATED
    assert greedy != sampled
    assert answers(path, nodes)[1:] == (greedy, sampled)


def test_another_seed_gives_other_tokens(models):
    with load(models.path(FloatType.Q40), nodes=2) as model:
        assert generated(model, SAMPLED) != generated(model, Sampling(0.9, 0.95, seed=1235))


def test_greedy_tokens_are_those_of_the_largest_logits(models):
    path = models.path(FloatType.Q40)
    _, greedy, _ = answers(path, 4)
    with load(path) as model:
        logits = model.logits([*PROMPT, *greedy[:-1]])
    assert np.argmax(logits[len(PROMPT) - 1 :], axis=1).tolist() == greedy


def test_text_is_that_of_the_tokens(models):
    path = models.path(FloatType.Q40)
    prompt = "once upon a time the cat"
    with load(path, nodes=2) as model:
        text = "".join(model.generate(prompt, max_tokens=20))
        tokenizer = model.tokenizer
        tokens = tokens_of(model.engine, tokenizer.encode(prompt), 20)
    ends = [i for i, token in enumerate(tokens) if token in tokenizer.eos_ids]
    assert text == tokenizer.decode(tokens[: ends[0] if ends else None], continues=True)
    assert text


# What one rounding to the wire's type moves values by, as a share of their size. f16: 2^-11 of each value. Q80: half a
# step of max|x| / 127 at most, in the mean 2.4 / 127 / sqrt(12) of the standard deviation (2.4: the largest of 32
# normal values). Two layers round x, four partial sums and four sums, independently, and residuals make each a part
# of the whole: sqrt(9) = 3 roundings at most. The weights are F32: a quantized model rounds its activations to Q80
# anyway, and a difference of 1e-4 can move one by a whole step.
@pytest.mark.parametrize("nodes", NODE_COUNTS)
@pytest.mark.parametrize(("sync", "rounding"), [("f16", 2.0**-11), ("q80", 2.4 / 127 / 12**0.5)])
def test_activations_of_fewer_bits_on_the_wire_move_logits_by_no_more_than_their_rounding(
    models, sync: Sync, rounding: float, nodes: int
):
    path = models.path(FloatType.F32)
    exact = answers(path, 1)[0][: len(PROMPT)]
    with load(path, nodes=nodes, sync=sync) as model:
        logits = model.logits(PROMPT)
    moved = float(np.sqrt(np.mean(np.square(logits - exact))) / exact.std())
    assert rounding / 3 < moved <= 3 * rounding  # and it is the type asked for that travels


# float32 adds in other orders when tokens come one by one: the same 2e-5 as in test_hf_parity.py, and its tolerance.
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_logits_of_a_text_at_once_equal_those_token_by_token(models, nodes):
    text = TEXT[:150]
    assert len(text) > PREFILL_TOKENS  # at once is in two steps
    with load(models.path(FloatType.F32), nodes=nodes) as model:
        at_once = model.logits(text)
        one_by_one = model.engine.logits(text, rows=1)
    np.testing.assert_allclose(at_once, one_by_one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_text_begins_anew_whatever_was_evaluated_before(models, nodes):
    with load(models.path(FloatType.Q40), nodes=nodes) as model:
        before = model.logits(PROMPT[:20])
        model.logits(PROMPT[::-1])
        assert np.array_equal(model.logits(PROMPT[:20]), before)


@pytest.mark.parametrize("nodes", [1, 2])
def test_generation_ends_with_length_when_the_context_is_full(models, nodes):
    with load(models.path(FloatType.Q40), nodes=nodes) as model:
        events = events_of(model.engine, TEXT, max_tokens=None)
    tokens = [event for event in events if isinstance(event, Token)]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "length"
    assert len(tokens) == SEQ_LEN - len(TEXT)


def test_generation_ends_with_length_after_max_tokens(models):
    with load(models.path(FloatType.Q40)) as model:
        events = events_of(model.engine, PROMPT, 3)
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "length"
    assert sum(isinstance(event, Token) for event in events) == 3


@pytest.fixture(scope="module")
def pair(models: Models) -> Iterator[LocalModel]:
    """A model over two nodes, for requests that are refused and leave it as it was."""
    with load(models.path(FloatType.Q40), nodes=2) as model:
        yield model


@pytest.mark.parametrize("n_tokens", [SEQ_LEN, SEQ_LEN + 1, 1000])
def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(pair, n_tokens):
    with pytest.raises(RequestError, match=rf"prompt has {n_tokens} tokens; this model's own context is {SEQ_LEN}\b"):
        pair.engine.add([5] * n_tokens, Sampling())


def test_a_text_longer_than_the_context_has_no_logits(pair):
    with pytest.raises(RequestError, match=rf"positions \d+ to {SEQ_LEN}; this cluster has room for {SEQ_LEN}\b"):
        pair.logits([5] * (SEQ_LEN + 1))


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_a_token_that_the_model_does_not_have_is_refused(pair, token):
    with pytest.raises(RequestError, match=rf"token {token}; this model's tokens are 0 to {VOCAB_SIZE - 1}"):
        pair.logits([5, token])


def test_no_tokens_have_no_logits(pair):
    with pytest.raises(RequestError, match="no tokens: expected at least one"):
        pair.logits([])


def test_a_node_count_that_the_model_does_not_allow_is_refused_with_those_that_it_does(models):
    with pytest.raises(PlanError, match=r"8 heads cannot be split over 16 nodes.* over 1, 2, 4 or 8 nodes"):
        load(models.path(FloatType.Q40), nodes=16)
