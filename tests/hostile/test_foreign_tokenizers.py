"""Damaged and hostile tokenizer.json, tokenizer.model and GGUF metadata: FormatError, in bounded time and memory."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hostile.refusal import refusal
from tokenizers_of import of_gguf

from dllama_zmq.errors import DllamaError, FormatError, RequestError
from dllama_zmq.formats import read_tokenizer
from dllama_zmq.formats.tokenizers import MAX_JSON_BYTES, MAX_MODEL_BYTES
from dllama_zmq.tokenizer import bounded
from dllama_zmq.tokenizer.child import BUSY_S

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizers"
SHORT_S = 0.5  # of CPU, instead of ENCODE_S: what is endless takes as long as it may
START_CPU_S = 0.5  # a process starts and loads a small vocabulary; it takes 0.1 s
TEXT = "the cat's 123 <|im_end|> é 😀\n\n  x"


def refused(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return refusal(read_tokenizer, path)


def sound(name: str = "qwen2") -> dict[str, Any]:
    file: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    return file


def test_the_file_that_the_others_are_made_from_is_sound(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(sound()), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert read_tokenizer(tmp_path).vocab_size == 1000


@pytest.mark.parametrize(("name", "limit"), [("tokenizer.json", MAX_JSON_BYTES), ("a.model", MAX_MODEL_BYTES)])
def test_a_file_of_many_gigabytes_is_refused_unread(tmp_path, name, limit):
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(50 << 30)
    assert f"a file of this kind has at most {limit}" in refusal(read_tokenizer, path)


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"model":', '{"model":{"vocab":[', '{"normalizer":['])
def test_deep_nesting_is_refused(tmp_path, opening):
    refused(tmp_path / "tokenizer.json", opening * 200_000)


def test_more_values_than_any_tokenizer_has_are_refused_unparsed(tmp_path):
    words = refused(tmp_path / "tokenizer.json", "[" + "[]," * 9_000_000 + "]")
    assert "no tokenizer has more than" in words


@pytest.mark.parametrize("content", ["", "{}", "null", "[]", '{"model":{}}', "\ufeff{}", "{" * 10, '{"model": 1e999}'])
def test_texts_that_are_no_tokenizer_json_are_refused(tmp_path, content):
    assert "tokenizer.json" in refused(tmp_path / "tokenizer.json", content)


def test_bytes_that_are_no_text_are_refused_with_their_offset(tmp_path):
    assert "offset 1: not UTF-8" in refused(tmp_path / "tokenizer.json", b"{\xff}")


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file["model"].update(vocab={"a": "b"}), "model.vocab"),
        (lambda file: file["model"].update(vocab=[["a", "b"]]), "model.vocab"),
        (lambda file: file["model"].update(vocab=[["a", 0.5]]), "model.vocab does not fit a BPE model"),
        (lambda file: file["model"].update(merges=["a"]), "the tokenizers library refuses"),
        (lambda file: file["model"].update(merges=[["a", "zzzz"]]), "the tokenizers library refuses"),
        (lambda file: file["model"].update(merges=[1]), "model.merges"),
        (lambda file: file["model"].update(type="WordPiece"), "model.type is 'WordPiece'; this version reads BPE"),
        (lambda file: file["model"]["vocab"].update(zz=1 << 40), "has the id"),
        (lambda file: file["model"]["vocab"].update(zz=-1), "has the id -1"),
        (lambda file: file["added_tokens"][0].update(id=5), "added token"),
        (lambda file: file["added_tokens"][0].update(id=1 << 23), "added token"),
        (lambda file: file["added_tokens"][0].update(content=7), "added_tokens"),
        (lambda file: file.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
                                  pre_tokenizer=None), "a decoder of ['WordPiece']"),
        (lambda file: file.update(normalizer=[1]), "normalizer has a step that is not an object"),
        (lambda file: file["model"].update(end_of_word_suffix="</w>"), "model.end_of_word_suffix is '</w>'"),
        (lambda file: file["model"].update(continuing_subword_prefix="##"), "model.continuing_subword_prefix is '##'"),
        (lambda file: file.update(decoder={"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "CTC"}]}),
         "the decoder has a step 'CTC'"),
        (lambda file: file.update(normalizer={"type": "Kilo"}), "the tokenizers library refuses"),
        (lambda file: file.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "["}, "behavior": "Isolated",
                                                 "invert": False}), "the tokenizers library"),
        (lambda file: file.update(post_processor={"type": "Sequence", "processors": "no"}), "the tokenizers library"),
    ],
)  # fmt: skip
def test_a_wrong_part_of_a_tokenizer_json_is_refused_by_its_place(tmp_path, change: Change, words):
    file = sound()
    change(file)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert words in refused(tmp_path / "tokenizer.json", json.dumps(file))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer_config.json", {"eos_token": 7}, "eos_token: expected str | object | null, got int"),
        ("tokenizer_config.json", {"eos_token": "<kilo>"}, "eos_token is '<kilo>', which is not a token"),
        ("tokenizer_config.json", {"eos_token": None, "bos_token": "x" * 10**6}, "bos_token is 'xxx"),
        ("tokenizer_config.json", {"add_bos_token": "yes"}, "add_bos_token: expected bool | null, got str"),
        (
            "tokenizer_config.json",
            {"chat_template": {"a": 1}},
            "chat_template: expected str | array | null, got object",
        ),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "a"}]},
            "chat_template[0]: template is missing",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"-1": {}}},
            "key in added_tokens_decoder: expected int >= 0",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9" * 30: {"content": "a"}}},
            "key in added_tokens_decoder: expected int <= 16777215",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"3": {"content": 1}}},
            "added_tokens_decoder[...].content: expected str, got int",
        ),
        ("generation_config.json", {"eos_token_id": "2"}, "eos_token_id: expected int | array | null, got str"),
        ("generation_config.json", {"eos_token_id": [1 << 40]}, "eos_token_id[0]: expected int <= 16777215"),
        ("generation_config.json", {"eos_token_id": 5000}, "eos id is 5000, which is not a token"),
        ("special_tokens_map.json", {"eos_token": []}, "eos_token: expected str | object | null, got array"),
    ],
)
def test_a_wrong_key_beside_a_tokenizer_is_refused_by_name(tmp_path, name, content, words):
    (tmp_path / name).write_text(json.dumps(content))
    assert words in refused(tmp_path / "tokenizer.json", json.dumps(sound()))


def test_a_list_in_place_of_the_keys_beside_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("[]")
    (tmp_path / "tokenizer.json").write_text(json.dumps(sound()))
    with pytest.raises(FormatError, match=r"tokenizer_config\.json: expected object, got array"):
        read_tokenizer(tmp_path)


def test_deep_nesting_beside_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"a": ' + "[" * 100_000)
    (tmp_path / "tokenizer.json").write_text(json.dumps(sound()))
    with pytest.raises(FormatError, match="not JSON of a usual depth"):
        read_tokenizer(tmp_path)


def test_a_model_cut_anywhere_is_refused_or_lacks_only_its_end(tmp_path):
    model = (GOLDEN / "bpe.model").read_bytes()
    rng = random.Random(3)
    for cut in [*range(40), *(rng.randrange(len(model)) for _ in range(60))]:
        path = tmp_path / "a.model"
        path.write_bytes(model[:cut])
        try:
            tokenizer = read_tokenizer(path)
        except FormatError:
            continue
        assert all(0 <= token < tokenizer.vocab_size for token in tokenizer.encode("the cat"))


def split_by(pattern: str) -> dict[str, Any]:
    file = sound("gpt2")
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return file | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}}


def cpu_s_of_ended_processes() -> float:
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


PUBLISHED_SPLIT = r"(?=(\d{3})+(?!\d))|\p{N}{1,3}| ?[^\s\p{N}]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (PUBLISHED_SPLIT, "1" * 128_000),
        (r"(a+)+$|.", "a" * 40 + "!"),
        (r"(?:a|a)*b|.", "a" * 60_000),
        (r"\w*\w*\w*\w*!|.", "a" * 20_000),
    ],
)
def test_a_pattern_that_takes_for_ever_ends_the_request_and_not_the_program(tmp_path, pattern, text, monkeypatch):
    monkeypatch.setattr(bounded, "ENCODE_S", SHORT_S)
    (tmp_path / "tokenizer.json").write_text(json.dumps(split_by(pattern)))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    tokenizer = read_tokenizer(tmp_path)
    before, ended_s = time.monotonic(), cpu_s_of_ended_processes()
    with pytest.raises(RequestError, match=r"takes longer than 0\.5 s|cannot encode this text"):
        tokenizer.encode(text)
    assert time.monotonic() - before < SHORT_S + BUSY_S + 1
    assert cpu_s_of_ended_processes() - ended_s < 2 * SHORT_S + START_CPU_S
    words = "the cat 12345"
    assert tokenizer.decode(tokenizer.encode(words)) == words


@pytest.mark.parametrize("pattern", ["(a{1000}){1000}" * 200, "(" * 8000, "[" * 100, "(?:" * 4000 + ")" * 4000])
def test_a_pattern_that_is_hard_to_compile_is_refused_or_works(tmp_path, pattern):
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(split_by(pattern)))
    with suppress(FormatError):
        assert read_tokenizer(path).encode("x")


# The library is C++: what it does with a damaged model is tried in a process of its own.
_TRY = """
import random, sys
from pathlib import Path
from dllama_zmq.errors import DllamaError
from dllama_zmq.tokenizer import Tokenizer
from dllama_zmq.tokenizer.config import Config
from dllama_zmq.tokenizer.from_sentencepiece import parts_of_sentencepiece
model, rng, refused = Path(sys.argv[1]).read_bytes(), random.Random(int(sys.argv[2])), 0
for _ in range(150):
    data = bytearray(model)
    for _ in range(rng.choice([1, 1, 2, 20])):
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(len(data) - 200, len(data))
        data[at : at + 1] = rng.choice([bytes([rng.randrange(256)]), b"", b"\\xff\\xff\\xff\\xff\\x7f"])
    try:
        tokenizer = Tokenizer(parts_of_sentencepiece(bytes(data), Config(), "a.model"))
        assert all(0 <= token < tokenizer.vocab_size for token in tokenizer.encode("the cat \\u00e9 \\U0001f600"))
    except DllamaError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("name", ["bpe.model", "unigram.model"])
