"""Damaged and hostile `.t` files: always FormatError, in bounded time and memory, with what is wrong and where."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest
from hostile.refusal import refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tiny import tiny_tokenizer_data

from dllama_zmq.errors import FormatError
from dllama_zmq.formats import read_t, read_tokenizer, write_t
from dllama_zmq.formats.t_file import MAX_FILE_BYTES

MAGIC, OLD_MAGIC = 0x567124, 0x567123
INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1
PAIRS = {0: 1, 1: 2, 2: 3, 3: 0, 4: 1}
VOCABULARY = struct.pack("<fI3s", 0.0, 3, b"abc") + struct.pack("<fI1s", -1.0, 1, b"d")
any_file = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    """A sound tiny tokenizer with a chat template, as bytes."""
    path = tmp_path_factory.mktemp("sound") / "a.t"
    write_t(path, replace(tiny_tokenizer_data(), chat_template="{{ messages }}"))
    return path.read_bytes()


def keyed(pairs: dict[int, int], rest: bytes = VOCABULARY) -> bytes:
    header = struct.pack("<Ii", MAGIC, 8 + 8 * len(pairs))
    return header + b"".join(struct.pack("<ii", *pair) for pair in pairs.items()) + rest


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return refusal(read_t, path)


def test_the_file_that_the_others_are_made_from_is_sound(tmp_path):
    (tmp_path / "a.t").write_bytes(keyed(PAIRS))
    assert read_t(tmp_path / "a.t").pieces == [b"abc", b"d"]


def test_a_file_cut_anywhere_in_its_header_or_at_random_is_refused(tmp_path, sound):
    rng = random.Random(3)
    for cut in [*range(130), *(rng.randrange(len(sound)) for _ in range(200)), len(sound) - 1]:
        refused(tmp_path / "a.t", sound[:cut])


def test_a_file_cut_at_or_inside_a_token_is_refused(tmp_path, sound):
    edge = len(sound)
    for piece in reversed(tiny_tokenizer_data().pieces[-60:]):
        edge -= 8 + len(piece)
        for cut in (edge, edge + 1, edge + 4, edge + 8):
            refused(tmp_path / "a.t", sound[:cut])


@pytest.mark.parametrize("n_extra", [1, 9, 100_000])
def test_bytes_after_a_files_last_token_are_refused(tmp_path, sound, n_extra):
    assert f"{n_extra} bytes follow the last of 288 tokens" in refused(tmp_path / "a.t", sound + bytes(n_extra))


def test_an_empty_file_is_refused(tmp_path):
    assert "the magic takes 4 bytes, but 0 are left" in refused(tmp_path / "a.t", b"")


@pytest.mark.parametrize("magic", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"GGUF", struct.pack("<I", 0x0A00ABCD)])
def test_another_magic_is_refused(tmp_path, sound, magic):
    assert "offset 0: magic is" in refused(tmp_path / "a.t", magic + sound[4:])


@pytest.mark.parametrize("size", [INT_MIN, -8, 0, 4, 9, 8 + 8 * 1025, INT_MAX - 7, INT_MAX])
def test_a_header_size_that_is_none_is_refused(tmp_path, sound, size):
    assert f"header size is {size}" in refused(tmp_path / "a.t", sound[:4] + struct.pack("<i", size) + sound[8:])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *[({1: value}, f"the header says {value} tokens") for value in (INT_MIN, -1, 0, 3, 1 << 24, INT_MAX)],
        *[({3: value}, f"bos_id is {value}") for value in (INT_MIN, -1, 2, INT_MAX)],
        *[({4: value}, f"eos id is {value}") for value in (INT_MIN, -1, 2, INT_MAX)],
        *[({6: value}, f"eos id is {value}") for value in (-1, 2)],
        *[({key: value}, f"key {key}") for key in (7, 8, 9) for value in (INT_MIN, -1)],
        *[({7: value}, "the chat template takes") for value in (1000, INT_MAX)],
        *[({8: value}, "the chat stop takes") for value in (1000, INT_MAX)],
        *[({9: value}, "the list of EOS ids takes") for value in (6, 1000, INT_MAX)],
        ({0: 0}, "tokenizer version 0"),
        ({10: 2}, "add_bos"),
        ({11: 1}, "header key 11 is unknown"),
        ({-1: 1}, "header key -1 is unknown"),
    ],
)
def test_an_absurd_number_is_refused_and_named(tmp_path, changes, words):
    assert words in refused(tmp_path / "a.t", keyed(PAIRS | changes))


@pytest.mark.parametrize("key", [0, 1, 3, 4])
def test_a_header_without_a_number_that_every_vocabulary_needs_is_refused(tmp_path, key):
    refused(tmp_path / "a.t", keyed({k: v for k, v in PAIRS.items() if k != key}))


@pytest.mark.parametrize("length", [0, 4, 1 << 20, (1 << 32) - 1])
def test_a_token_longer_than_the_file_or_empty_is_refused(tmp_path, length):
    vocabulary = struct.pack("<fI3s", 0.0, 3, b"abc") + struct.pack("<fI1s", -1.0, length, b"d")
    assert "token 1" in refused(tmp_path / "a.t", keyed(PAIRS, vocabulary))


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_refused(tmp_path, score):
    vocabulary = struct.pack("<fI3s", 0.0, 3, b"abc") + struct.pack("<fI1s", score, 1, b"d")
    assert f"token 1 has score {score}" in refused(tmp_path / "a.t", keyed(PAIRS, vocabulary))


def test_a_chat_template_that_is_no_text_is_refused_at_its_place(tmp_path):
    words = refused(tmp_path / "a.t", keyed(PAIRS | {7: 3}, b"a\xff\xfe" + VOCABULARY))
    assert f"offset {8 + 8 * 6 + 1}: the chat template is not UTF-8" in words


@pytest.mark.parametrize(("field", "value"), [(1, 0), (1, 3), (1, (1 << 32) - 1), (3, -1), (3, 2), (4, -1), (4, 2)])
def test_an_absurd_number_in_an_old_header_is_refused(tmp_path, field, value):
    numbers: list[int] = [OLD_MAGIC, 2, 3, 0, 1, -1]
    numbers[field] = value
    refused(tmp_path / "a.t", struct.pack("<3I3i", *numbers) + VOCABULARY)


def test_a_file_too_large_to_be_a_vocabulary_is_refused_unread(tmp_path):
    path = tmp_path / "a.t"
    with path.open("wb") as file:
        file.write(keyed(PAIRS))
        file.truncate(MAX_FILE_BYTES + 1)
    assert "a file of this kind has at most" in refusal(read_t, path)


def test_devices_pipes_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "missing.t", tmp_path, Path("/dev/zero")):
        refusal(read_tokenizer, path)


@any_file
@given(
    head=st.sampled_from([b"", struct.pack("<I", MAGIC), struct.pack("<I", OLD_MAGIC)]), rest=st.binary(max_size=300)
)
def test_random_bytes_are_refused(tmp_path, head, rest):
    refused(tmp_path / "a.t", head + rest)


@any_file
@given(at=st.integers(0, 1 << 16), value=st.binary(min_size=1, max_size=8))
def test_a_sound_file_with_bytes_changed_gives_a_working_tokenizer_or_is_refused(tmp_path, sound, at, value):
    at %= len(sound)
    path = tmp_path / "a.t"
    path.write_bytes((sound[:at] + value + sound[at + len(value) :])[: len(sound)])
    try:
        tokenizer = read_tokenizer(path)
    except FormatError:
        return
    assert all(0 <= token < tokenizer.vocab_size for token in tokenizer.encode("the cat é"))
