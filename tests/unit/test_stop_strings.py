"""Stop strings: the text ends before the first, wherever it is cut; what may begin one is held back, and no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_zmq.errors import RequestError
from dllama_zmq.stop_strings import StopStrings, check_stop
from dllama_zmq.tokenizer.decoder import IncrementalDecoder

letters = st.text("ab", max_size=40)  # few letters: strings repeat themselves, and begin in one another
stops = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


def of_bytes(*stop: str) -> IncrementalDecoder:
    """A decoder of tokens that are one byte each."""
    return IncrementalDecoder(lambda token: bytes([token]), stop=stop)


def searched(text: str, strings: list[str]) -> str | None:
    """The text before the first stop string, found in the whole of it; None where there is none."""
    found = [(text.index(string) + len(string), text.index(string)) for string in strings if string in text]
    return text[: min(found)[1]] if found else None


@given(pieces=st.lists(letters, max_size=12), strings=stops)
def test_the_text_is_that_of_a_search_in_the_whole_of_it(pieces: list[str], strings: list[str]) -> None:
    stop, whole, shown = StopStrings(strings), "".join(pieces), ""
    for n, piece in enumerate(pieces, 1):
        shown += stop.push(piece)
        so_far = "".join(pieces[:n])
        expected = searched(so_far, strings)
        assert bool(stop.found) == (expected is not None)
        if expected is not None:
            assert shown == expected
        else:  # all is shown but the longest end that may begin a stop string
            held = so_far[len(shown) :]
            begins = [so_far[i:] for i in range(len(so_far)) if any(s.startswith(so_far[i:]) for s in strings)]
            assert shown + held == so_far
            assert held == max(begins, key=len, default="")
    shown += stop.flush()
    assert shown == (searched(whole, strings) if stop.found else whole)


def test_nothing_is_shown_after_a_stop_string() -> None:
    stop = StopStrings(["."])
    assert [stop.push(text) for text in ("One. Two.", " Three", ".")] == ["One", "", ""]
    assert stop.flush() == ""


def test_a_stop_string_is_found_across_the_tokens_of_a_half_character() -> None:
    decoder = of_bytes(" €")
    assert [decoder.push(byte) for byte in "a €b".encode()] == ["a", "", "", "", "", ""]
    assert decoder.stopped


def test_a_half_character_at_the_end_may_complete_a_stop_string() -> None:
    decoder = of_bytes("\ufffd")
    assert [decoder.push(byte) for byte in (ord("a"), 0xE2)] == ["a", ""]
    assert (decoder.flush(), decoder.stopped) == ("", "\ufffd")


@pytest.mark.parametrize(
    ("strings", "words"),
    [
        (["a"] * 17, "17 stop strings; expected at most 16"),
        (["a", ""], "of 0 characters; expected 1 to 256"),
        (["a" * 257], "of 257 characters; expected 1 to 256"),
    ],
)
def test_strings_that_cannot_be_stop_strings_are_refused(strings: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_stop(strings)
