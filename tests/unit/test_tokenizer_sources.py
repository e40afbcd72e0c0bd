"""Every kind of tokenizer file encodes and decodes as its source library does, on more than 5,000 varied texts."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from corpus import SAMPLES, corpus
from gguf_writer import Typed, gguf_bytes
from tiny import tiny_spec
from tokenizer_folders import CASES, write_folder
from tokenizer_folders import TEXTS as FOLDER_TEXTS

from dllama_zmq.errors import FormatError, RequestError, UnsupportedModel, UsageError
from dllama_zmq.formats import read_tokenizer, write_t
from dllama_zmq.formats.tokenizers import tokenizer_files, write_tokenizer
from dllama_zmq.tokenizer import Tokenizer, TokenizerData

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizers"
ENCODED = json.loads((GOLDEN / "encoded.json").read_text("utf-8"))
TEXTS = corpus()
CONFIGS: dict[str, dict[str, Any]] = {
    "bpe.model": {"add_bos_token": True},
    "unigram.model": {"add_bos_token": False},
    "llama3.json": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    "qwen2.json": {"bos_token": None, "eos_token": {"content": "<|im_end|>"}, "add_bos_token": False},
    "gpt2.json": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "spaced.json": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
}
BYTE_LEVEL = ["llama3.json", "qwen2.json", "gpt2.json"]


def source(name: str, **more: Any) -> Tokenizer:
    """The tokenizer of a golden file, with what a model's other files would say."""
    config = CONFIGS[name] | more
    if name.endswith(".model"):
        return Tokenizer.from_sentencepiece((GOLDEN / name).read_bytes(), name, config)
    return Tokenizer.from_json((GOLDEN / name).read_text("utf-8"), config, name)


def digests(encode: Callable[[str], list[int]]) -> list[str]:
    chunks = [TEXTS[start : start + 100] for start in range(0, len(TEXTS), 100)]
    return [hashlib.sha256(json.dumps([encode(text) for text in chunk]).encode()).hexdigest()[:16] for chunk in chunks]


def plain(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.encode(text, bos=False)


def marked(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.encode(text, bos=False, specials=True)


def as_gguf(name: str) -> dict[str, Any]:
    """The metadata that a GGUF file of a golden tokenizer would have."""
    head = "tokenizer.ggml."
    if name == "bpe.model":
        library = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / name))
        ids = range(library.vocab_size())
        kinds = [
            2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1 for i in ids
        ]
        return {
            f"{head}model": "llama", f"{head}tokens": [library.id_to_piece(i) for i in ids], f"{head}token_type": kinds,
            f"{head}scores": [library.get_score(i) for i in ids], f"{head}bos_token_id": 1, f"{head}eos_token_id": 2,
            f"{head}add_space_prefix": True,
        }  # fmt: skip
    file = json.loads((GOLDEN / name).read_text("utf-8"))
    tokens = {token: piece for piece, token in file["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, 1)
    for added in file["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], 3 if added["special"] else 4
    ids_by_name = {piece: token for token, piece in tokens.items()}
    ends = {"llama3.json": "<|end_of_text|>", "qwen2.json": "<|im_end|>", "gpt2.json": "<|endoftext|>"}
    begins = {"llama3.json": "<|begin_of_text|>", "qwen2.json": "<|endoftext|>", "gpt2.json": "<|endoftext|>"}
    return {
        f"{head}model": "gpt2",
        f"{head}pre": {"llama3.json": "llama-bpe", "qwen2.json": "qwen2", "gpt2.json": "gpt-2"}[name],
        f"{head}tokens": [tokens[token] for token in range(len(tokens))],
        f"{head}token_type": [kinds[token] for token in range(len(tokens))],
        f"{head}merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in file["model"]["merges"]],
        f"{head}bos_token_id": ids_by_name[begins[name]], f"{head}eos_token_id": ids_by_name[ends[name]],
        f"{head}add_bos_token": name == "llama3.json",
    }  # fmt: skip


def test_the_corpus_is_that_of_the_golden_file():
    assert len(TEXTS) == ENCODED["texts"] >= 5000


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_encodes_as_its_source_library(name):
    tokenizer = source(name)
    assert [tokenizer.encode(text, bos=False) for text in TEXTS[:40]] == ENCODED[name]["ids"]
    assert digests(plain(tokenizer)) == ENCODED[name]["plain"]


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "spaced.json"])
def test_a_tokenizer_json_finds_special_tokens_where_it_is_asked_to(name):
    assert digests(marked(source(name))) == ENCODED[name]["marked"]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_text_becomes_a_special_token_unasked(name):
    tokenizer = source(name)
    controls = set(tokenizer.specials.values())
    assert controls
    assert not controls & {token for text in TEXTS for token in tokenizer.encode(text, bos=False)}


@pytest.mark.parametrize("name", ["bpe.model", *BYTE_LEVEL])
def test_gguf_metadata_encodes_as_the_source(name):
    tokenizer = Tokenizer.from_gguf(as_gguf(name), "a.gguf")
    assert digests(plain(tokenizer)) == ENCODED[name]["plain"]
    assert tokenizer.vocab_size == source(name).vocab_size
    if name in BYTE_LEVEL:
        assert digests(marked(tokenizer)) == ENCODED[name]["marked"]


def as_t(name: str) -> TokenizerData:
    """The vocabulary of a golden tokenizer as a converter of `.t` files writes it."""
    original = source(name)
    pieces = [original.piece(token) for token in range(original.vocab_size)]
    if name == "bpe.model":
        library = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / name))
        scores = [library.get_score(token) for token in range(len(pieces))]
        return TokenizerData(pieces, scores, 1, original.eos_ids)
    bos_id = original.bos_id if original.bos_id is not None else min(original.specials.values())
    add_bos = original.encode("a") != original.encode("a", bos=False)
    return TokenizerData(pieces, [-float(token) for token in range(len(pieces))], bos_id, original.eos_ids, add_bos)