def test_a_damaged_model_is_refused_or_works(name):
    tried = subprocess.run(
        [sys.executable, "-c", _TRY, str(GOLDEN / name), "5"], capture_output=True, text=True, timeout=100, check=False
    )
    assert tried.returncode == 0, tried.stderr[-2000:]
    assert 10 < int(tried.stdout) < 150


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\xff\xff\xff\xff\x7f", b"\n" * 99, b"\x0a\x02\x0a\x00", b"hello"])
def test_bytes_that_are_no_model_are_refused(tmp_path, content):
    refused(tmp_path / "a.model", content)


@pytest.mark.parametrize("line", [b"QQ==", b"QQ== x", b"!!! 1", b" 1", b"QQ== -1", b"QQ== 99999999999"])
def test_a_wrong_line_in_a_list_of_ranks_is_refused_by_its_number(tmp_path, line):
    assert "line 2 is " in refused(tmp_path / "a.model", b"YQ== 0\n" + line + b"\nYg== 2\n")


def test_a_list_of_ranks_without_all_bytes_is_refused(tmp_path):
    assert "expected all 256 bytes" in refused(tmp_path / "a.model", b"YQ== 0\nYg== 1\n")


SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁a", "▁", "a"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1],
}
BYTE_LEVEL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<end>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 3,
}


