"""The tokenizer of a GGUF file: its pre-tokenizers, and tokens whose types its converter mistook."""

from __future__ import annotations

import pytest
import tokenizers
from gguf_writer import FileTensor, Typed, gguf_bytes
from tiny import tiny_spec
from tokenizer_folders import TEXTS as FOLDER_TEXTS
from tokenizer_folders import write_folder
from tokenizer_sources import TEXTS, as_gguf, digests, llama_gguf, plain, with_token
from tokenizers_of import of_gguf

from dllama_zmq.errors import UnsupportedModel
from dllama_zmq.formats import open_model, read_tokenizer


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
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, "<end>"],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3],
        "tokenizer.ggml.eos_token_id": len(tokens),
        "tokenizer.ggml.bos_token_id": len(tokens),
    }
    tokenizer = of_gguf(metadata, "a.gguf")
    assert [tokenizer.piece(token).decode() for token in tokenizer.encode(text, bos=False)] == pieces


def test_an_unknown_pre_tokenizer_or_kind_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"a\.gguf: tokenizer\.ggml\.pre is 'kilo'.*it knows .*llama-bpe.*qwen2"):
        of_gguf(as_gguf("gpt2.json") | {"tokenizer.ggml.pre": "kilo"}, "a.gguf")
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.ggml\.model is 't5'; this version reads llama .* and gpt2"):
        of_gguf(as_gguf("gpt2.json") | {"tokenizer.ggml.model": "t5"}, "a.gguf")


def test_a_file_whose_weights_are_not_read_has_a_tokenizer(tmp_path):
    path = tmp_path / "a.gguf"
    weights = FileTensor("token_embd.weight", [256, 4], 16, bytes(4 * 66))  # IQ2_XXS
    words = as_gguf("gpt2.json")
    kinds = {"tokenizer.ggml.token_type": Typed("i32", words["tokenizer.ggml.token_type"])}
    path.write_bytes(gguf_bytes({"general.architecture": "llama"} | words | kinds, [weights]))
    with pytest.raises(UnsupportedModel, match="is of type IQ2_XXS, which this version does not read"):
        open_model(path)
    tokenizer = read_tokenizer(path)
    assert tokenizer.encode("the cat") == of_gguf(words).encode("the cat")


def test_a_gguf_s_user_defined_tokens_cut_a_text_as_those_of_a_folder_do(tmp_path):
    gguf = of_gguf(with_token(llama_gguf(), "<tool_call>", 4), "a.gguf")
    folder = read_tokenizer(write_folder(tmp_path / "a", "sentencepiece, legacy"))
    for text in FOLDER_TEXTS:
        for specials in (False, True):
            assert gguf.encode(text, specials=specials) == folder.encode(text, specials=specials), text
    assert gguf.decode(gguf.encode("<tool_call>user x")) == "<tool_call> user x"


def test_byte_tokens_that_a_converter_took_for_text_are_bytes():
    metadata = llama_gguf()
    wrong = [1 if kind == 6 else kind for kind in metadata["tokenizer.ggml.token_type"]]
    tokenizer, sound = (
        of_gguf(llama_gguf(token_type=kinds), "a.gguf") for kinds in (wrong, metadata["tokenizer.ggml.token_type"])
    )
    for text in TEXTS[:200]:
        assert tokenizer.encode(text) == sound.encode(text)
    assert tokenizer.decode(tokenizer.encode("a\nb é 😀")) == "a\nb é 😀"


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("name", ["bpe.model", "gpt2.json"])
def test_an_end_of_turn_is_one_whatever_type_a_gguf_gives_it(name, kind):
    metadata = with_token(with_token(as_gguf(name), "<|im_start|>", 4), "<|im_end|>", kind)
    tokenizer = of_gguf(metadata, "a.gguf")
    end = tokenizer.vocab_size - 1
    assert end in tokenizer.eos_ids
    assert tokenizer.decode([end]) == ""
    assert end not in tokenizer.encode("a<|im_end|>b")
    assert end in tokenizer.encode("a<|im_end|>b", specials=True)
    assert tokenizer.chat_template().source == "built-in chatml"


@pytest.mark.parametrize("none", [-1, (1 << 32) - 1, 1000, 5000])
def test_a_padding_id_that_is_no_token_is_none(none):
    tokenizer = of_gguf(llama_gguf(padding_token_id=none, unknown_token_id=none), "a.gguf")
    assert tokenizer.encode("the cat") == of_gguf(llama_gguf(), "a.gguf").encode("the cat")


@pytest.mark.parametrize("none", [-1, (1 << 32) - 1])
def test_a_gguf_may_say_that_it_has_no_bos(none):
    metadata = as_gguf("qwen2.json") | {"tokenizer.ggml.bos_token_id": none, "tokenizer.ggml.eot_token_id": none}
    assert of_gguf(metadata, "a.gguf").bos_id is None


def test_several_unknown_tokens_pad_a_vocabulary():
    padded = llama_gguf(unknown_token_id=0)
    for i in range(3):
        padded = with_token(padded, f"[PAD{i}]", 2)
    tokenizer = of_gguf(padded, "a.gguf")
    plain = of_gguf(llama_gguf(), "a.gguf")
    assert [tokenizer.encode(text) for text in TEXTS[:100]] == [plain.encode(text) for text in TEXTS[:100]]


def test_a_token_in_characters_beside_one_in_their_bytes_is_printed_only():
    """As in command-r's vocabulary: no text becomes the first, for text is bytes when it is merged."""
    metadata = as_gguf("gpt2.json")
    plain = of_gguf(metadata, "a.gguf")
    token = len(metadata["tokenizer.ggml.tokens"])
    written = "".join(chr(ord(c)) for c in "âĢĶ")
    both = with_token(with_token(metadata, "—", 1), written, 1)
    tokenizer = of_gguf(both, "a.gguf")
    assert tokenizer.decode([token]) == tokenizer.decode([token + 1]) == "—"
    assert [tokenizer.encode(text) for text in TEXTS[:100]] == [plain.encode(text) for text in TEXTS[:100]]


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("mellum", "gpt-2"),
        ("a.x-4.0", "gpt-2"),
        ("trillion", "gpt-2"),
        ("midm-2.0", "llama-bpe"),
        ("kormo", "qwen2"),
        ("f2llmv2", "qwen2"),
    ],
)
def test_a_pre_tokenizer_is_known_by_each_of_its_names(name, same_as):
    one, other = (of_gguf(as_gguf("qwen2.json") | {"tokenizer.ggml.pre": pre}, "a.gguf") for pre in (name, same_as))
    assert digests(plain(one)) == digests(plain(other))


def test_a_glm4_takes_whole_words_before_merges():
    metadata = with_token(as_gguf("qwen2.json") | {"tokenizer.ggml.pre": "glm4"}, "zqxj", 1)
    assert of_gguf(metadata, "a.gguf").encode("zqxj") == [len(metadata["tokenizer.ggml.tokens"]) - 1]


def test_a_gguf_that_names_no_pre_tokenizer_is_doubted():
    metadata = as_gguf("gpt2.json")
    spec = tiny_spec(vocab_size=1000)
    assert of_gguf(metadata, "a.gguf").mismatch_warning(spec) == ""
    del metadata["tokenizer.ggml.pre"]
    assert "tokenizer.ggml.pre is missing" in of_gguf(metadata, "a.gguf").mismatch_warning(spec)