@pytest.mark.parametrize("name", ["bpe.model", *BYTE_LEVEL])
def test_a_t_file_of_a_tokenizer_encodes_as_the_source(tmp_path, name):
    original = source(name)
    write_t(tmp_path / "a.t", as_t(name))
    tokenizer = read_tokenizer(tmp_path / "a.t")
    assert digests(plain(tokenizer)) == ENCODED[name]["plain"]
    assert digests(marked(tokenizer)) == digests(marked(original))
    assert (tokenizer.eos_ids, tokenizer.vocab_size) == (original.eos_ids, original.vocab_size)
    for text in SAMPLES:
        assert tokenizer.encode(text) == original.encode(text)  # the BOS, or none, by default


def kept(path: Path, out: Path) -> Tokenizer:
    """The tokenizer at `path`, copied to `out`."""
    write_tokenizer(out, tokenizer_files(path))
    return read_tokenizer(out)


@pytest.mark.parametrize("name", [*CONFIGS, "a.gguf", "a.t"])
def test_a_tokenizer_that_is_kept_beside_another_model_encodes_as_before(tmp_path, name):
    """With all that lies beside it, and without the rest of a GGUF."""
    folder, template = tmp_path / "source", "{{ messages[0].content }}!"
    folder.mkdir()
    path = folder
    if name == "a.gguf":
        path = folder / name
        metadata = as_gguf("qwen2.json") | {
            "tokenizer.chat_template": template,
            "general.name": "a name",
            "split.no": 1,
        }
        metadata["tokenizer.ggml.token_type"] = Typed("i32", metadata["tokenizer.ggml.token_type"])
        path.write_bytes(gguf_bytes(metadata))
    elif name == "a.t":
        path = folder / name
        write_t(path, replace(as_t("llama3.json"), chat_template=template))
    else:
        config = {key: value for key, value in CONFIGS[name].items() if key != "eos_token"}
        folder_of(folder, {
            f"tokenizer{Path(name).suffix}": GOLDEN / name, "tokenizer_config.json": config,
            "special_tokens_map.json": {key: value for key, value in CONFIGS[name].items() if key == "eos_token"},
            "generation_config.json": {"eos_token_id": [2, 5]}, "config.json": {"eos_token_id": 7},
            "chat_template.jinja": template, "weights.safetensors": "large",
        })  # fmt: skip
    original, copy = read_tokenizer(path), kept(path, tmp_path / "copy.t")
    assert digests(marked(copy)) == digests(marked(original))
    assert (copy.eos_ids, copy.bos_id, copy.specials) == (original.eos_ids, original.bos_id, original.specials)
    assert copy.chat_template().render([{"role": "user", "content": "x"}]) == "x!"
    assert not (tmp_path / "copy.t" / "weights.safetensors").exists()
    (tmp_path / "copy.m").write_bytes(b"")
    assert read_tokenizer(tmp_path / "copy.t").vocab_size == original.vocab_size


