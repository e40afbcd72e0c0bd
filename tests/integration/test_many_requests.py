"""Many requests at once: each gets the text that it would get alone, on any number of nodes."""

from __future__ import annotations

import gc
import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from command_line import until
from integration.nodes import Context, Start, a_worker, inproc
from served import served
from tiny import tiny_spec, write_tiny_pair

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import Done, Prefill, Queued, TokenText
from dllama_zmq.formats import ModelFile, read_tokenizer
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sampling import GREEDY, Sampling
from dllama_zmq.spec import FloatType

SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, n_kv_heads=4, seq_len=16384, weight_type=FloatType.Q40)
PROMPTS = ["once upon a time", "a b c d " * 30, "the cat", "x", "once upon a hill there was a", "a b c d " * 17]
SOON_S = 60.0
LONG = 16000  # tokens: seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_pair(tmp_path_factory.mktemp("model"), SPEC) as file:
        yield file


@contextmanager
def a_cluster(
    context: Context, model: ModelFile, start: Start, n_nodes: int = 1, max_sequences: int = 16
) -> Iterator[str]:
    """The address of a cluster that answers clients."""
    names, places = [f"worker{i}" for i in range(1, n_nodes)], inproc()
    root = Root(context, model, RootSettings(names=names, spin_s=0.0, max_seq_len=SPEC.seq_len), places)
    tokenizer = read_tokenizer(model.path.with_suffix(".t"))
    try:
        with served(context, root, tokenizer, max_sequences=max_sequences) as address:
            for name in names:
                start(a_worker(context, places, name))
            yield address
    finally:
        root.close("the test is over")


def text(client: Client, prompt: str, **options: Any) -> str:
    """A whole answer that does not end before its last token."""
    answers = client.generate(prompt, ignore_eos=True, **options)
    return "".join(answer.text for answer in answers if isinstance(answer, TokenText | Done))


def options_of(i: int) -> dict[str, Any]:
    """Request number i: of another length than its neighbours, and of another way to choose tokens."""
    samplings = [
        GREEDY,
        Sampling(0.8, top_p=0.95, seed=1),
        Sampling(repetition_penalty=1.3),
        Sampling(0.8, frequency_penalty=0.5, logit_bias={40: 2.0}, min_p=0.01, seed=3),
        Sampling(logprobs=5),
        Sampling(0.8, typical_p=0.9, presence_penalty=0.5, seed=5),
    ]
    return {"max_tokens": 10 + 7 * i, "sampling": samplings[i]}


@pytest.mark.parametrize("n_nodes", [1, 2, 4])
def test_each_of_many_requests_gets_the_text_it_would_get_alone(
    context: Context, model: ModelFile, start: Start, n_nodes: int
) -> None:
    with a_cluster(context, model, start) as address, Client(address) as client:
        alone = [text(client, prompt, **options_of(i)) for i, prompt in enumerate(PROMPTS)]
    assert len(set(alone)) == len(alone)
    together: list[str] = [""] * len(PROMPTS)

    def ask(i: int) -> None:
        with Client(address) as client:
            together[i] = text(client, PROMPTS[i], **options_of(i))

    with a_cluster(context, model, start, n_nodes) as address:
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(PROMPTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON_S)
    assert together == alone


def test_requests_of_one_client_run_at_the_same_time(context: Context, model: ModelFile, start: Start) -> None:
    with a_cluster(context, model, start) as address, Client(address) as client:
        first = client.generate("once upon a time", LONG, ignore_eos=True)
        assert next(answer for answer in first if isinstance(answer, TokenText))
        second = list(client.generate("the cat", 5, ignore_eos=True))
        assert isinstance(second[-1], Done)
        assert client.status().active == 1  # the first one, which goes on
        first.close()


def test_more_requests_than_sequences_wait_their_turn(context: Context, model: ModelFile, start: Start) -> None:
    with a_cluster(context, model, start, max_sequences=1) as address, Client(address) as client:
        first = client.generate("once upon a time", LONG, ignore_eos=True)
        assert next(answer for answer in first if isinstance(answer, TokenText))
        second = client.generate("the cat", 5, ignore_eos=True)
        assert isinstance(next(second), Queued)
        status = client.status()
        assert (status.active, status.queued) == (1, 1)
        assert [request.state for request in status.requests] == ["running", "waiting"]
        first.close()
        assert isinstance(list(second)[-1], Done)


def test_a_long_prompt_does_not_delay_another_clients_short_one(
    context: Context, model: ModelFile, start: Start
) -> None:
    with a_cluster(context, model, start) as address, Client(address) as one, Client(address) as another:
        long = one.generate([3 + i % 250 for i in range(6000)], 1, ignore_eos=True)  # 47 steps
        assert next(answer for answer in long if isinstance(answer, Prefill)).done < 6000
        assert isinstance(list(another.generate("the cat", 1, ignore_eos=True))[-1], Done)
        assert another.status().active == 1  # the long one
        long.close()


