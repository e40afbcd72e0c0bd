"""Chat templates render as transformers renders them, and the built-in ones as the published ones."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conversations import ASSISTANT, CONVERSATIONS, SYSTEM, USER
from msgspec.structs import replace
from tiny import tiny_tokenizer_data
from tokenizers_of import of_t

from dllama_zmq.errors import FormatError, RequestError, UsageError
from dllama_zmq.tokenizer import ChatTemplate
from dllama_zmq.tokenizer.chat import renderers

FOLDER = Path(__file__).parents[1] / "golden" / "templates"
RENDERED: dict[str, dict[str, str | dict[str, str]]] = json.loads((FOLDER / "rendered.json").read_text("utf-8"))
WORDS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [USER]
CHILDREN = renderers()
"""One process for all templates here, as for those of a tokenizer."""


def template(text: str, **named: str) -> ChatTemplate:
    return ChatTemplate({"default": text, **named}, WORDS, "a.t", CHILDREN)


def render(chat: ChatTemplate, conversation: dict[str, Any]) -> str:
    return chat.render(
        conversation["messages"],
        tools=conversation.get("tools"),
        add_generation_prompt=conversation.get("add_generation_prompt", True),
        variables=conversation.get("variables", {}),
    )


@pytest.fixture(scope="module", params=RENDERED)
def published(request) -> tuple[ChatTemplate, dict[str, Any]]:
    """A template of the golden folder, and what transformers made with it."""
    return template((FOLDER / f"{request.param}.jinja").read_text("utf-8")), RENDERED[request.param]


def test_every_template_of_the_folder_has_been_rendered():
    assert {path.stem for path in FOLDER.glob("*.jinja")} == set(RENDERED)
    assert all(set(by_conversation) == set(CONVERSATIONS) for by_conversation in RENDERED.values())


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_template_renders_as_transformers_renders_it(published, name):
    chat, rendered = published
    expected = rendered[name]
    if isinstance(expected, str):
        assert render(chat, CONVERSATIONS[name]) == expected
    else:
        with pytest.raises(RequestError) as caught:
            render(chat, CONVERSATIONS[name])
        assert expected["error"] in str(caught.value)


@pytest.mark.parametrize(
    ("builtin", "published", "names"),
    [
        ("llama2", "llama2", ["user", "no prompt", "system", "turns", "system and turns", "two of a kind"]),
        ("llama3", "llama3", ["user", "no prompt", "system", "turns", "system and turns", "two of a kind", "odd role"]),
        ("mistral", "mistral-v1", ["user", "no prompt", "turns", "nothing said", "two of a kind"]),
        ("chatml", "chatml", ["user", "no prompt", "system", "turns", "system and turns", "two of a kind", "odd role"]),
        ("zephyr", "zephyr", ["user", "no prompt", "system", "turns", "system and turns", "two of a kind"]),
        ("deepseek", "deepseek", ["user", "no prompt", "system", "turns", "system and turns", "two of a kind"]),
        ("gemma", "gemma", ["user", "no prompt", "turns", "two of a kind"]),
    ],
)
def test_a_built_in_template_is_the_published_one(builtin, published, names):
    chat = of_t(tiny_tokenizer_data()).chat_template(builtin)
    for name in names:
        expected = RENDERED[published][name]
        if isinstance(expected, str):
            assert render(chat, CONVERSATIONS[name]) == expected, name
        else:
            with pytest.raises(RequestError, match="roles must alternate"):
                render(chat, CONVERSATIONS[name])


def test_a_system_message_stands_before_the_first_turn_of_a_gemma_and_two_newlines():
    """As in Gemma 3's own template; Gemma 2's refuses one."""
    chat = of_t(tiny_tokenizer_data()).chat_template("gemma")
    turns = [("system", "Be brief."), ("user", " Hello "), ("assistant", "Hi."), ("user", "Who are you?")]
    assert chat.render([{"role": role, "content": content} for role, content in turns]) == (
        "<s><start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n"
        "<start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_the_file_s_own_template_is_taken_and_its_tokens_are_named():
    tokenizer = of_t(replace(tiny_tokenizer_data(), chat_template="{{ bos_token }}-{{ eos_token }}"))
    assert tokenizer.chat_template().render(MESSAGES) == "<s>-</s>"
    assert tokenizer.chat_template("chatml").render(MESSAGES).startswith("<|im_start|>user\n")


@pytest.mark.parametrize(
    ("specials", "starts"),
    [
        (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<s><|start_header_id|>user"),
        (["<|im_start|>", "<|im_end|>"], "<|im_start|>user"),
        (["[INST]", "[/INST]"], "<s>[INST] Hello"),
        (["<start_of_turn>", "<end_of_turn>"], "<s><start_of_turn>user"),
        (["<|user|>", "<|assistant|>"], "<|user|>\nHello"),
        (["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"], "<s>User: Hello"),
    ],
)
def test_special_tokens_determine_the_template_of_a_file_without_one(specials, starts):
    plain = tiny_tokenizer_data()
    data = replace(
        plain,
        pieces=[*plain.pieces, *(name.encode() for name in specials)],
        scores=[*plain.scores, *(0.0 for _ in specials)],
    )
    assert of_t(data).chat_template().render(MESSAGES).startswith(starts)


def test_no_template_and_no_telling_tokens_ask_for_a_name():
    tokenizer = of_t(tiny_tokenizer_data())
    with pytest.raises(RequestError, match="choose one by name: llama2, llama3, mistral, chatml, zephyr, deepseek"):
        tokenizer.chat_template()
    with pytest.raises(UsageError, match="'kilo' is not a chat template; expected one of llama2, "):
        tokenizer.chat_template("kilo")


def test_a_file_with_several_templates_has_one_for_tools():
    chat = template("plain", tool_use="tools: {{ tools | length }}")
    assert chat.render(MESSAGES) == "plain"
    assert chat.render(MESSAGES, tools=[{}, {}]) == "tools: 2"
    with pytest.raises(RequestError, match="choose one by name: rag"):
        ChatTemplate({"rag": "x"}, WORDS, "a.t").render(MESSAGES)


def test_strftime_now_is_the_time_of_this_machine():
    before = datetime.now().strftime("%Y-%m-%d %H:%M")
    shown = template("{{ strftime_now('%Y-%m-%d %H:%M') }}").render(MESSAGES)
    assert before <= shown <= datetime.now().strftime("%Y-%m-%d %H:%M")


def test_a_refusal_says_what_the_template_said_and_where():
    with pytest.raises(RequestError, match=r"a\.t: chat template, line 3, refuses this conversation: no such thing"):
        template("{% if true %}\n\n{{ raise_exception('no such thing') }}{% endif %}").render(MESSAGES)


def test_a_broken_template_is_refused_with_its_line():
    with pytest.raises(FormatError, match=r"a\.t: chat template, line 2: it is not a Jinja template"):
        template("{{ 1 }}\n{% if %}").render(MESSAGES)


def test_an_empty_conversation_and_what_is_no_message_are_refused():
    with pytest.raises(RequestError, match="the conversation is empty"):
        template("x").render([])
    with pytest.raises(RequestError, match="a message is a str"):
        template("x").render(["hello"])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="cannot be written as JSON"):
        template("x").render([{"role": object()}])


def test_long_conversations_and_answers_pass_through_whole():
    text = "ü😀x" * 300_000
    assert template("{{ messages[0].content }}").render([{"content": text}]) == text


def test_a_template_that_asks_whether_content_is_none_gets_it():
    """As DeepSeek's R1 distillations are published: transformers 5.24, which leaves the key out, fails on it."""
    chat = template(
        "{% for m in messages %}{% if m['content'] is none %}<call>{{ m['tool_calls'][0]['name'] }}"
        "{% elif m['role'] == 'assistant' %}{% set content = m['content'].split('</think>')[-1] %}{{ content }}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert chat.render([USER, call]) == USER["content"] + "<call>f"
    with pytest.raises(RequestError, match="has no attribute 'content'"):
        chat.render([USER, {"role": "assistant", "tool_calls": [{"name": "f"}]}])


def test_one_template_renders_one_conversation_after_another():
    chat = template(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    )
    assert [chat.render([USER] * n) for n in (1, 3, 2)] == ["1", "3", "2"]
    assert chat.render([SYSTEM, USER, ASSISTANT]) == "3"


@pytest.mark.parametrize(
    ("text", "content", "expected"),
    [
        ("{{ messages[-1].content }}<end>", "I am ", "I am "),
        ("{{ messages[-1].content | trim }}<end>", "I am \n", "I am"),
        ("a\n\n{{ messages[-1].content | trim }}<end>", "", "a\n\n"),
        ("{{ messages[-1].content.split('</think>')[-1].lstrip() }}<end>", "<think>x</think> I", "I"),
        ("{{ messages[0].content }}, {{ messages[-1].content }}<end>", "Hello", "Hello, Hello"),
    ],
)
def test_a_message_that_is_gone_on_with_ends_the_text(text, content, expected):
    chat = template(text + "{% if add_generation_prompt %}never{% endif %}")
    assert chat.render([USER | {"content": "Hello"}, {"role": "assistant", "content": content}], continues=True) == (
        expected
    )


def test_a_message_that_cannot_be_gone_on_with_is_refused():
    with pytest.raises(RequestError, match="so it cannot be continued"):
        template("always this").render(MESSAGES, continues=True)
    with pytest.raises(RequestError, match="has no text, so it cannot be continued"):
        template("{{ messages[-1].content }}").render([{"role": "assistant", "content": None}], continues=True)


def test_variables_cannot_replace_what_a_chat_is_made_of():
    with pytest.raises(RequestError, match="variable messages is part of the chat itself"):
        template("x").render(MESSAGES, variables={"messages": []})


def test_a_template_of_the_caller_s_own_knows_the_tokens_of_the_file():
    tokenizer = of_t(tiny_tokenizer_data())
    assert tokenizer.chat_template(text="{{ bos_token }}{{ messages | length }}").render(MESSAGES) == "<s>1"


def test_a_decoder_names_special_tokens_where_it_is_asked_to():
    tokenizer = of_t(tiny_tokenizer_data())
    shown = [tokenizer.decoder(specials=specials).push(tokenizer.eos_ids[0]) for specials in (False, True)]
    assert shown == ["", "</s>"]


def test_a_template_that_hangs_holds_up_no_other_of_its_tokenizer(monkeypatch):
    monkeypatch.setattr("dllama_zmq.tokenizer.chat.RENDER_S", 0.5)  # of CPU: it takes all of that
    tokenizer = of_t(tiny_tokenizer_data())
    quick = tokenizer.chat_template(text="quick")
    quick.render(MESSAGES)
    hung = threading.Thread(target=lambda: fails(tokenizer.chat_template(text=ENDLESS)))
    hung.start()
    for _ in range(3):
        assert quick.render(MESSAGES) == "quick"
        assert hung.is_alive()
    hung.join()


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def fails(chat: ChatTemplate) -> None:
    with pytest.raises(FormatError, match=r"it takes longer than 0\.5 s"):
        chat.render(MESSAGES)
