"""Several answers to one prompt: each is the one that a request of its own would get, and the prompt is read once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from command_line import until
from integration.nodes import Context, inproc
from integration.services import SOON_S, a_root, tokenizer_of
from served import served
from tiny import tiny_spec, write_tiny_pair

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import Done, Prefill, Queued, Started, TokenText
from dllama_zmq.client import Answer
from dllama_zmq.errors import NotReady, RequestError
from dllama_zmq.formats import ModelFile
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sampling import GREEDY, Sampling
from dllama_zmq.spec import FloatType

SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, n_kv_heads=4, seq_len=4096, weight_type=FloatType.Q40)
SAMPLED = Sampling(0.9, seed=11)
PLACES = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_pair(tmp_path_factory.mktemp("model"), SPEC) as file:
        yield file


@pytest.fixture
def address(context: Context, model: ModelFile) -> Iterator[str]:
    """A root with PLACES places for answers. Its kernels give equal bits alone and beside others: NumPy's do not."""
    root = Root(context, model, RootSettings(names=[], spin_s=0.0), inproc())
    try:
        with served(context, root, tokenizer_of(model), max_sequences=PLACES) as address:
            yield address
    finally:
        root.close("the test is over")


def texts_of(answers: list[Answer]) -> dict[int, str]:
    """The text of each answer."""
    texts: dict[int, str] = {}
    for answer in answers:
        if isinstance(answer, TokenText | Done):
            texts[answer.index] = texts.get(answer.index, "") + answer.text
    return texts


def idle(client: Client) -> bool:
    status = client.status()
    return not (status.active or status.queued or status.kv.in_use)


def test_an_answer_is_the_one_that_its_own_request_with_its_own_seed_gets(address: str) -> None:
    with Client(address) as client:
        received = list(client.generate("once upon a time", 12, SAMPLED, ignore_eos=True, n=PLACES))
        alone = {
            i: "".join(
                texts_of(list(client.generate("once upon a time", 12, Sampling(0.9, seed=11 + i), True))).values()
            )
            for i in range(PLACES)
        }
    assert texts_of(received) == alone
    assert len(set(alone.values())) == PLACES
    kinds = Counter(type(answer) for answer in received)
    assert (kinds[Started], kinds[TokenText], kinds[Done]) == (1, PLACES * 12, PLACES)
    assert isinstance(received[-1], Done)


def test_the_largest_seed_has_one_after_it(address: str) -> None:
    largest = (1 << 63) - 1
    with Client(address) as client:
        received = list(client.generate("once upon a time", 12, Sampling(0.9, seed=largest), ignore_eos=True, n=2))
        after = list(client.generate("once upon a time", 12, Sampling(0.9, seed=0), ignore_eos=True))
    assert [answer.seed for answer in received if isinstance(answer, Started)] == [largest]
    assert texts_of(received)[1] == texts_of(after)[0]


def test_greedy_answers_are_equal(address: str) -> None:
    with Client(address) as client:
        texts = texts_of(list(client.generate("the cat", 8, GREEDY, ignore_eos=True, n=3)))
    assert len(texts) == 3
    assert len(set(texts.values())) == 1


def test_more_answers_than_places_alternate_with_those_of_other_clients(address: str) -> None:
    with Client(address) as many, Client(address) as other:
        answers = many.generate("once upon a time", 400, SAMPLED, ignore_eos=True, n=3 * PLACES)
        received: list[Answer] = [next(answer for answer in answers if isinstance(answer, Started))]
        assert other.text("the cat", 1) != ""  # in the middle of them
        n_done = sum(isinstance(answer, Done) for answer in received)
        assert n_done < 3 * PLACES
        received += answers
        texts = texts_of(received)
        assert sorted(texts) == list(range(3 * PLACES))
        assert len(set(texts.values())) == 3 * PLACES
        until(lambda: idle(many), SOON_S, "every page is given back")


def test_answers_share_the_pages_of_their_prompt(address: str) -> None:
    prompt = "a b c d " * 60
    with Client(address) as client:
        before = client.status().kv
        received = list(client.generate(prompt, 4, SAMPLED, ignore_eos=True, n=PLACES))
        after = client.status().kv
    n_prompt = next(answer.prompt_tokens for answer in received if isinstance(answer, Started))
    last = [answer for answer in received if isinstance(answer, Prefill)][-1]
    assert (last.done, last.total, last.cached_tokens) == (n_prompt, n_prompt, 0)
    assert n_prompt > 4 * 64
    n_cached = after.cached_tokens - before.cached_tokens
    assert n_cached == (PLACES - 1) * (n_prompt - 1) // 64 * 64 or n_cached == (PLACES - 1) * (
        (n_prompt - 1) // 64 * 64
    )


def test_each_answer_ends_at_its_own_stop_string(address: str) -> None:
    with Client(address) as client:
        whole = texts_of(list(client.generate("once upon a time", 60, SAMPLED, ignore_eos=True, n=PLACES)))
        stop = whole[2][20:26]
        assert sum(stop in text for text in whole.values()) < PLACES
        received = list(client.generate("once upon a time", 60, SAMPLED, ignore_eos=True, stop=[stop], n=PLACES))
        assert texts_of(received) == {i: text.split(stop)[0] for i, text in whole.items()}
        reasons = {answer.index: answer.reason for answer in received if isinstance(answer, Done)}
        assert reasons == {i: "stop" if stop in text else "length" for i, text in whole.items()}
        until(lambda: idle(client), SOON_S, "every page is given back")


def test_cancelling_ends_all_that_have_not_ended(address: str) -> None:
    with Client(address) as client:
        answers = client.generate("once upon a time", 3000, SAMPLED, ignore_eos=True, n=2 * PLACES)
        assert any(isinstance(answer, TokenText) for answer in answers)
        answers.close()
        until(lambda: idle(client), SOON_S, "every place is free again")
        assert client.text("the cat", 2) != ""


def test_a_client_that_leaves_takes_all_its_answers_with_it(address: str) -> None:
    with Client(address) as other:
        with Client(address) as client:
            answers = client.generate("once upon a time", 3000, SAMPLED, ignore_eos=True, n=2 * PLACES)
            assert any(isinstance(answer, TokenText) for answer in answers)
        until(lambda: idle(other), SOON_S, "every place is free again")


@pytest.mark.parametrize("n", [0, -1, 17, 1 << 70])
def test_a_number_of_answers_out_of_bounds_is_refused(address: str, n: int) -> None:
    with Client(address) as client, pytest.raises(RequestError, match="expected 1 to 16 answers"):
        next(client.generate("the cat", n=n))


def test_several_answers_wait_for_nodes_as_one_request(context: Context, model: ModelFile) -> None:
    with (
        a_root(context, model, ["worker1"], inproc(), join_s=1.5) as root,
        served(context, root, tokenizer_of(model), max_sequences=PLACES) as address,
        Client(address) as client,
    ):
        received: list[Answer] = []
        with pytest.raises(NotReady, match="worker1"):
            received += client.generate("the cat", 2, n=PLACES)
        waiting = client.generate("the cat", 2, n=PLACES)
        assert isinstance(next(waiting), Queued)
        assert client.status().queued == 1


def test_clients_with_several_answers_each_share_the_places(address: str) -> None:
    found: list[dict[int, str]] = [{}, {}]

    def ask(i: int) -> None:
        with Client(address) as client:
            found[i] = texts_of(list(client.generate("once upon a time", 40, SAMPLED, ignore_eos=True, n=PLACES + 1)))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert found[0] == found[1]
    assert len(found[0]) == PLACES + 1
