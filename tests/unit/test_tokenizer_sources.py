"""Every kind of tokenizer file encodes and decodes as its source library does, on more than 5,000 varied texts."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from corpus import SAMPLES
from gguf_writer import Typed, gguf_bytes
from msgspec.structs import replace
from tokenizer_sources import (
    BYTE_LEVEL,
    CONFIGS,
    ENCODED,
    GOLDEN,
    TEXTS,
    as_gguf,
    as_t,
    digests,
    digests_of,
    encoded_by_source,
    folder_of,
    kept,
    marked,
    marked_by_source,
    plain,
    source,
)
from tokenizers_of import of_gguf, of_sentencepiece

from dllama_zmq.errors import RequestError, UsageError
from dllama_zmq.formats import read_tokenizer, write_t


def test_the_corpus_is_that_of_the_golden_file():
    assert len(TEXTS) == ENCODED["texts"] >= 5000


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_encodes_as_its_source_library(name):
    assert encoded_by_source(name)[:40] == ENCODED[name]["ids"]
    assert digests_of(encoded_by_source(name)) == ENCODED[name]["plain"]


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "spaced.json"])
def test_a_tokenizer_json_finds_special_tokens_where_it_is_asked_to(name):
    assert marked_by_source(name) == ENCODED[name]["marked"]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_text_becomes_a_special_token_unasked(name):
    controls = set(source(name).specials.values())
    assert controls
    assert not controls & {token for tokens in encoded_by_source(name) for token in tokens}


@pytest.mark.parametrize("name", ["bpe.model", *BYTE_LEVEL])
def test_gguf_metadata_encodes_as_the_source(name):
    tokenizer = of_gguf(as_gguf(name), "a.gguf")
    assert digests(plain(tokenizer)) == ENCODED[name]["plain"]
    assert tokenizer.vocab_size == source(name).vocab_size
    if name in BYTE_LEVEL:
        assert digests(marked(tokenizer)) == ENCODED[name]["marked"]


@pytest.mark.parametrize("name", ["bpe.model", *BYTE_LEVEL])
def test_a_t_file_of_a_tokenizer_encodes_as_the_source(tmp_path, name):
    original = source(name)
    write_t(tmp_path / "a.t", as_t(name))
    tokenizer = read_tokenizer(tmp_path / "a.t")
    assert digests(plain(tokenizer)) == ENCODED[name]["plain"]
    assert digests(marked(tokenizer)) == marked_by_source(name)
    assert (tokenizer.eos_ids, tokenizer.vocab_size) == (original.eos_ids, original.vocab_size)
    for text in SAMPLES:
        assert tokenizer.encode(text) == original.encode(text)  # the BOS, or none, by default


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
        folder_of(
            folder,
            {
                f"tokenizer{Path(name).suffix}": GOLDEN / name,
                "tokenizer_config.json": config,
                "special_tokens_map.json": {key: value for key, value in CONFIGS[name].items() if key == "eos_token"},
                "generation_config.json": {"eos_token_id": [2, 5]},
                "config.json": {"eos_token_id": 7},
                "chat_template.jinja": template,
                "weights.safetensors": "large",
            },
        )
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
    for text, tokens in zip(TEXTS, encoded_by_source(name), strict=True):
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
        sentence_iterator=iter([s for s in SAMPLES if s.strip()] * 20),
        model_writer=model,
        model_type="unigram",
        vocab_size=500,
        character_coverage=0.98,
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = of_sentencepiece(model.getvalue(), "a.model")
    assert [tokenizer.encode(text, bos=False) for text in TEXTS] == library.encode(TEXTS)
