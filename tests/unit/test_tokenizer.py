"""Encoding equals the SentencePiece library's own on a model trained here; decoding never shows half a character."""

from __future__ import annotations

import base64
import io
import random

import pytest
import sentencepiece
from msgspec.structs import replace
from tiny import tiny_spec, tiny_tokenizer_data
from tokenizers_of import of_t

from dllama_zmq.errors import FormatError, RequestError
from dllama_zmq.formats import read_tokenizer, write_t
from dllama_zmq.tokenizer import Tokenizer, TokenizerData

SAMPLES = [
    "Once upon a time there was a small cat.", "The quick brown fox jumps over the lazy dog!",
    "Tom and Lily went home.", "Der Hund läuft schnell über die Straße.", "L'été, le garçon mange une crème brûlée.",
    "El niño comió piñas.", "tiếng Việt có dấu", "Привет, как дела сегодня?", "Γειά σου Κόσμε", "שלום עולם",
    "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好,世界!今天天气很好。", "こんにちは世界、元気ですか",
    "안녕하세요 세계",
    "def f(x):\n    return x ** 2  # square\n", "for (int i = 0; i < n; ++i) { a[i] += 1; }",
    '{"key": [1, 2.5, null]}', "http://a.b/c?d=e&f#g", "1234567890 3.14159 1e-5",
    "<s> </s> <unk> <0x41> <|eot|>", "a\tb\r\nc\x00d\x7f", "   three   spaces   ", "\n\n\n", " ", "", "▁ ▁▁",
    "e\u0301 vs é", "😀 👩\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0010ffff", "ﬁ ﬂ Å Ⅷ ½", "\ufeffBOM",
]  # fmt: skip


def varied_texts(n: int) -> list[str]:
    """The samples, and random pieces of them put together."""
    rng = random.Random(11)
    texts = list(SAMPLES)
    while len(texts) < n:
        parts = []
        for _ in range(rng.randint(1, 5)):
            sample = rng.choice(SAMPLES)
            start = rng.randint(0, len(sample))
            parts.append(sample[start : start + rng.randint(0, 20)])
        texts.append(rng.choice(["", " ", "\n", "  "]).join(parts))
    return texts


@pytest.fixture(scope="module")
def trained() -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model with the options of Llama's, trained on text made here."""
    rng = random.Random(5)
    words = " ".join(SAMPLES[:3]).split()
    lines = [" ".join(rng.choices(words, k=12)) for _ in range(600)] + [s for s in SAMPLES if s.strip()] * 5
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=640,
        character_coverage=0.98,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def as_data(trained: sentencepiece.SentencePieceProcessor) -> TokenizerData:
    """The vocabulary as a `.t` file holds it."""
    pieces, scores = [], []
    for token in range(trained.vocab_size()):
        text = trained.id_to_piece(token)
        pieces.append(bytes([int(text[3:5], 16)]) if trained.is_byte(token) else text.replace("▁", " ").encode())
        scores.append(trained.get_score(token))
    return TokenizerData(pieces, scores, trained.bos_id(), (trained.eos_id(),))


@pytest.fixture(scope="module")
def tokenizer(trained, tmp_path_factory) -> Tokenizer:
    """The trained model, written to a `.t` file and read back."""
    path = tmp_path_factory.mktemp("tokenizer") / "trained.t"
    write_t(path, as_data(trained))
    return read_tokenizer(path)


def test_encoding_equals_sentencepiece_on_varied_text(trained, tokenizer):
    texts = varied_texts(600)
    used: set[int] = set()
    for text in texts:
        expected = trained.encode(text)
        assert tokenizer.encode(text, bos=False) == expected, text
        used |= set(expected)
    assert len(used) > 350  # or the texts exercise too little of the vocabulary


def test_decoding_gives_back_what_was_encoded(tokenizer):
    for text in varied_texts(600):
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


def test_sizes_and_ids_are_those_of_the_file(trained, tokenizer):
    assert tokenizer.vocab_size == trained.vocab_size() == 640
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    assert (tokenizer.piece(1), tokenizer.piece(3 + 0xC3)) == (b"<s>", b"\xc3")


@pytest.mark.parametrize(("add_bos", "bos", "first"), [(True, None, 1), (False, None, 259), (False, True, 1)])
def test_the_bos_comes_as_asked_and_else_as_the_file_says(add_bos, bos, first):
    tokenizer = of_t(replace(tiny_tokenizer_data(260), add_bos=add_bos))
    assert tokenizer.encode("a", bos)[0] == first


def test_names_of_control_tokens_in_a_text_are_text(tokenizer):
    assert not {0, 1, 2} & set(tokenizer.encode("<s>hello</s><unk>", bos=False))


def test_half_a_surrogate_pair_is_encoded_as_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud83d b \ud83d\ude00")) == "a\ufffd b 😀"