def test_a_tokenizer_that_is_kept_replaces_the_one_that_is_there_whole(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    folder_of(one, {"tokenizer.json": GOLDEN / "qwen2.json", "tokenizer_config.json": {"eos_token": "<|im_end|>"}})
    folder_of(other, {"tokenizer.model": GOLDEN / "bpe.model"})
    kept(one, tmp_path / "a.t")
    assert kept(other, tmp_path / "a.t").eos_ids == (2,)
    write_t(tmp_path / "b.t", as_t("gpt2.json"))
    with pytest.raises(UsageError, match=r"b\.t is a file, and this tokenizer needs a folder"):
        kept(one, tmp_path / "b.t")
    with pytest.raises(UsageError, match=r"a\.t is not a regular file"):
        kept(tmp_path / "b.t", tmp_path / "a.t")


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_equals_the_source_library(name):
    tokenizer = source(name)
    if name.endswith(".model"):
        library = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / name))
        expected = library.decode
    else:
        library = tokenizers.Tokenizer.from_file(str(GOLDEN / name))
        expected = library.decode  # special tokens left out
    for text in TEXTS:
        tokens = tokenizer.encode(text, bos=False)
        assert tokenizer.decode(tokens) == expected(tokens), text


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "spaced.json"])
def test_decoding_tokens_that_are_no_utf_8_together_equals_the_source_library(name):
    tokenizer, rng = source(name), random.Random(7)
    if name.endswith(".model"):
        library = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / name))
        singles = [token for token in range(library.vocab_size()) if library.is_byte(token)]
    else:
        library = tokenizers.Tokenizer.from_file(str(GOLDEN / name))
        singles = [token for token in range(1000) if len(tokenizer.piece(token)) == 1]
    others = [token for token in range(3, tokenizer.vocab_size) if tokenizer.decode([token])]
    for _ in range(3000):
        tokens = [rng.choice(singles if rng.random() < 0.7 else others) for _ in range(rng.randint(1, 8))]
        assert tokenizer.decode(tokens) == library.decode(tokens), [tokenizer.piece(token) for token in tokens]


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_token_by_token_shows_whole_characters_only(name):
    tokenizer = source(name)
    for text in SAMPLES:
        tokens = tokenizer.encode(text)
        decoder = tokenizer.decoder(continues=False)
        parts = [decoder.push(token) for token in tokens]
        whole = "".join(parts) + decoder.flush()
        assert whole == tokenizer.decode(tokens)
        if "\ufffd" not in text:
            assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize(
    ("name", "bos", "eos", "first"),
    [
        ("bpe.model", 1, (2,), 1),
        ("llama3.json", 995, (996, 999), 995),
        ("qwen2.json", None, (997, 995), None),
        ("gpt2.json", 999, (999,), None),
        ("spaced.json", 1, (2,), 1),
    ],
)
def test_bos_and_eos_are_what_the_files_say(name, bos, eos, first):
    tokenizer = source(name)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (bos, eos)
    assert tokenizer.encode("the ")[0] == (first or tokenizer.encode("the ", bos=False)[0])


def test_a_model_without_a_bos_gives_none_and_refuses_to_put_one():
    with pytest.raises(RequestError, match=r"qwen2\.json: this tokenizer has no BOS token"):
        source("qwen2.json").encode("a", bos=True)