def test_the_metadata_that_the_others_are_made_from_are_sound():
    assert of_gguf(SENTENCEPIECE, "a.gguf").encode("a") == [1, 3]
    assert of_gguf(BYTE_LEVEL, "a.gguf").encode("ab") == [2]


@pytest.mark.parametrize("base", [SENTENCEPIECE, BYTE_LEVEL])
@pytest.mark.parametrize("value", [None, 7, "x", [], [None], [1.5], ["a", 1], {}, b"abc", [[]], [1 << 70], True])
def test_metadata_of_a_wrong_type_are_refused_by_their_key_or_work(base, value):
    for key in base:
        try:
            tokenizer = of_gguf({**base, key: value}, "a.gguf")
            assert all(0 <= token < tokenizer.vocab_size for token in tokenizer.encode(TEXT, specials=True))
        except DllamaError:
            continue


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"tokens": []},
            "this file has no tokenizer (tokenizer.ggml.tokens is missing or empty). The model's own",
        ),
        ({"tokens": ["a", "b", "c", 4, "e", "f"]}, "tokenizer.ggml.tokens[3]: expected str, got int"),
        ({"scores": [0.0]}, "tokenizer.ggml.scores has 1 entries and tokenizer.ggml.tokens 6"),
        ({"scores": [0.0, 0.0, 0.0, float("nan"), 0.0, 0.0]}, "tokenizer.ggml.scores[3] is nan"),
        ({"token_type": [2, 3, 3, 1, 1, "x"]}, "tokenizer.ggml.token_type[5]: expected int, got str"),
        ({"eos_token_id": 1 << 31}, "tokenizer.ggml.eos_token_id is 2147483648"),
        ({"bos_token_id": 6}, "tokenizer.ggml.bos_token_id is 6; expected an id from 0 to 5"),
        ({"eos_token_id": -2}, "tokenizer.ggml.eos_token_id is -2"),
        ({"eos_token_id": True}, "tokenizer.ggml.eos_token_id: expected int | null, got bool"),
        ({"add_bos_token": 1}, "tokenizer.ggml.add_bos_token: expected bool | null, got int"),
        ({"precompiled_charsmap": [256]}, "tokenizer.ggml.precompiled_charsmap[0]: expected int <= 255"),
        ({"precompiled_charsmap": [255] * 40}, "SentencePiece refuses this vocabulary"),
    ],
)
def test_wrong_sentencepiece_metadata_are_refused_by_name(change, words):
    metadata = SENTENCEPIECE | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(FormatError) as caught:
        of_gguf(metadata, "a.gguf")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"merges": ["ab"]}, "tokenizer.ggml.merges[0] is 'ab'; expected two pieces and a space"),
        ({"merges": ["a b c"]}, "tokenizer.ggml.merges[0] is 'a b c'"),
        ({"merges": ["a z"]}, "tokenizer.ggml.merges[0] has pieces that are not tokens"),
        ({"merges": "a b"}, "tokenizer.ggml.merges: expected array, got str"),
        ({"tokens": ["a", "b", "a", "<end>"]}, "tokenizer.ggml.tokens[2] is 'a', as another before it"),
        ({"eos_token_id": None}, "no EOS id is given"),
        ({"pre": 7}, "tokenizer.ggml.pre: expected str | null, got int"),
    ],
)
def test_wrong_byte_level_metadata_are_refused_by_name(change, words):
    metadata = BYTE_LEVEL | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(FormatError) as caught:
        of_gguf(metadata, "a.gguf")
    assert words in str(caught.value)


def test_a_template_in_metadata_that_is_no_text_is_refused():
    with pytest.raises(FormatError, match=r"tokenizer\.chat_template\.tool_use is 7; expected a text"):
        of_gguf({**BYTE_LEVEL, "tokenizer.chat_template.tool_use": 7}, "a.gguf")
