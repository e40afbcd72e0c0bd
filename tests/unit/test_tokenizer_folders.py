"""The tokenizer of a folder: which file gives what, and what is doubted, left out or warned of."""

from __future__ import annotations

import base64
import json
import re

import pytest
from tiny import tiny_spec
from tokenizer_folders import CASES, write_folder
from tokenizer_folders import TEXTS as FOLDER_TEXTS
from tokenizer_sources import CONFIGS, ENCODED, GOLDEN, as_gguf, digests, folder_of, kept, marked, plain, source
from tokenizers_of import of_gguf, of_json

from dllama_zmq.errors import FormatError
from dllama_zmq.formats import read_tokenizer


def test_a_list_of_ranks_encodes_as_the_tokenizer_json_of_the_same_pieces(tmp_path):
    """Meta's Llama 3 folders: the same vocabulary, but 256 special tokens after it."""
    original = source("llama3.json")
    lines = [base64.b64encode(original.piece(token)) + b" %d\n" % token for token in range(995)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    tokenizer = read_tokenizer(tmp_path)
    assert digests(plain(tokenizer)) == ENCODED["llama3.json"]["plain"]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (995 + 256, 995, (996, 1003, 1004))
    assert tokenizer.encode("<|eot_id|>", specials=True) == [995, 1004]
    assert digests(marked(kept(tmp_path, tmp_path / "a.t"))) == digests(marked(tokenizer))


def test_a_folder_gives_its_tokenizer_json_and_what_lies_beside_it(tmp_path):
    folder = folder_of(
        tmp_path,
        {
            "tokenizer.json": GOLDEN / "qwen2.json",
            "tokenizer.model": GOLDEN / "bpe.model",
            "special_tokens_map.json": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
            "tokenizer_config.json": {
                "eos_token": "<|im_end|>",
                "bos_token": None,
                "chat_template": "{{ pad_token }}!",
            },
            "generation_config.json": {"eos_token_id": [997, 995]},
        },
    )
    tokenizer = read_tokenizer(folder)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (1000, None, (997, 995))
    assert tokenizer.chat_template().render([{"role": "user", "content": "x"}]) == "<|endoftext|>!"


def test_a_folder_without_a_tokenizer_json_gives_its_sentencepiece_model(tmp_path):
    folder = folder_of(
        tmp_path,
        {
            "tokenizer.model": GOLDEN / "bpe.model",
            "chat_template.jinja": "{{ bos_token }}?",
            "tokenizer_config.json": {"add_bos_token": False},
        },
    )
    tokenizer = read_tokenizer(folder)
    assert tokenizer.encode("the") == source("bpe.model").encode("the", bos=False)
    assert tokenizer.chat_template().render([{"role": "user", "content": "x"}]) == "<s>?"


def test_a_folder_without_either_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"no tokenizer\.json and no tokenizer\.model\. Put the model's own there"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_encodes_as_transformers_does(tmp_path, case):
    """But for one thing: transformers 5 puts no space before a text that begins with one. SentencePiece does, and so
    does the tokenizer.json of the same models."""
    spaced = re.compile({"sentencepiece, legacy": "(^|>) "}.get(case, "^ " if case.startswith("sentence") else "^$"))
    tokenizer = read_tokenizer(write_folder(tmp_path / "a", case))
    ids = json.loads((GOLDEN / "folders.json").read_text("utf-8"))[case]
    for text, wanted in zip(FOLDER_TEXTS, ids, strict=True):
        if not spaced.search(text):
            assert tokenizer.encode(text, bos=False, specials=True) == wanted, text


def test_a_prefix_that_two_files_disagree_on_is_doubted(tmp_path):
    folder = write_folder(tmp_path / "a", "truncation")
    (folder / "tokenizer.json").write_bytes((GOLDEN / "spaced.json").read_bytes())
    for words, doubted in (("{}", False), ('{"add_prefix_space": false}', True)):
        (folder / "tokenizer_config.json").write_text(words[:-1] + (", " if doubted else "") + '"eos_token": "</s>"}')
        assert ("add_prefix_space" in read_tokenizer(folder).mismatch_warning(tiny_spec(vocab_size=1000))) is doubted


def test_a_file_that_puts_several_tokens_before_a_text_is_doubted():
    file = json.loads((GOLDEN / "llama3.json").read_text("utf-8"))
    names = ["<|begin_of_text|>", "<|start_header_id|>"]
    ids = {entry["content"]: entry["id"] for entry in file["added_tokens"]}
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "pair": [],
        "single": [
            *({"SpecialToken": {"id": name, "type_id": 0}} for name in names),
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": names[1], "type_id": 0}},
        ],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names},
    }
    tokenizer = of_json(json.dumps(file), {"eos_token": "<|end_of_text|>"}, "a.json")
    assert tokenizer.encode("the")[0] == tokenizer.bos_id == ids[names[0]]
    assert "it puts 2 tokens before a text" in tokenizer.mismatch_warning(tiny_spec(vocab_size=1000))
    assert source("llama3.json").mismatch_warning(tiny_spec(vocab_size=1000)) == ""


