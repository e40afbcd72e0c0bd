"""Templates of every family end their turns with a token that ends an answer, and write calls that the parser reads.

Names of tokens, `eos_token` of tokenizer_config.json and `eos_token_id` of generation_config.json are those of the
models named, on the Hugging Face hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conversations import CALL, RESULT, TOOL, USER
from deltas import parsed
from tokenizer_sources import GOLDEN, as_gguf, with_token
from tokenizers_of import of_gguf, of_json

from dllama_zmq.chat.history import for_template
from dllama_zmq.tokenizer import ChatTemplate, Tokenizer
from dllama_zmq.tokenizer.chat import renderers

FOLDER = Path(__file__).parents[1] / "golden" / "templates"
CHILDREN = renderers()
"""One process for all templates here, as for those of a tokenizer."""


class Turn(NamedTuple):
    template: str
    bos: str
    eos: str
    specials: list[str]
    listed: list[str]
    """The names of generation_config.json's eos_token_id."""


LLAMA2 = ["<s>", "</s>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA31 = [*LLAMA3, "<|eom_id|>", "<|python_tag|>"]
TEKKEN = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DEEPSEEK = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜tool▁calls▁begin｜>",
]
LLAMA3_ENDS = ["<|end_of_text|>", "<|eot_id|>"]
LLAMA31_ENDS = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
SENTENCE = "<｜end▁of▁sentence｜>"

TURNS = {
    "Llama 2 7B Chat": Turn("llama2", "<s>", "</s>", LLAMA2, ["</s>"]),
    "Llama 3 8B Instruct": Turn("llama3", LLAMA3[0], "<|eot_id|>", LLAMA3, LLAMA3_ENDS),
    "Llama 3.1 8B Instruct": Turn("llama3.1-tools", LLAMA3[0], "<|eot_id|>", LLAMA31, LLAMA31_ENDS),
    "Llama 3.2 3B Instruct": Turn("llama3.2-tools", LLAMA3[0], "<|eot_id|>", LLAMA31, LLAMA31_ENDS),
    "TinyLlama 1.1B Chat": Turn("zephyr", "<s>", "</s>", LLAMA2, ["</s>"]),
    "Mistral 7B Instruct v0.1": Turn("mistral-v1", "<s>", "</s>", LLAMA2, ["</s>"]),
    "Mistral 7B Instruct v0.3": Turn("mistral-v3-tools", "<s>", "</s>", TEKKEN[:5], ["</s>"]),
    "Mistral Small 24B Instruct 2503": Turn("mistral-v7", "<s>", "</s>", TEKKEN, ["</s>"]),
    "Magistral Small 2509": Turn("magistral", "<s>", "</s>", [*TEKKEN, "[THINK]", "[/THINK]", "[ARGS]"], ["</s>"]),
    "Qwen2.5 7B Instruct": Turn("qwen2.5-tools", "", "<|im_end|>", QWEN, ["<|im_end|>", "<|endoftext|>"]),
    "Qwen3 8B": Turn("qwen3", "", "<|im_end|>", QWEN, ["<|im_end|>", "<|endoftext|>"]),
    "Qwen3 Coder 30B A3B Instruct": Turn("qwen3-coder", "", "<|im_end|>", QWEN, ["<|im_end|>", "<|endoftext|>"]),
    "Hermes 3 Llama 3.1 8B": Turn(
        "hermes-tools", LLAMA3[0], "<|im_end|>", [*LLAMA31, "<|im_start|>", "<|im_end|>"], ["<|im_end|>", "<|eot_id|>"]
    ),
    "OpenHermes 2.5 Mistral 7B": Turn(
        "chatml", "<s>", "<|im_end|>", [*LLAMA2, "<|im_start|>", "<|im_end|>"], ["<|im_end|>"]
    ),
    "DeepSeek V2 Lite Chat": Turn("deepseek", DEEPSEEK[0], SENTENCE, DEEPSEEK[:2], [SENTENCE]),
    "DeepSeek R1 Distill Qwen 7B": Turn("deepseek-r1-distill", DEEPSEEK[0], SENTENCE, DEEPSEEK, [SENTENCE]),
    "DeepSeek V3.1": Turn("deepseek-v3.1", DEEPSEEK[0], SENTENCE, DEEPSEEK, [SENTENCE]),
    "Gemma 2 2B it": Turn(
        "gemma", "<bos>", "<eos>", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], ["<eos>", "<end_of_turn>"]
    ),
    "Phi 3.5 mini instruct": Turn(
        "phi3",
        "<s>",
        "<|endoftext|>",
        ["<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"],
        ["<|end|>", "<|assistant|>", "<|endoftext|>"],
    ),
}
TOOLS = [name for name, turn in TURNS.items() if "tools" in (FOLDER / f"{turn.template}.jinja").read_text("utf-8")]