def test_tokens_that_are_not_special_are_found_in_any_text_and_printed():
    tokenizer = source("qwen2.json")
    tokens = tokenizer.encode("<think>a</think><|im_end|>", specials=True)
    assert [tokenizer.piece(token) for token in tokens] == [b"<think>", b"a", b"</think>", b"<|im_end|>"]
    assert tokenizer.encode("<think>") == tokens[:1]
    assert tokenizer.decode(tokens) == "<think>a</think>"


def test_sentencepiece_controls_are_found_on_demand_and_text_between_them_is_encoded_by_itself():
    tokenizer = source("bpe.model")
    between = tokenizer.encode("the cat", bos=False)
    expected = [1, tokenizer.specials["[INST]"], *between, tokenizer.specials["[/INST]"]]
    assert tokenizer.encode("<s>[INST]the cat[/INST]", bos=False, specials=True) == expected


def test_tokens_added_beside_a_sentencepiece_model_are_part_of_it(tmp_path):
    added = {"1000": {"content": "<|im_start|>", "special": True}, "1001": {"content": "<tool>", "special": False}}
    tokenizer = source("bpe.model", added_tokens_decoder=added)
    assert tokenizer.vocab_size == 1002
    assert tokenizer.encode("<|im_start|><tool>", bos=False, specials=True) == [1000, 1001]
    assert tokenizer.encode("<tool>", bos=False) == [1001]
    assert 1000 not in tokenizer.encode("<|im_start|>", bos=False)
    assert tokenizer.decode([1000, 1001]) == "<tool>"