def test_truncation_and_padding_of_the_training_do_not_change_a_prompt(tmp_path):
    for case in ("truncation", "padding"):
        tokenizer = read_tokenizer(write_folder(tmp_path / case, case))
        for text in ("abc", "x y " * 40):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_dropout_that_training_saved_is_switched_off_with_a_warning():
    file = json.loads((GOLDEN / "gpt2.json").read_text("utf-8"))
    file["model"]["dropout"] = 0.9
    tokenizer = of_json(json.dumps(file), CONFIGS["gpt2.json"], "a.json")
    text = "once upon a time there was a tokenizer " * 8
    assert tokenizer.encode(text) == source("gpt2.json").encode(text)
    assert "it has a dropout of 0.9, which is for training" in tokenizer.mismatch_warning(tiny_spec(vocab_size=1000))
    file["model"]["dropout"] = 0.0
    assert of_json(json.dumps(file), CONFIGS["gpt2.json"], "a.json").mismatch_warning(tiny_spec(vocab_size=1000)) == ""


def with_end_after(name: str) -> str:
    """The tokenizer.json with a post_processor that puts its last added token after a text."""
    file = json.loads((GOLDEN / name).read_text("utf-8"))
    end = file["added_tokens"][-1]
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "pair": [],
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end["content"], "type_id": 0}}],
        "special_tokens": {end["content"]: {"id": end["content"], "ids": [end["id"]], "tokens": [end["content"]]}},
    }
    return json.dumps(file)


@pytest.mark.parametrize(
    ("plain", "ending"),
    [
        (lambda: source("bpe.model"), lambda: source("bpe.model", add_eos_token=True)),
        (lambda: source("llama3.json"), lambda: source("llama3.json", add_eos_token=True)),
        (
            lambda: source("gpt2.json"),
            lambda: of_json(with_end_after("gpt2.json"), CONFIGS["gpt2.json"], "a.json"),
        ),
        *(
            (
                lambda name=name: of_gguf(as_gguf(name), "a.gguf"),
                lambda name=name: of_gguf(as_gguf(name) | {"tokenizer.ggml.add_eos_token": True}, "a.gguf"),
            )
            for name in ("bpe.model", "gpt2.json")
        ),
    ],
    ids=["sentencepiece", "tokenizer.json", "post_processor", "GGUF of llama", "GGUF of gpt2"],
)
def test_an_end_that_a_file_puts_after_each_text_is_left_out_with_a_warning(plain, ending):
    spec = tiny_spec(vocab_size=1000)
    assert ending().encode("the end") == plain().encode("the end")
    assert "it adds an end token to each text (add_eos_token, or its post_processor)" in ending().mismatch_warning(spec)
    assert "an end after each text" not in plain().mismatch_warning(spec)


def test_an_end_of_turn_of_a_folder_is_one_though_it_is_not_called_special(tmp_path):
    folder = write_folder(tmp_path / "a", "a token of the config alone")
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    for entry in file["added_tokens"]:
        entry["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(file))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    tokenizer = read_tokenizer(folder)
    end = tokenizer.specials["<|im_end|>"]
    assert end in tokenizer.eos_ids
    assert tokenizer.decode([end]) == ""
    assert end not in tokenizer.encode("a<|im_end|>b")


def test_an_eos_in_config_json_alone_is_found(tmp_path):
    folder = write_folder(tmp_path / "a", "truncation")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "config.json").write_text('{"eos_token_id": [996, 70000, -1]}')
    tokenizer = read_tokenizer(folder)
    assert 996 in tokenizer.eos_ids
    assert tokenizer.specials["<|im_end|>"] in tokenizer.eos_ids  # config.json seldom lists the ends of a turn


def test_added_tokens_beyond_the_embedding_are_allowed_with_a_warning(tmp_path):
    tokenizer = read_tokenizer(write_folder(tmp_path / "a", "a token of the config alone"))
    assert tokenizer.vocab_size == 1001
    tokenizer.check_fits(tiny_spec(vocab_size=1000), "a.safetensors")
    assert "can neither read nor write the last 1 (<tool_call>)" in tokenizer.mismatch_warning(
        tiny_spec(vocab_size=1000)
    )
    with pytest.raises(FormatError, match="has a vocabulary of 900"):
        tokenizer.check_fits(tiny_spec(vocab_size=900), "a.safetensors")


def test_one_file_is_named_once():
    tokenizer = of_gguf(as_gguf("gpt2.json"), "a.gguf")
    doubt = tokenizer.mismatch_warning(tiny_spec(vocab_size=32000), "a.gguf")
    assert doubt.startswith("a.gguf: its tokenizer has 1000 tokens, and its vocabulary is 32000: if the answers")