def template_of(turn: Turn) -> str:
    return (FOLDER / f"{turn.template}.jinja").read_text("utf-8")


def tokenizer_of(turn: Turn, kind: str) -> Tokenizer:
    """The tokenizer of a model's files. kind: a folder with generation_config.json or without it, or a GGUF file."""
    if kind == "gguf":
        metadata: dict[str, Any] = as_gguf("gpt2.json")
        for name in turn.specials:
            metadata = with_token(metadata, name, 3)
        tokens = metadata["tokenizer.ggml.tokens"]
        ids = {"tokenizer.ggml.eos_token_id": tokens.index(turn.eos)}
        return of_gguf(metadata | ids | {"tokenizer.chat_template": template_of(turn)})
    file = json.loads((GOLDEN / "gpt2.json").read_text("utf-8"))
    first = 1 + max(file["model"]["vocab"].values())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    file["added_tokens"] = [{"id": first + n, "content": name, **flags} for n, name in enumerate(turn.specials)]
    file["model"]["vocab"] = {name: n for name, n in file["model"]["vocab"].items() if name != "<|endoftext|>"}
    config: dict[str, Any] = {
        "bos_token": turn.bos or None,
        "eos_token": turn.eos,
        "chat_template": template_of(turn),
    }
    if kind == "folder":
        config["eos_token_id"] = [first + turn.specials.index(name) for name in turn.listed]
    return of_json(json.dumps(file), config)


def answer_of(template: ChatTemplate, text: str, **message: Any) -> str:
    """What a template writes of the assistant's last message, after the prompt."""
    messages, tools = for_template(text, [USER, {"role": "assistant", **message}], [TOOL])
    variables = {"date_string": "26 Jul 2024"}
    prompt = template.render(messages[:-1], tools=tools, variables=variables)
    whole = template.render(messages, tools=tools, add_generation_prompt=False, variables=variables)
    shared = next(
        (n for n, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole))
    )
    return whole[shared:]


@pytest.mark.parametrize("kind", ["folder", "folder without generation_config.json", "gguf"])
@pytest.mark.parametrize("name", TURNS)
def test_a_turn_ends_with_a_token_that_ends_the_answer(name, kind):
    turn = TURNS[name]
    tokenizer = tokenizer_of(turn, kind)
    ends = {tokenizer.piece(token).decode(): token for token in tokenizer.eos_ids}
    assert set(ends) >= set(turn.listed) - {"<|assistant|>"} - ({"<|eot_id|>"} if name.startswith("Hermes") else set())
    if kind == "folder":
        assert set(ends) == {turn.eos, *turn.listed}
    answer = answer_of(tokenizer.chat_template(), template_of(turn), content="It is late.")
    before, found, after = answer.partition("It is late.")
    assert found
    assert not before.replace("<think>\n\n</think>", "").strip()
    tokens = tokenizer.encode(after, bos=False, specials=True)
    assert tokenizer.piece(tokens[0]).strip() == b"" or tokens[0] in ends.values()
    assert any(token in ends.values() for token in tokens[:2]), after