def test_a_normalizing_sentencepiece_model_encodes_as_the_library():
    """With the precompiled rules that most unigram models carry."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([s for s in SAMPLES if s.strip()] * 20), model_writer=model, model_type="unigram",
        vocab_size=500, character_coverage=0.98, num_threads=1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = Tokenizer.from_sentencepiece(model.getvalue(), "a.model")
    assert [tokenizer.encode(text, bos=False) for text in TEXTS] == library.encode(TEXTS)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("default", "a12345=b", ["a", "123", "45", "=", "b"]),
        ("smollm", "it's 12", ["it", "'s", " ", "1", "2"]),
        ("deepseek-coder", " ab 12\n", [" ab", " ", "1", "2", "\n"]),
        ("deepseek-v3", "ab12345 .c", ["ab", "123", "45", " .", "c"]),
        ("tekken", "fooBar12 (x", ["foo", "Bar", "1", "2", " (", "x"]),
        ("gpt-4o", "It's FooBar1234", ["It's", " Foo", "Bar", "123", "4"]),
        ("qwen35", "e\u0301a_b 12", ["\u00e9a", "_b", " ", "1", "2"]),
    ],
)
def test_pre_tokenizers_split_as_worked_by_hand(pre, text, pieces):
    """A vocabulary of which every piece here is a token, so that what is split stays whole."""
    bytes_only = [token for token in as_gguf("gpt2.json")["tokenizer.ggml.tokens"] if len(token) == 1]
    chars = {value: char for char, value in zip(bytes_only, map(ord, bytes_only), strict=True) if value < 256}
    assert chars
    library = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [library.pre_tokenize_str(piece)[0][0] for piece in pieces]
    tokens = list(dict.fromkeys([*bytes_only, *(word[:n] for word in words for n in range(2, len(word) + 1))]))
    merges = [f"{token[:-1]} {token[-1]}" for token in tokens if len(token) > 1]
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": [*tokens, "<end>"],
        "tokenizer.ggml.merges": merges, "tokenizer.ggml.token_type": [1] * len(tokens) + [3],
        "tokenizer.ggml.eos_token_id": len(tokens), "tokenizer.ggml.bos_token_id": len(tokens),
    }  # fmt: skip
    tokenizer = Tokenizer.from_gguf(metadata, "a.gguf")
    assert [tokenizer.piece(token).decode() for token in tokenizer.encode(text, bos=False)] == pieces


def test_an_unknown_pre_tokenizer_or_kind_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"a\.gguf: tokenizer\.ggml\.pre is 'kilo'.*it knows .*llama-bpe.*qwen2"):
        Tokenizer.from_gguf(as_gguf("gpt2.json") | {"tokenizer.ggml.pre": "kilo"}, "a.gguf")
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.ggml\.model is 't5'; this version reads llama .* and gpt2"):
        Tokenizer.from_gguf(as_gguf("gpt2.json") | {"tokenizer.ggml.model": "t5"}, "a.gguf")


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


def folder_of(tmp_path: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        if isinstance(content, Path):
            (tmp_path / name).write_bytes(content.read_bytes())
        else:
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return tmp_path


def test_a_folder_gives_its_tokenizer_json_and_what_lies_beside_it(tmp_path):
    folder = folder_of(tmp_path, {
        "tokenizer.json": GOLDEN / "qwen2.json", "tokenizer.model": GOLDEN / "bpe.model",
        "special_tokens_map.json": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": "{{ pad_token }}!"},
        "generation_config.json": {"eos_token_id": [997, 995]},
    })  # fmt: skip
    tokenizer = read_tokenizer(folder)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (1000, None, (997, 995))
    assert tokenizer.chat_template().render([{"role": "user", "content": "x"}]) == "<|endoftext|>!"


def test_a_folder_without_a_tokenizer_json_gives_its_sentencepiece_model(tmp_path):
    folder = folder_of(tmp_path, {"tokenizer.model": GOLDEN / "bpe.model", "chat_template.jinja": "{{ bos_token }}?",
                                  "tokenizer_config.json": {"add_bos_token": False}})  # fmt: skip
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
        "type": "TemplateProcessing", "pair": [],
        "single": [*({"SpecialToken": {"id": name, "type_id": 0}} for name in names),
                   {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": names[1], "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names},
    }  # fmt: skip
    tokenizer = Tokenizer.from_json(json.dumps(file), {"eos_token": "<|end_of_text|>"}, "a.json")
    assert tokenizer.encode("the")[0] == tokenizer.bos_id == ids[names[0]]
    assert "it puts 2 tokens before a text" in tokenizer.mismatch_warning(tiny_spec(vocab_size=1000))
    assert source("llama3.json").mismatch_warning(tiny_spec(vocab_size=1000)) == ""


def test_what_training_saved_does_not_cut_or_fill_a_prompt(tmp_path):
    for case in ("truncation", "padding"):
        tokenizer = read_tokenizer(write_folder(tmp_path / case, case))
        for text in ("abc", "x y " * 40):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_dropout_that_training_saved_is_switched_off_and_told():
    file = json.loads((GOLDEN / "gpt2.json").read_text("utf-8"))
    file["model"]["dropout"] = 0.9
    tokenizer = Tokenizer.from_json(json.dumps(file), CONFIGS["gpt2.json"], "a.json")
    text = "once upon a time there was a tokenizer " * 8
    assert tokenizer.encode(text) == source("gpt2.json").encode(text)
    assert "it has a dropout of 0.9, which is for training" in tokenizer.mismatch_warning(tiny_spec(vocab_size=1000))
    file["model"]["dropout"] = 0.0
    assert (
        Tokenizer.from_json(json.dumps(file), CONFIGS["gpt2.json"], "a.json").mismatch_warning(
            tiny_spec(vocab_size=1000)
        )
        == ""
    )


def with_end_after(name: str) -> str:
    """The tokenizer.json with a post_processor that puts its last added token after a text."""
    file = json.loads((GOLDEN / name).read_text("utf-8"))
    end = file["added_tokens"][-1]
    file["post_processor"] = {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end["content"], "type_id": 0}}],
        "special_tokens": {end["content"]: {"id": end["content"], "ids": [end["id"]], "tokens": [end["content"]]}},
    }  # fmt: skip
    return json.dumps(file)


@pytest.mark.parametrize(
    ("plain", "ending"),
    [
        (lambda: source("bpe.model"), lambda: source("bpe.model", add_eos_token=True)),
        (lambda: source("llama3.json"), lambda: source("llama3.json", add_eos_token=True)),
        (
            lambda: source("gpt2.json"),
            lambda: Tokenizer.from_json(with_end_after("gpt2.json"), CONFIGS["gpt2.json"], "a.json"),
        ),
        *(
            (
                lambda name=name: Tokenizer.from_gguf(as_gguf(name), "a.gguf"),
                lambda name=name: Tokenizer.from_gguf(as_gguf(name) | {"tokenizer.ggml.add_eos_token": True}, "a.gguf"),
            )
            for name in ("bpe.model", "gpt2.json")
        ),
    ],
    ids=["sentencepiece", "tokenizer.json", "post_processor", "GGUF of llama", "GGUF of gpt2"],
)
def test_an_end_that_a_file_puts_after_each_text_is_not_put_and_told(plain, ending):
    spec = tiny_spec(vocab_size=1000)
    assert ending().encode("the end") == plain().encode("the end")
    assert "it puts an end after each text (add_eos_token, or its post_processor)" in ending().mismatch_warning(spec)
    assert "an end after each text" not in plain().mismatch_warning(spec)


def llama_gguf(**changes: Any) -> dict[str, Any]:
    return as_gguf("bpe.model") | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def with_token(metadata: dict[str, Any], text: str, kind: int, score: float = 0.0) -> dict[str, Any]:
    head = "tokenizer.ggml."
    more = {f"{head}tokens": text, f"{head}token_type": kind, f"{head}scores": score}
    return metadata | {key: [*metadata[key], value] for key, value in more.items() if key in metadata}


def test_a_gguf_s_user_defined_tokens_cut_a_text_as_those_of_a_folder_do(tmp_path):
    gguf = Tokenizer.from_gguf(with_token(llama_gguf(), "<tool_call>", 4), "a.gguf")
    folder = read_tokenizer(write_folder(tmp_path / "a", "sentencepiece, legacy"))
    for text in FOLDER_TEXTS:
        for specials in (False, True):
            assert gguf.encode(text, specials=specials) == folder.encode(text, specials=specials), text
    assert gguf.decode(gguf.encode("<tool_call>user x")) == "<tool_call> user x"


def test_byte_tokens_that_a_converter_took_for_text_are_bytes():
    metadata = llama_gguf()
    wrong = [1 if kind == 6 else kind for kind in metadata["tokenizer.ggml.token_type"]]
    tokenizer, sound = (Tokenizer.from_gguf(llama_gguf(token_type=kinds), "a.gguf")
                        for kinds in (wrong, metadata["tokenizer.ggml.token_type"]))  # fmt: skip
    for text in TEXTS[:200]:
        assert tokenizer.encode(text) == sound.encode(text)
    assert tokenizer.decode(tokenizer.encode("a\nb é 😀")) == "a\nb é 😀"


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("name", ["bpe.model", "gpt2.json"])
def test_an_end_of_turn_is_one_whatever_type_a_gguf_gives_it(name, kind):
    metadata = with_token(with_token(as_gguf(name), "<|im_start|>", 4), "<|im_end|>", kind)
    tokenizer = Tokenizer.from_gguf(metadata, "a.gguf")
    end = tokenizer.vocab_size - 1
    assert end in tokenizer.eos_ids
    assert tokenizer.decode([end]) == ""
    assert end not in tokenizer.encode("a<|im_end|>b")
    assert end in tokenizer.encode("a<|im_end|>b", specials=True)
    assert tokenizer.chat_template().source == "built-in chatml"


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


@pytest.mark.parametrize("none", [-1, (1 << 32) - 1, 1000, 5000])
def test_a_padding_id_that_is_no_token_is_none(none):
    tokenizer = Tokenizer.from_gguf(llama_gguf(padding_token_id=none, unknown_token_id=none), "a.gguf")
    assert tokenizer.encode("the cat") == Tokenizer.from_gguf(llama_gguf(), "a.gguf").encode("the cat")


@pytest.mark.parametrize("none", [-1, (1 << 32) - 1])
def test_a_gguf_may_say_that_it_has_no_bos(none):
    metadata = as_gguf("qwen2.json") | {"tokenizer.ggml.bos_token_id": none, "tokenizer.ggml.eot_token_id": none}
    assert Tokenizer.from_gguf(metadata, "a.gguf").bos_id is None


def test_several_unknown_tokens_pad_a_vocabulary():
    padded = llama_gguf(unknown_token_id=0)
    for i in range(3):
        padded = with_token(padded, f"[PAD{i}]", 2)
    tokenizer = Tokenizer.from_gguf(padded, "a.gguf")
    plain = Tokenizer.from_gguf(llama_gguf(), "a.gguf")
    assert [tokenizer.encode(text) for text in TEXTS[:100]] == [plain.encode(text) for text in TEXTS[:100]]


def test_a_token_in_characters_beside_one_in_their_bytes_is_printed_only():
    """As in command-r's vocabulary: no text becomes the first, for text is bytes when it is merged."""
    metadata = as_gguf("gpt2.json")
    plain = Tokenizer.from_gguf(metadata, "a.gguf")
    token = len(metadata["tokenizer.ggml.tokens"])
    written = "".join(chr(ord(c)) for c in "âĢĶ")
    both = with_token(with_token(metadata, "—", 1), written, 1)
    tokenizer = Tokenizer.from_gguf(both, "a.gguf")
    assert tokenizer.decode([token]) == tokenizer.decode([token + 1]) == "—"
    assert [tokenizer.encode(text) for text in TEXTS[:100]] == [plain.encode(text) for text in TEXTS[:100]]