def test_incremental_decoding_is_whole_characters_at_every_split(tokenizer):
    for text in SAMPLES:
        shown = text.replace("▁", " ")
        tokens = tokenizer.encode(text)
        for split in range(len(tokens) + 1):
            decoder = tokenizer.decoder(continues=False)
            first = "".join(decoder.push(token) for token in tokens[:split])
            assert shown.startswith(first)
            assert "\ufffd" not in first
            rest = "".join(decoder.push(token) for token in tokens[split:]) + decoder.flush()
            assert first + rest == shown


def test_a_text_that_continues_keeps_its_first_space(tokenizer):
    tokens = tokenizer.encode("the cat", bos=False)
    assert tokenizer.decode(tokens, continues=True) == " the cat"
    assert tokenizer.decode([1, *tokens], continues=False) == "the cat"


def test_only_one_space_is_dropped_and_only_at_the_start(tokenizer):
    tokens = tokenizer.encode("  cat", bos=False) + tokenizer.encode(" dog", bos=False)
    assert tokenizer.decode(tokens) == "  cat  dog"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\xf0\x9f\x98\x80", ["", "", "", "😀", ""]),
        (b"\xf0\x9fa", ["", "", "\ufffd\ufffda", ""]),
        (b"\xffa", ["\ufffd", "a", ""]),
        (b"a\xc3", ["a", "", "\ufffd"]),
    ],
)
def test_bytes_become_characters_when_complete_and_u_fffd_when_they_cannot(data, shown):
    decoder = of_t(tiny_tokenizer_data(260)).decoder()
    assert [decoder.push(3 + value) for value in data] + [decoder.flush()] == shown


def test_control_tokens_print_nothing_and_do_not_break_a_character():
    decoder = of_t(tiny_tokenizer_data(260)).decoder()
    assert [decoder.push(token) for token in (1, 3 + 0xC3, 2, 0, 3 + 0xA9)] == ["", "", "", "", "é"]


def test_an_id_without_a_piece_prints_nothing_and_a_negative_one_is_refused():
    tokenizer = of_t(tiny_tokenizer_data(260))
    assert (tokenizer.piece(260), tokenizer.decode([259, 260, 1 << 30, 259])) == (b"", " ")
    assert tokenizer.decoder().push(260) == ""
    with pytest.raises(RequestError, match="token -1 is in no vocabulary; expected 0 or more"):
        tokenizer.piece(-1)
    with pytest.raises(RequestError):
        tokenizer.decode([-1])


def test_a_tokenizer_of_another_model_is_refused_with_both_sizes_and_files():
    tokenizer = of_t(replace(tiny_tokenizer_data(300), source="other.t"))
    for vocab_size in (300, 320):  # models pad their embedding
        tokenizer.check_fits(tiny_spec(vocab_size=vocab_size), "model.m")
    with pytest.raises(FormatError, match=r"other\.t has 300 tokens, but model\.m has a vocabulary of 288"):
        tokenizer.check_fits(tiny_spec(vocab_size=288), "model.m")


def test_a_tokenizer_much_smaller_than_the_vocabulary_is_doubted_with_both_sizes_and_files():
    tokenizer = of_t(replace(tiny_tokenizer_data(288), source="other.t"))
    for vocab_size in (288, 293, 320):
        assert tokenizer.mismatch_warning(tiny_spec(vocab_size=vocab_size), "model.m") == ""
    doubt = tokenizer.mismatch_warning(tiny_spec(vocab_size=321), "model.m")
    assert doubt.startswith("other.t has 288 tokens, but model.m has a vocabulary of 321: ")
    assert doubt.endswith("give the tokenizer that was made for this model")


@pytest.mark.parametrize("pieces", [[b"the", b"the"], [b"\xff\xfe"], [b"a\x00b"], [b"<unk>", b"<0x41>"]])
def test_pieces_that_sentencepiece_would_refuse_do_not_spoil_a_vocabulary(pieces):
    plain = tiny_tokenizer_data(288)
    data = replace(plain, pieces=plain.pieces + pieces, scores=plain.scores + [-99.0] * len(pieces))
    text = "the cat and a \x00 dog"
    assert of_t(data).encode(text) == of_t(plain).encode(text)


def test_a_vocabulary_without_an_unknown_piece_encodes_the_same():
    plain = tiny_tokenizer_data(288)
    without = replace(plain, pieces=[b"<pad>", *plain.pieces[1:]])
    assert of_t(without).encode("the cat é") == of_t(plain).encode("the cat é")
    assert of_t(without).vocab_size == 288


# Byte-level: bytes in an order of their own, merges by rank, special tokens from the BOS on.
BYTES = [bytes([value]) for value in [*range(33, 127), *range(33), *range(127, 256)]]
MERGES = [b"he", b"ll", b"hell", b"o", b" w", b"12", b"123", b"45", b"345", b"\xc3\xa9", b"'s", b"\n\n", b"  "]
RANKED = [*BYTES, *(merge for merge in MERGES if len(merge) > 1)]
SPECIALS = [b"<|begin_of_text|>", b"<|end_of_text|>", b"<|eot_id|>"]


