"""Embeddings that clients ask for: each is that of its prompt alone, and takes its turn among the answers."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from integration.front_alone import PLACES, SOON_S, Engine, front_alone
from integration.nodes import Context, inproc
from integration.services import tokenizer_of
from served import served
from tiny import tiny_spec, tiny_tokenizer_data, write_tiny_pair
from tokenizers_of import of_t

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import NO_STEPS, Error, Prefill, Queued, Started
from dllama_zmq.bus.engine_messages import (
    Embedded,
    PromptProgress,
    Readiness,
    Stepped,
    SubmitEmbed,
    Withdraw,
)
from dllama_zmq.bus.text_messages import Embed
from dllama_zmq.errors import ContextExceeded, RemoteError, RequestError
from dllama_zmq.formats import ModelFile
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.spec import FloatType

SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, n_kv_heads=4, seq_len=512, weight_type=FloatType.Q40)
PROMPTS = ["once upon a time", "the cat", "a b c d " * 30, "x"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_pair(tmp_path_factory.mktemp("model"), SPEC) as file:
        yield file


@pytest.fixture
def address(context: Context, model: ModelFile) -> Iterator[str]:
    root = Root(context, model, RootSettings(names=[], spin_s=0.0), inproc())
    try:
        with served(context, root, tokenizer_of(model)) as address:
            yield address
    finally:
        root.close("the test is over")


def test_an_embedding_is_the_same_alone_and_beside_others_from_text_and_from_ids(address: str) -> None:
    with Client(address) as client:
        alone = [client.embed(prompt) for prompt in PROMPTS]
    assert all(math.isclose(math.hypot(*one.values), 1.0, abs_tol=1e-6) for one in alone)
    assert all(len(one.values) == SPEC.dim for one in alone)
    together: list[list[float]] = [[] for _ in PROMPTS]

    def ask(i: int) -> None:
        with Client(address) as client:
            together[i] = client.embed(client.tokenize(PROMPTS[i]).tokens).values

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(PROMPTS))]
    with Client(address) as client:
        beside = client.generate("once upon a time", 400, ignore_eos=True)
        assert isinstance(next(beside), Started)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON_S)
        beside.close()
    assert together == [one.values for one in alone]


def test_a_prompt_without_an_embedding_is_refused(address: str) -> None:
    with Client(address) as client:
        with pytest.raises(ContextExceeded):
            client.embed([1] * SPEC.seq_len)
        with pytest.raises(RequestError, match="the prompt is empty"):
            client.embed([])


@pytest.fixture
def engine(context: Context) -> Iterator[Engine]:
    with front_alone(context, of_t(tiny_tokenizer_data())) as engine:
        engine.tell(Readiness(True, "", 60.0))
        yield engine


def test_an_embedding_takes_a_place_as_an_answer_does_and_its_message_is_the_last(engine: Engine) -> None:
    with Client(engine.address) as client, ThreadPoolExecutor(1) as other:
        embedding = other.submit(client.embed, "the cat")
        asked = engine.hear()
        assert isinstance(asked, SubmitEmbed)
        assert asked == SubmitEmbed(1, asked.client, of_t(tiny_tokenizer_data()).encode("the cat"))
        with Client(engine.address) as second:
            answers = [second.generate("the cat") for _ in range(PLACES - 1)]
            # The last place is for a client that has none.
            assert [type(next(answer)) for answer in answers] == [Started] * (PLACES - 2) + [Queued]
            assert engine.submitted().client not in (b"", asked.client), "clients take turns in the engine"
            engine.tell(Embedded(1, [0.6, -0.8]))
            assert isinstance(next(answer for answer in answers[-1] if not isinstance(answer, Queued)), Started)
        assert embedding.result(SOON_S).values == [0.6, -0.8]


def test_an_embedding_ends_in_the_engine_s_error_and_can_be_cancelled(engine: Engine) -> None:
    with Client(engine.address) as client:
        given_up = client._follow(Embed(100, "the cat"), 1)
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(next, given_up)
            engine.tell(Stepped(NO_STEPS, [PromptProgress(submitted(engine), 5, 9, 5, 0)], [], []))
            assert isinstance(waiting.result(SOON_S), Prefill)
            given_up.close()
            assert isinstance(engine.hear(), Withdraw)
            embedding = other.submit(client.embed, "the cat")
            engine.tell(Error(submitted(engine), "RemoteError", "worker1 failed: no"))
            with pytest.raises(RemoteError, match="worker1 failed: no"):
                embedding.result(SOON_S)


def submitted(engine: Engine) -> int:
    """The engine's number of the embedding that it hears of."""
    message = engine.hear()
    assert isinstance(message, SubmitEmbed)
    return message.id