def test_a_cancelled_request_leaves_at_once_and_gives_its_pages_back(
    context: Context, model: ModelFile, start: Start
) -> None:
    with a_cluster(context, model, start) as address, Client(address) as client:
        answers = client.generate("once upon a time", LONG, ignore_eos=True)
        assert next(answer for answer in answers if isinstance(answer, TokenText))
        assert client.status().kv.in_use > 0
        answers.close()
        status = client.status()
        assert (status.active, status.kv.in_use) == (0, 0)


def test_a_request_leaves_at_its_stop_string_and_gives_its_pages_back(
    context: Context, model: ModelFile, start: Start
) -> None:
    with a_cluster(context, model, start) as address, Client(address) as client:
        whole = text(client, "once upon a time", max_tokens=60)
        stop = whole[50:53]
        answers = list(client.generate("once upon a time", LONG, ignore_eos=True, stop=["not there", stop]))
        joined = "".join(answer.text for answer in answers if isinstance(answer, TokenText | Done))
        assert joined == whole[: whole.index(stop)]
        assert isinstance(answers[-1], Done)
        assert answers[-1].reason == "stop"
        status = client.status()
        assert (status.active, status.kv.in_use) == (0, 0)


def test_text_held_back_for_a_stop_string_comes_at_the_end(context: Context, model: ModelFile, start: Start) -> None:
    with a_cluster(context, model, start) as address, Client(address) as client:
        whole = text(client, "once upon a time", max_tokens=60)
        answers = list(client.generate("once upon a time", 60, ignore_eos=True, stop=[whole[-5:] + "and more"]))
        assert "".join(answer.text for answer in answers if isinstance(answer, TokenText | Done)) == whole
        assert isinstance(answers[-1], Done)
        assert answers[-1].text.endswith(whole[-5:])
        assert answers[-1].reason == "length"


def test_a_client_that_vanishes_leaves_nothing_behind(context: Context, model: ModelFile, start: Start) -> None:
    with a_cluster(context, model, start) as address, Client(address) as client:
        with Client(address) as other:
            answers = other.generate("once upon a time", LONG, ignore_eos=True)
            assert next(answer for answer in answers if isinstance(answer, TokenText))
        until(lambda: client.status().active == 0, SOON_S, "the request of the client that has gone to end")
        assert client.status().kv.in_use == 0


def of_package() -> Counter[str]:
    """Every object of the package's classes in this process."""
    gc.collect()
    kinds = map(type, gc.get_objects())
    return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith("dllama_zmq"))


def test_requests_leave_no_object_behind(
    context: Context, model: ModelFile, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dllama_zmq.bus.peers._MAX_REMEMBERED", len(PROMPTS) + 1)  # who speaks at the same time here
    with a_cluster(context, model, start, max_sequences=4) as address:

        def ask(i: int) -> None:
            with Client(address) as client:
                for n in range(3):
                    answers = client.generate(
                        PROMPTS[i], 10 + n if n < 2 else LONG, ignore_eos=True, stop=["\0" * (n + 1)]
                    )
                    for _ in itertools.islice(answers, 8 + 8 * i):  # the shorter ones end before; the last vanishes
                        pass
                    if n < 2:
                        answers.close()

        def crowd() -> Counter[str]:
            with ThreadPoolExecutor(len(PROMPTS)) as pool:
                list(pool.map(ask, range(len(PROMPTS))))
            with Client(address) as client:
                until(lambda: client.status().active == 0, SOON_S, "requests of clients that have gone to end")
                text(client, "x", max_tokens=3)  # so that the last step is the same
            return of_package()

        crowd()
        first = crowd()
        crowd()
        until(lambda: not of_package() - first, SOON_S, f"objects to go: {of_package() - first}")


def test_a_prompt_that_was_there_before_is_not_evaluated_again(
    context: Context, model: ModelFile, start: Start
) -> None:
    prompt = "a b c d " * 30
    with a_cluster(context, model, start) as address, Client(address) as client:
        first = text(client, prompt, max_tokens=20)
        before = client.status().kv
        assert before.cached_tokens == 0
        answers = list(client.generate(prompt, max_tokens=20, ignore_eos=True))
        assert "".join(answer.text for answer in answers if isinstance(answer, TokenText | Done)) == first
        prefills = [answer for answer in answers if isinstance(answer, Prefill)]
        after = client.status().kv
    n_prompt = before.prompt_tokens
    assert after.prompt_tokens == 2 * n_prompt
    assert after.cached_tokens == (n_prompt - 1) // after.page_positions * after.page_positions > 0
    assert [prefill.cached_tokens for prefill in prefills] == [after.cached_tokens]