@pytest.mark.parametrize(
    ("name", "same_as"),
    [("mellum", "gpt-2"), ("a.x-4.0", "gpt-2"), ("trillion", "gpt-2"), ("midm-2.0", "llama-bpe"), ("kormo", "qwen2"),
     ("f2llmv2", "qwen2")],
)  # fmt: skip
def test_a_pre_tokenizer_is_known_by_each_of_its_names(name, same_as):
    one, other = (
        Tokenizer.from_gguf(as_gguf("qwen2.json") | {"tokenizer.ggml.pre": pre}, "a.gguf") for pre in (name, same_as)
    )
    assert digests(plain(one)) == digests(plain(other))


def test_a_glm4_takes_whole_words_before_merges():
    metadata = with_token(as_gguf("qwen2.json") | {"tokenizer.ggml.pre": "glm4"}, "zqxj", 1)
    assert Tokenizer.from_gguf(metadata, "a.gguf").encode("zqxj") == [len(metadata["tokenizer.ggml.tokens"]) - 1]


def test_a_gguf_that_names_no_pre_tokenizer_is_doubted():
    metadata = as_gguf("gpt2.json")
    spec = tiny_spec(vocab_size=1000)
    assert Tokenizer.from_gguf(metadata, "a.gguf").mismatch_warning(spec) == ""
    del metadata["tokenizer.ggml.pre"]
    assert "tokenizer.ggml.pre is missing" in Tokenizer.from_gguf(metadata, "a.gguf").mismatch_warning(spec)


def test_added_tokens_beyond_the_embedding_are_allowed_and_told(tmp_path):
    tokenizer = read_tokenizer(write_folder(tmp_path / "a", "a token of the config alone"))
    assert tokenizer.vocab_size == 1001
    tokenizer.check_fits(tiny_spec(vocab_size=1000), "a.safetensors")
    assert "can neither read nor write the last 1 (<tool_call>)" in tokenizer.mismatch_warning(
        tiny_spec(vocab_size=1000)
    )
    with pytest.raises(FormatError, match="has a vocabulary of 900"):
        tokenizer.check_fits(tiny_spec(vocab_size=900), "a.safetensors")


def test_one_file_is_named_once():
    tokenizer = Tokenizer.from_gguf(as_gguf("gpt2.json"), "a.gguf")
    doubt = tokenizer.mismatch_warning(tiny_spec(vocab_size=32000), "a.gguf")
    assert doubt.startswith("a.gguf: its tokenizer has 1000 tokens, and its vocabulary is 32000: if the answers")
