"""The mask of a grammar has the tokens whose bytes go on with it, for vocabularies of every kind."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from tiny import tiny_tokenizer_data
from tokenizer_sources import source
from tokenizers_of import of_t

from dllama_zmq.constraint.grammar_child import translated
from dllama_zmq.constraint.matching import Constraint, Vocabulary
from dllama_zmq.errors import RequestError
from dllama_zmq.tokenizer import Tokenizer

NAMES = ["llama3.json", "qwen2.json", "gpt2.json", "spaced.json", "bpe.model", "unigram.model", "tiny.t"]
TEXT = 'The été, 中文 😀\n  {"once": "upon a time"}'
COMPILE_S = 60.0


def tokenizer_of(name: str) -> Tokenizer:
    return of_t(tiny_tokenizer_data()) if name == "tiny.t" else source(name)


def begun(vocabulary: Vocabulary, grammar: str, stop_ids: tuple[int, ...] = ()) -> Constraint:
    constraint = vocabulary.constraint(grammar, stop_ids)
    assert constraint.wait(COMPILE_S)
    constraint.check()
    return constraint


def allowed(constraint: Constraint) -> list[int]:
    return np.flatnonzero(np.unpackbits(constraint.mask, bitorder="little")).tolist()


def literal(text: str) -> str:
    return translated("lark", f"start: {json.dumps(text, ensure_ascii=False)}")


@pytest.mark.parametrize("longest", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_only_the_tokens_that_can_continue_a_text_are_allowed(name: str, longest: bool) -> None:
    tokenizer = tokenizer_of(name)
    pieces = {
        token: piece
        for token in range(tokenizer.vocab_size)
        if (piece := tokenizer.piece(token)) and token not in tokenizer.silent
    }
    constraint = begun(Vocabulary(tokenizer, tokenizer.vocab_size), literal(TEXT), tokenizer.eos_ids)
    rest, whole, tokens = TEXT.encode(), False, []
    while rest:
        assert not whole
        expected = [token for token, piece in pieces.items() if rest.startswith(piece)]
        assert allowed(constraint) == expected
        choose = max if longest else min
        tokens.append(choose(expected, key=lambda token: len(pieces[token])))
        rest = rest[len(pieces[tokens[-1]]) :]
        whole = constraint.accept(tokens[-1])
    assert whole
    assert tokenizer.decode(tokens, continues=True) == TEXT


@pytest.mark.parametrize(("vocab_size", "n_bytes"), [(288, 36), (300, 38), (280, 35), (1024, 128)])
def test_a_mask_is_as_long_as_the_models_vocabulary(vocab_size: int, n_bytes: int) -> None:
    """Padding of a model's vocabulary is never allowed, and tokens that it lacks are not either."""
    tokenizer = tokenizer_of("tiny.t")
    constraint = begun(Vocabulary(tokenizer, vocab_size), translated("regex", r"(.|\n)*"), (2,))
    assert constraint.mask.shape == (n_bytes,)
    begins = {*range(0x80), *range(0xC2, 0xF5)}  # what a character in UTF-8 begins with
    text = [token for token in range(3, min(vocab_size, 288)) if tokenizer.piece(token)[0] in begins]
    assert allowed(constraint) == [2, *text]


def test_stop_ids_come_where_the_text_may_end_and_nowhere_else() -> None:
    tokenizer = tokenizer_of("tiny.t")
    vocabulary = Vocabulary(tokenizer, 288)
    a = tokenizer.encode("a", bos=False)[-1]
    assert tokenizer.piece(a) == b"a"
    for stop_ids in ((2,), (1, 2), ()):
        constraint = begun(vocabulary, translated("regex", "a{2,4}"), stop_ids)
        ends = []
        while not constraint.accept(a):
            ends.append([token for token in allowed(constraint) if token in (1, 2)])
        assert ends == [[], list(stop_ids), list(stop_ids)]


def test_special_tokens_come_where_they_are_named_and_not_where_their_names_are_text() -> None:
    tokenizer = source("llama3.json")
    special = tokenizer.specials["<|eot_id|>"]
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size)
    assert allowed(begun(vocabulary, translated("lark", "start: <|eot_id|> /a/"))) == [special]
    as_text = begun(vocabulary, literal("<|eot_id|>"))
    assert special not in allowed(as_text)
    assert {tokenizer.piece(token)[:1] for token in allowed(as_text)} == {b"<"}


def test_a_special_token_that_ends_an_answer_is_no_part_of_one() -> None:
    tokenizer = source("llama3.json")
    special = tokenizer.specials["<|eot_id|>"]
    constraint = Vocabulary(tokenizer, tokenizer.vocab_size).constraint(
        translated("lark", "start: <|eot_id|>"), (special,)
    )
    assert constraint.wait(COMPILE_S)
    with pytest.raises(RequestError, match="a token that ends an answer"):
        constraint.check()


def test_constraints_do_not_disturb_each_other() -> None:
    tokenizer = tokenizer_of("tiny.t")
    vocabulary = Vocabulary(tokenizer, 288)
    one, other = begun(vocabulary, literal("ab")), begun(vocabulary, literal("ab"))
    before = other.mask.copy()
    first = allowed(one)[0]
    one.accept(first)
    np.testing.assert_array_equal(other.mask, before)
    assert not other.accept(first)


def test_the_vocabulary_is_made_once_however_many_grammars_come_at_once() -> None:
    asked = []

    class Counting(Tokenizer):
        def piece(self, token: int) -> bytes:
            asked.append(token)
            return super().piece(token)

    vocabulary = Vocabulary(Counting(tokenizer_of("tiny.t")._parts), 288)
    assert asked == []
    constraints = [vocabulary.constraint(literal(text)) for text in ("a", "b", "c", "d")]
    assert all(constraint.wait(COMPILE_S) for constraint in constraints)
    assert sorted(asked) == list(range(288))


def test_check_refuses_a_text_that_is_no_grammar_and_no_thread_ends_with_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    died = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    constraint = Vocabulary(tokenizer_of("tiny.t"), 288).constraint("start: nobody")
    assert constraint.wait(COMPILE_S)
    with pytest.raises(RequestError, match="nobody"):
        constraint.check()
    assert not died


def test_whatever_the_library_does_not_like_is_an_error_of_the_request() -> None:
    for token in (5, 288, 10**6, 1 << 40, -1):
        constraint = begun(Vocabulary(tokenizer_of("tiny.t"), 288), translated("regex", "[a-z]{3}"))
        with pytest.raises(RequestError, match=r"^the grammar: "):
            constraint.accept(token)