@pytest.mark.parametrize("name", TOOLS)
def test_the_parser_reads_the_calls_that_a_template_writes(name):
    text = template_of(TURNS[name])
    template = ChatTemplate({"default": text}, {"bos_token": "<s>", "eos_token": ""}, "a.gguf", CHILDREN)
    arguments = CALL["tool_calls"][0]["function"]["arguments"]
    message = {
        **CALL,
        "tool_calls": [
            {
                **CALL["tool_calls"][0],
                "function": {"name": "weather", "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
        ],
    }
    answer = answer_of(template, text, **message)
    for end in ("<|im_end|>", "<|eot_id|>", SENTENCE):
        answer = answer.partition(end)[0]
    found = parsed(answer, text, tools=[TOOL])
    assert [name for name, _ in found["calls"]] == ["weather"]
    assert json.loads(found["calls"][0][1]) == arguments
    assert "content" not in found


@pytest.mark.parametrize("name", TOOLS)
def test_a_conversation_of_calls_and_results_is_rendered(name):
    text = template_of(TURNS[name])
    template = ChatTemplate({"default": text}, {"bos_token": "<s>", "eos_token": "</s>"}, "a.gguf", CHILDREN)
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    calls = [{"id": f"call_{n}", "type": "function", "function": function} for n in range(2)]
    messages, tools = for_template(
        text,
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": calls},
            *({**RESULT, "tool_call_id": f"call_{n}", "content": f"{n} degrees"} for n in range(2)),
            {"role": "assistant", "content": "It is cold."},
            USER,
        ],
        [TOOL],
    )
    rendered = template.render(messages, tools=tools, variables={"date_string": "26 Jul 2024"})
    assert rendered.index("Oslo") < rendered.index("0 degrees") < rendered.index("1 degrees") < rendered.index("cold")
    assert '\\"city' not in rendered


@pytest.mark.parametrize("template", ["deepseek-r1-distill", "deepseek-v3.1"])
def test_a_template_that_writes_arguments_as_json_gets_an_object(template):
    text = (FOLDER / f"{template}.jinja").read_text("utf-8")
    newer = text.replace("tool['function']['arguments'] +", "tool['function']['arguments'] | tojson +")
    assert newer != text
    answers = [
        answer_of(ChatTemplate({"default": one}, {"bos_token": "", "eos_token": ""}, "a.gguf", CHILDREN), one, **CALL)
        for one in (text, newer)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("template", "marks"), [("magistral", "[THINK]{}[/THINK]"), ("qwen3", "<think>\n{}\n</think>")]
)
def test_the_thinking_of_an_earlier_turn_is_where_its_template_reads_it(template, marks):
    text = (FOLDER / f"{template}.jinja").read_text("utf-8")
    said = {"reasoning_content": "He asks for the weather.", "content": "Let me see."}
    messages, tools = for_template(text, [USER, {**CALL, **said}, RESULT], [TOOL])
    words = {"bos_token": "", "eos_token": "</s>"}
    rendered = ChatTemplate({"default": text}, words, "a.gguf", CHILDREN).render(messages, tools=tools)
    thought = rendered.index(marks.format("He asks for the weather."))
    assert thought < rendered.index("Let me see.") < rendered.index("São Paulo")


def test_a_message_that_is_gone_on_with_stays_a_text():
    text = template_of(TURNS["Magistral Small 2509"])
    last = {"role": "assistant", "reasoning_content": "Hm.", "content": "Let me"}
    messages, _ = for_template(text, [USER, last], None)
    template = ChatTemplate({"default": text}, {"bos_token": "", "eos_token": "</s>"}, "a.gguf", CHILDREN)
    assert template.render(messages, continues=True).endswith("[/INST]Let me")


@pytest.mark.parametrize("name", [name for name in TURNS if name not in TOOLS])
def test_a_template_that_knows_no_tools_gets_them_as_text(name):
    text = template_of(TURNS[name])
    template = ChatTemplate({"default": text}, {"bos_token": "<s>", "eos_token": "</s>"}, "a.gguf", CHILDREN)
    message = {**CALL, "tool_calls": [{**CALL["tool_calls"][0], "function": {"name": "weather", "arguments": "{}"}}]}
    messages, tools = for_template(text, [USER, message, RESULT], [TOOL])
    assert tools is None
    rendered = template.render(messages)
    explained, asked = rendered.index('"description": "The <weather>'), rendered.index("Hello")
    called = rendered.index("weather", asked)
    assert explained < asked < called < rendered.index(RESULT["content"])
    (call,) = parsed(rendered[called - 60 :], text, tools=[TOOL])["calls"]
    assert call == ["weather", "{}"]
    example = rendered[explained:asked].replace("{...}", "{}")
    name = "weather" if "tool▁sep" in example else '"weather"'
    assert parsed(example.replace("NAME", name), text, tools=[TOOL])["calls"] == [["weather", "{}"]]


def test_a_conversation_as_text_has_turns_of_two():
    template = ChatTemplate(
        {"default": template_of(TURNS["Mistral 7B Instruct v0.1"])},
        {"bos_token": "<s>", "eos_token": "</s>"},
        "a.gguf",
        CHILDREN,
    )
    call = {**CALL["tool_calls"][0], "function": {"name": "weather", "arguments": "{}"}}
    conversation = [
        USER,
        {**CALL, "tool_calls": [call, call]},
        RESULT,
        RESULT,
        USER,
        {"role": "assistant", "content": "Hm."},
        USER,
    ]
    messages, _ = for_template(template.text, conversation, [TOOL])
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
    result = f"<tool_response>\n{RESULT['content']}\n</tool_response>"
    assert f"[INST] {result}\n{result}\n{USER['content']} [/INST]" in template.render(messages)
