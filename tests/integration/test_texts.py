"""What the front does with texts: prompts, chats and questions, while the engine is in a step that never ends."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from command_line import until
from gguf_writer import write_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from integration.front_alone import CONTEXT, N_IDS, SOON_S, Engine, front_alone, next_message, raw
from integration.nodes import Context
from integration.services import serving
from msgspec.structs import replace
from tiny import tiny_spec, tiny_tensors, tiny_tokenizer_data
from tokenizers_of import of_t

from dllama_zmq import Chat, Client
from dllama_zmq.bus.client_messages import NO_STEPS, Error, Generate, Started, TokenText
from dllama_zmq.bus.codec import encode
from dllama_zmq.bus.engine_messages import Readiness, Sampled, Stepped, Withdraw, Withdrawn
from dllama_zmq.bus.messages import PROTOCOL
from dllama_zmq.bus.prompts import MAX_PROMPT_BYTES, MAX_PROMPT_TOKENS, ChatText
from dllama_zmq.bus.text_messages import Detokenize, Tokenize, Tokens
from dllama_zmq.errors import ContextExceeded, FormatError, RequestError, UsageError
from dllama_zmq.formats import open_gguf, write_t
from dllama_zmq.front.encoding import PLACES as TEXTS
from dllama_zmq.front.fair_queue import MAX_REQUESTS
from dllama_zmq.sampling import GREEDY
from dllama_zmq.tokenizer import Tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% for tool in tools or [] %}[{{ tool.name }}]{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    "{% if enable_thinking %}<think>{% endif %}"
)
HANG_S = 1.0  # of CPU, instead of RENDER_S: what is endless takes as long as it may
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
SAYS = [{"role": "user", "content": "the cat"}]


def tokenizer_of(template: str | None) -> Tokenizer:
    return of_t(replace(tiny_tokenizer_data(), chat_template=template))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One whose templates are rendered in a process that lives as long as the module's tests."""
    tokenizer = tokenizer_of(TEMPLATE)
    tokenizer.chat_template().render(SAYS)
    return tokenizer


@pytest.fixture
def engine(context: Context, tokenizer: Tokenizer) -> Iterator[Engine]:
    with front_alone(context, tokenizer) as engine:
        engine.tell(Readiness(True, "", 60.0))
        yield engine


@pytest.fixture
def client(engine: Engine) -> Iterator[Client]:
    with Client(engine.address) as client:
        yield client