BYTE_LEVEL = TokenizerData(
    [*RANKED, *SPECIALS], [-float(i) for i in range(len(RANKED) + 3)], len(RANKED), (len(RANKED) + 1, len(RANKED) + 2)
)


@pytest.fixture
def byte_level(tmp_path) -> Tokenizer:
    """A small vocabulary of Llama 3's kind, written to a `.t` file and read back."""
    write_t(tmp_path / "llama3.t", BYTE_LEVEL)
    return read_tokenizer(tmp_path / "llama3.t")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("hello", [b"hell", b"o"]),
        ("hello world", [b"hell", b"o", b" w", b"o", b"r", b"l", b"d"]),
        ("1234512345", [b"123", b"45", b"1", b"2", b"3", b"4", b"5"]),
        ("it's é", [b"i", b"t", b"'s", b" ", b"\xc3\xa9"]),
        ("a\n\n  b", [b"a", b"\n\n", b" ", b" ", b"b"]),
        ("<|eot_id|>", [b"<", b"|", b"e", b"o", b"t", b"_", b"i", b"d", b"|", b">"]),
        ("", []),
    ],
)
def test_byte_level_text_is_split_and_merged_as_worked_by_hand(byte_level, text, pieces):
    tokens = byte_level.encode(text, bos=False)
    assert [byte_level.piece(token) for token in tokens] == pieces
    assert byte_level.decode(tokens) == text


def test_byte_level_encoding_puts_no_space_before_a_text_and_drops_none(byte_level):
    for text in varied_texts(200):
        assert byte_level.decode(byte_level.encode(text), continues=False) == text
    assert byte_level.encode(" w")[0] == byte_level.bos_id
    assert byte_level.decode(byte_level.encode(" w"), continues=False) == " w"


def test_byte_level_special_tokens_print_nothing(byte_level):
    n = len(RANKED)
    assert byte_level.decode([n, *byte_level.encode("hello", bos=False), n + 2]) == "hello"


def test_a_vocabulary_without_a_space_is_refused():
    data = replace(tiny_tokenizer_data(260), pieces=[*tiny_tokenizer_data(260).pieces[:259], b"x"])
    with pytest.raises(FormatError, match="without a piece for ' '"):
        of_t(data)


def test_a_vocabulary_of_another_kind_is_refused_by_name():
    data = TokenizerData([b"<s>", b"</s>", b"a", b"b"], [0.0] * 4, 0, (1,), source="words.t")
    with pytest.raises(FormatError, match=r"words\.t: this version does not read this kind of vocabulary"):
        of_t(data)


def test_a_byte_level_vocabulary_with_a_piece_twice_is_refused():
    data = replace(BYTE_LEVEL, pieces=[*RANKED[:-1], b"he", *SPECIALS])
    with pytest.raises(FormatError, match="two tokens are b'he'"):
        of_t(data)


def test_a_token_that_no_merge_makes_is_found_where_it_is_a_whole_word():
    """As tiktoken does, which looks a word up before it merges."""
    ranked = [*RANKED, b"zyx"]
    n = len(ranked)
    data = TokenizerData([*ranked, *SPECIALS], [0.0] * (n + 3), n, (n + 1, n + 2))
    tokenizer = of_t(data)
    assert tokenizer.encode("zyx", bos=False) == [n - 1]
    assert [tokenizer.piece(token) for token in tokenizer.encode("zyxz", bos=False)] == [b"z", b"y", b"x", b"z"]


def test_a_word_of_llama_3_that_is_a_token_is_that_token_although_its_merges_lead_elsewhere(tmp_path):
    """ "bc" is merged first, and then neither "xb" nor "cd" is left to make "xbcd"."""
    ranked = [*RANKED, b"bc", b"xb", b"cd", b"xbcd"]
    n = len(ranked)
    lines = [base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(ranked)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    of_ranks = read_tokenizer(tmp_path / "tokenizer.model")
    for tokenizer in (of_ranks, of_t(TokenizerData([*ranked, *SPECIALS], [0.0] * (n + 3), n, (n + 1, n + 2)))):
        assert tokenizer.encode("xbcd", bos=False) == [n - 1]
        assert [tokenizer.piece(token) for token in tokenizer.encode("xbcdb", bos=False)] == [b"x", b"bc", b"d", b"b"]


def test_the_longer_of_two_special_tokens_at_one_place_is_found():
    n = len(RANKED)
    names = [b"<|a|>", b"<|a|><|b|>", b"<|b|>"]
    tokenizer = of_t(TokenizerData([*RANKED, *names], [0.0] * (n + 3), n, (n,)))
    assert tokenizer.encode("<|b|><|a|><|b|><|a|>", bos=False, specials=True) == [n + 2, n + 1, n]
