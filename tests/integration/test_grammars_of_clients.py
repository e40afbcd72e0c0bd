"""Grammars that clients send: read by the front, which no grammar holds up, and followed by the root."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from constrained import hot, schema
from integration.nodes import Context
from integration.services import serving
from tiny import tiny_spec, write_tiny_pair

from dllama_zmq import Client, Grammar
from dllama_zmq.bus.client_messages import Done, TokenText
from dllama_zmq.constraint.reading import READ_S
from dllama_zmq.errors import RequestError
from dllama_zmq.formats import ModelFile
from dllama_zmq.sampling import GREEDY, Sampling

PAIR = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"enum": ["x", "yé"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SLOW = schema({"type": "integer", "multipleOf": 1000003})
"""Seconds and hundreds of MB to compile."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_pair(tmp_path_factory.mktemp("model"), tiny_spec(seq_len=256)) as file:
        yield file


def answer(client: Client, grammar: Grammar | None, sampling: Sampling = GREEDY, n: int = 200) -> tuple[str, str]:
    said = list(client.generate("once upon a time", n, sampling, grammar=grammar))
    end = said[-1]
    assert isinstance(end, Done)
    return "".join(one.text for one in said if isinstance(one, TokenText | Done)), end.reason


def test_a_client_gets_what_its_schema_describes_token_by_token(context: Context, model: ModelFile) -> None:
    with serving(context, model, []) as address, Client(address) as client:
        for seed in range(3):
            text, reason = answer(client, schema(PAIR), hot(seed))
            assert (set(json.loads(text)), reason) == ({"a", "b"}, "stop")
        assert answer(client, schema(PAIR), n=2)[1] == "length"


def test_each_of_several_answers_is_what_the_schema_describes(context: Context, model: ModelFile) -> None:
    with serving(context, model, []) as address, Client(address) as client:
        texts = ["", "", ""]
        for said in client.generate("once upon a time", 200, hot(7), grammar=schema(PAIR), n=3):
            if isinstance(said, TokenText | Done):
                texts[said.index] += said.text
        assert texts == [answer(client, schema(PAIR), hot(seed))[0] for seed in (7, 8, 9)]
        assert all(set(json.loads(text)) == {"a", "b"} for text in texts)


def test_a_grammar_that_cannot_be_used_ends_its_request_and_no_other(context: Context, model: ModelFile) -> None:
    with serving(context, model, []) as address, Client(address) as client:
        alone = answer(client, None, n=30)
        for wrong in (Grammar("regex", "["), SLOW, Grammar("lark", "start: <|nobody|>")):
            with pytest.raises(RequestError, match=r"^the grammar \((regex|json_schema|lark)\)"):
                answer(client, wrong)
        assert answer(client, None, n=30) == alone
        assert answer(client, Grammar("regex", "[a-z]{2}"))[1] == "stop"  # its process was killed, and starts again


def test_answers_continue_while_a_slow_grammar_is_read(context: Context, model: ModelFile) -> None:
    with serving(context, model, []) as address, Client(address) as client, Client(address) as other:
        running = client.generate("the cat", 150, Sampling(temperature=1.0, seed=1), ignore_eos=True)
        next(answer for answer in running if isinstance(answer, TokenText))
        errors: list[RequestError] = []
        began = time.monotonic()

        def ask_for_it() -> None:
            with pytest.raises(RequestError) as caught:
                list(other.generate("the cat", 5, grammar=SLOW))
            errors.append(caught.value)

        thread = threading.Thread(target=ask_for_it)
        thread.start()
        said = list(running)
        assert isinstance(said[-1], Done)
        thread.join(READ_S + 40)
        assert "MiB" in str(errors[0])
        assert time.monotonic() - began < READ_S + 40


def test_who_leaves_while_his_grammar_is_compiled_leaves_nothing(context: Context, model: ModelFile) -> None:
    with serving(context, model, []) as address, Client(address) as client:
        for _ in range(5):
            answers = client.generate("the cat", 100, grammar=schema(PAIR))
            next(answers)
            answers.close()
        assert answer(client, schema(PAIR))[1] == "stop"
        assert client.status().active == 0


def test_special_tokens_come_where_a_grammar_names_them(tmp_path: Path) -> None:
    """The reader and the root name them alike."""
    import dllama_zmq

    with write_tiny_pair(tmp_path, tiny_spec(seq_len=256)), dllama_zmq.load(tmp_path / "tiny.m") as loaded:
        bos = loaded.tokenizer.piece(1).decode()
        assert 1 in loaded.tokenizer.silent
        text = "".join(loaded.generate("the cat", 9, grammar=Grammar("lark", f'start: "a" {bos} "b" {bos}')))
        assert text == "ab"