@pytest.fixture
def other_engine(context: Context, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """With a tokenizer of its own, whose templates may hang."""
    monkeypatch.setattr("dllama_zmq.tokenizer.chat.RENDER_S", HANG_S)
    with front_alone(context, tokenizer_of(TEMPLATE)) as engine:
        engine.tell(Readiness(True, "", 60.0))
        yield engine


def started(client: Client, prompt: Any, **options: Any) -> Started:
    """How a request begins, which ends with that."""
    answers = client.generate(prompt, **options)
    begun = next(answer for answer in answers if isinstance(answer, Started))
    answers.close()
    return begun


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_chat_is_rendered_by_the_model_s_template_and_its_names_are_tokens(
    engine: Engine, client: Client, tokenizer: Tokenizer
) -> None:
    begun = started(client, Chat(SAYS))
    text = "<s><|user|>the cat<|assistant|>"
    assert engine.submitted().tokens == tokenizer.encode(text, bos=False, specials=True)
    assert begun.prompt_end == text
    assert begun.prompt_tokens == len(tokenizer.encode(text, bos=False, specials=True))


@pytest.mark.parametrize(
    ("chat", "text"),
    [
        (Chat(SAYS, generation_prompt=False), "<s><|user|>the cat"),
        (Chat(SAYS, variables={"enable_thinking": True}), "<s><|user|>the cat<|assistant|><think>"),
        (Chat(SAYS, tools=[{"name": "add"}]), "<s><|user|>the cat[add]<|assistant|>"),
        (
            Chat([*SAYS, {"role": "assistant", "content": "sat "}], continues=True),
            "<s><|user|>the cat<|assistant|>sat ",
        ),
        (Chat(SAYS, template="chatml", generation_prompt=False), "<|im_start|>user\nthe cat<|im_end|>\n"),
        (Chat(SAYS, template_text="{{ messages[0].content }}{{ eos_token }}"), "the cat</s>"),
    ],
)
def test_a_chat_says_how_it_is_rendered(client: Client, chat: Chat, text: str) -> None:
    assert client.tokenize(chat).text == text


def test_the_end_of_a_long_prompt_is_256_characters(client: Client) -> None:
    assert started(client, "a" * 30 + "b").prompt_end == "a" * 30 + "b"
    text = Chat(SAYS, template_text=f"{{{{ '' }}}}{'the cat ' * 8}{'<s>' * 20}{'</s>' * 49}")
    with pytest.raises(ContextExceeded):
        started(client, text)


def test_a_chat_for_a_model_without_a_template_is_refused_with_how_to_choose_one(context: Context) -> None:
    with front_alone(context, tokenizer_of(None)) as engine, Client(engine.address) as client:
        engine.tell(Readiness(True, "", 60.0))
        for ask in (client.tokenize, client.text):
            with pytest.raises(RequestError, match=r"no chat template.*choose one by name: llama2, .*--template"):
                ask(Chat(SAYS))  # type: ignore[operator]
        assert client.model().template == ""
        assert client.tokenize(Chat(SAYS, template="zephyr")).text.startswith("<|user|>\nthe cat")


def test_a_prompt_may_be_ids_of_tokens(engine: Engine, client: Client) -> None:
    assert started(client, [1, 40, N_IDS - 1]).prompt_end == ""
    assert engine.submitted().tokens == [1, 40, N_IDS - 1]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([N_IDS], rf"token {N_IDS}; this model's tokens are 0 to {N_IDS - 1}"),
        ([1 << 31], r"token 2147483648"),
        ([], "the prompt is empty"),
        ([-1], "-1 is no token"),
        ([True], "True is no token"),
        (["the"], "'the' is no token"),
        (7, "int where a list of ids"),
        ([1] * (MAX_PROMPT_TOKENS + 1), "at most 100000 are sent"),
        ("x" * (MAX_PROMPT_BYTES + 1), f"at most {MAX_PROMPT_BYTES} are sent"),
        (Chat([{"role": "user", "content": "x" * (1 << 20)}]), f"the chat has .* bytes; at most {MAX_PROMPT_BYTES}"),
        (Chat([{"role": object()}]), "cannot be written as JSON"),
        (Chat([{"content": float("nan")}]), "cannot be written as JSON"),
        (Chat([]), "messages"),
        (Chat("hello"), "messages"),  # type: ignore[arg-type]
    ],
)
def test_a_value_that_is_no_prompt_is_refused(engine: Engine, client: Client, prompt: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        next(client.generate(prompt))
    assert not engine.heard()


def test_a_prompt_longer_than_the_context_says_both_numbers(client: Client) -> None:
    with pytest.raises(ContextExceeded) as caught:
        client.text([1] * 200)
    assert caught.value.numbers == (200, CONTEXT)


def test_a_lone_surrogate_becomes_a_replacement_character(client: Client) -> None:
    assert client.tokenize("a\ud800b").text == "a\ufffdb"
    assert client.tokenize(Chat([{"role": "user", "content": "a\ud800b"}])).text == "<s><|user|>a\ufffdb<|assistant|>"


def test_special_tokens_print_their_names_where_a_request_asks_for_them(
    engine: Engine, client: Client, tokenizer: Tokenizer
) -> None:
    (end,) = tokenizer.eos_ids
    for specials in (False, True):
        answers = client.generate("the cat", ignore_eos=True, specials=specials)
        assert isinstance(next(answers), Started)
        engine.tell(Stepped(NO_STEPS, [], [Sampled(engine.submitted().id, end, [])], []))
        piece = next(answers)
        assert isinstance(piece, TokenText)
        assert piece.text == ("</s>" if specials else "")
        answers.close()
        engine.hear()


# --- questions --------------------------------------------------------------------------------------------------------


def test_questions_are_answered_before_the_nodes_are_ready(context: Context, tokenizer: Tokenizer) -> None:
    with front_alone(context, tokenizer) as engine, Client(engine.address) as client:
        tokens = client.tokenize("the cat")
        assert tokens.tokens == tokenizer.encode("the cat")
        assert "".join(tokens.pieces) == "<s> the cat"
        assert tokens.text == "the cat"
        assert client.tokenize("</s>", bos=False, specials=True).tokens == list(tokenizer.eos_ids)
        assert client.tokenize("the cat", bos=False).tokens == tokens.tokens[1:]
        assert client.detokenize(tokens.tokens) == "the cat"
        assert client.detokenize([]) == ""
        with pytest.raises(RequestError, match=f"token {N_IDS}"):
            client.detokenize([N_IDS])
        assert not engine.heard()


def test_the_model_is_described(client: Client) -> None:
    model = client.model()
    assert (model.name, model.path, model.architecture, model.dim) == ("tiny", "/tiny.m", "llama", 64)
    assert (model.n_params, model.size_bytes, model.created) == (1000, 2000, 1)
    assert (model.seq_len, model.context, model.vocab_size) == (CONTEXT, CONTEXT, N_IDS)
    assert (model.bos, model.eos, model.template) == ("<s>", ["</s>"], TEMPLATE)


def test_an_embedding_that_is_the_output_matrix_too_is_counted_once(context: Context, tmp_path: Path) -> None:
    spec = tiny_spec()
    tensors = [(name, matrix) for name, matrix in tiny_tensors(spec) if name != "head"]
    write_t(tmp_path / "tied.t", tiny_tokenizer_data())
    with (
        open_gguf(write_llama(tmp_path / "tied.gguf", spec, tensors)) as tied,
        serving(context, tied, []) as address,
        Client(address) as client,
    ):
        assert client.model().n_params == sum(rows * columns for rows, columns in (m.shape for _, m in tensors))


def test_the_longest_text_of_a_message_is_tokenized_and_the_longest_answer_refused(client: Client) -> None:
    text = "once upon a time " * 5000
    assert client.detokenize(client.tokenize(text).tokens) == text
    with pytest.raises(RequestError, match=r"the answer has \d+ bytes; at most 1048576 are sent"):
        client.tokenize("\U0001f600" * (MAX_PROMPT_BYTES // 4))


def test_a_client_written_from_the_page_alone_has_a_chat(context: Context, engine: Engine) -> None:
    chat = json.dumps({"messages": [{"role": "user", "content": "hé"}], "of a later version": 1}, ensure_ascii=False)
    sampling = {"temperature": 0.0}
    with raw(context, engine.address) as client:
        client.send(msgpack.packb([PROTOCOL, "tokenize", 3, {"json": chat}, None, False]))
        (header,) = client.recv_multipart()
        protocol, kind, request, tokens, pieces, text = msgpack.unpackb(header)
        assert (protocol, kind, request, text) == (PROTOCOL, "tokens", 3, "<s><|user|>hé<|assistant|>")
        assert len(tokens) == len(pieces)
        ask = [PROTOCOL, "generate", 4, {"json": chat}, 9, sampling, False, [], None, 2, True]
        client.send(msgpack.packb(ask))
        (header,) = client.recv_multipart()
        assert msgpack.unpackb(header)[:4] == [PROTOCOL, "started", 4, len(tokens)]
        assert [engine.submitted().tokens for _ in range(2)] == [tokens, tokens]


# --- slow and hostile ones --------------------------------------------------------------------------------------------


def test_templates_that_hang_delay_no_other_client(other_engine: Engine) -> None:
    ended: list[float] = []

    def hang() -> None:
        with Client(other_engine.address) as client, pytest.raises(FormatError, match=r"it takes longer than 1\.0 s"):
            client.tokenize(Chat(SAYS, template_text=ENDLESS))
        ended.append(time.monotonic())

    threads = [threading.Thread(target=hang) for _ in range(TEXTS)]
    times = []
    with Client(other_engine.address) as client:
        client.tokenize(Chat(SAYS))  # the first of all starts a process
        for thread in threads:
            thread.start()
        while not ended:
            begun = time.monotonic()
            started(client, Chat(SAYS))
            times.append(time.monotonic() - begun)
            for message in other_engine.heard():
                if isinstance(message, Withdraw):
                    other_engine.tell(Withdrawn(message.id))
    for thread in threads:
        thread.join()
    print(f"{len(times)} chats began, after at most {max(times) * 1e3:.0f} ms")
    assert sorted(times)[len(times) // 2] < HANG_S / 2  # behind one that hangs it is all of HANG_S


def test_questions_without_end_are_refused_beyond_a_bound(context: Context, other_engine: Engine) -> None:
    with raw(context, other_engine.address) as flooder, Client(other_engine.address) as client:
        flooder.send_multipart(
            encode(Tokenize(1, ChatText(json.dumps({"messages": SAYS, "template_text": ENDLESS})), None, False))
        )
        n = MAX_REQUESTS + 20
        for i in range(2, n + 2):
            flooder.send_multipart(encode(Tokenize(i, "the cat", None, False)))
        first = [next_message(flooder) for _ in range(20)]
        assert {answer.kind for answer in first if isinstance(answer, Error)} == {"QueueFull"}
        assert client.tokenize("the cat").tokens
        rest = [next_message(flooder) for _ in range(n + 1 - 20)]
        n_answered = sum(isinstance(answer, Tokens) for answer in [*first, *rest])
        assert MAX_REQUESTS - 1 <= n_answered <= MAX_REQUESTS  # the slow one may have waited among them


DEEP = '{"messages":[{"a":' + "[" * 100_000 + "]" * 100_000 + "}]}"
NOT_CHATS = [
    "", "{", "[]", "7", "null", '"messages"', "{}", '{"messages":[]}', '{"messages":7}', '{"messages":[7]}',
    '{"messages":[{"a":NaN}]}', '{"messages":[{"a":1e999}]}', '{"messages":[{}],"tools":7}',
    '{"messages":[{}],"template":7}', '{"messages":[{}],"variables":[]}', '{"messages":[{}],"continues":"yes"}',
    '{"messages":[{"role":"user","content":"\\ud800"}', DEEP, "[" * 400_000,
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_CHATS, ids=range(len(NOT_CHATS)))
def test_messages_that_are_no_chat_are_refused_in_few_words(context: Context, engine: Engine, text: str) -> None:
    with raw(context, engine.address) as client:
        client.send_multipart(encode(Generate(5, ChatText(text), 1, GREEDY, False, [])))
        error = next_message(client)
        assert isinstance(error, Error)
        assert (error.id, error.kind) == (5, "RequestError")
        assert len(error.text) < 400
        assert not engine.heard()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.fixed_dictionaries(
    {"messages": st.lists(st.dictionaries(st.sampled_from(["role", "content"]), anything, max_size=2), max_size=3)},
    optional={
        "tools": anything,
        "template": anything,
        "variables": anything,
        "generation_prompt": anything,
        "continues": anything,
        "template_text": st.sampled_from([None, "", "{", "{{ messages }}", "{{ 1/0 }}"]),
    },
)


def test_any_chat_is_tokenized_or_refused(engine: Engine, client: Client) -> None:
    @settings(max_examples=150, deadline=None)
    @given(chat=fields | anything)
    def ask(chat: Any) -> None:
        written = Tokenize(next(client._ids), ChatText(json.dumps(chat)), None, False)
        with contextlib.suppress(RequestError, FormatError, UsageError):
            answer = client._asked(written, Tokens, SOON_S)
            assert len(answer.tokens) == len(answer.pieces)

    ask()
    assert client.tokenize("the cat").tokens


def test_a_message_beyond_the_bound_ends_its_connection_and_no_other(
    context: Context, engine: Engine, client: Client
) -> None:
    with raw(context, engine.address) as other:
        monitor = other.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        other.send_multipart(encode(Tokenize(1, "the cat", None, False)))
        assert isinstance(next_message(other), Tokens)
        other.send_multipart(encode(Detokenize(2, [1 << 30] * 200_000)))
        assert monitor.poll(round(SOON_S * 1000))
        other.disable_monitor()
        monitor.close(linger=0)
        assert client.tokenize("the cat").tokens


class Counting(Tokenizer):
    """Counts how often the text of a client that reads nothing is encoded."""

    def __init__(self) -> None:
        self.n = 0
        self.parts_of = tokenizer_of(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parts_of, name)

    def encode(self, text: str, bos: bool | None = None, specials: bool = False) -> list[int]:
        self.n += text == UNREAD
        return self.parts_of.encode(text, bos, specials)


UNREAD = "once upon a time " * 5000


def test_who_reads_no_answers_to_questions_gets_no_more_of_them(context: Context) -> None:
    counting, n = Counting(), 30
    with front_alone(context, counting) as engine, Client(engine.address) as client:
        deaf = context.socket(zmq.DEALER)
        deaf.set(zmq.RCVHWM, 1)
        deaf.connect(engine.address)
        try:
            for i in range(1, n + 1):
                deaf.send_multipart(encode(Tokenize(i, UNREAD, None, False)))
            until(lambda: counting.n, SOON_S, "the first of them to be in work")
            for _ in range(n):  # by turns with those of the other
                client.tokenize(UNREAD + "!")
            assert counting.n < n / 2
            answers = [next_message(deaf) for _ in range(n)]  # once it reads, it gets all
            assert all(isinstance(answer, Tokens) for answer in answers)
        finally:
            deaf.close(linger=0)
