"""Damaged and hostile `.m` files: always FormatError, in bounded time and memory, with what is wrong and where."""

from __future__ import annotations

import os
import random
import resource
import struct
from pathlib import Path

import pytest
from hostile.refusal import opens_whole_or_is_refused, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import TINY, write_tiny_model

from dllama_zmq.formats import open_m, open_model

MAGIC, OLD_MAGIC = 0x0A00ABCD, 0xABCD00
INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1
PAIRS = {0: 0, 1: 0xABCD00, 2: 64, 3: 128, 4: 2, 5: 4, 6: 2, 7: 0, 8: 0, 9: 288, 10: 64, 11: 1, 12: 10000, 13: 0}
any_file = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    """A sound tiny model, as bytes."""
    path = tmp_path_factory.mktemp("sound") / "a.m"
    write_tiny_model(path, TINY).close()
    return path.read_bytes()


def keyed(pairs: dict[int, int], n_bytes: int = 0) -> bytes:
    header = struct.pack("<Ii", MAGIC, 8 + 8 * len(pairs))
    return header + b"".join(struct.pack("<ii", *pair) for pair in pairs.items()) + bytes(n_bytes)


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return refusal(open_m, path)


def test_a_file_cut_at_any_boundary_is_refused(tmp_path, sound):
    path = tmp_path / "a.m"
    path.write_bytes(sound)
    with open_m(path) as model:
        edges, offset = list(range(0, len(sound) - model.nbytes + 1, 4)), len(sound) - model.nbytes
        for tensor in model.tensors:
            edges.append(offset)
            offset += tensor.nbytes(model.spec)
    assert offset == len(sound)
    for edge in edges:
        for cut in {max(0, edge - 1), edge, edge + 1}:
            refused(path, sound[:cut])


def test_a_file_cut_at_random_is_refused_with_the_tensor_and_the_bytes(tmp_path, sound):
    rng = random.Random(3)
    header = 8 + 8 * len(PAIRS)
    for _ in range(50):
        cut = rng.randrange(header, len(sound))
        words = refused(tmp_path / "a.m", sound[:cut])
        assert f"The file is {cut} bytes long; expected {len(sound)}" in words
    words = refused(tmp_path / "a.m", sound[:-1])
    assert f"head takes {288 * 64 * 4} bytes, but {288 * 64 * 4 - 1} are left" in words


@pytest.mark.parametrize("n_extra", [1, 4, 100_000])
def test_bytes_after_a_files_last_tensor_are_refused(tmp_path, sound, n_extra):
    assert f"{n_extra} bytes too many" in refused(tmp_path / "a.m", sound + bytes(n_extra))


def test_an_empty_file_is_refused(tmp_path):
    assert "the file is empty" in refused(tmp_path / "a.m", b"")


@pytest.mark.parametrize("magic", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"PK\3\4", struct.pack("<I", 0xABCD02)])
def test_another_magic_is_refused(tmp_path, sound, magic):
    assert "offset 0: magic is" in refused(tmp_path / "a.m", magic + sound[4:])


@pytest.mark.parametrize("size", [INT_MIN, -8, -1, 0, 4, 7, 9, 119, 121, 8 + 8 * 1025, INT_MAX - 7, INT_MAX])
def test_a_header_size_that_is_none_is_refused(tmp_path, sound, size):
    assert f"offset 4: header size is {size}" in refused(
        tmp_path / "a.m", sound[:4] + struct.pack("<i", size) + sound[8:]
    )


def test_a_header_longer_than_the_file_is_refused(tmp_path, sound):
    content = sound[:4] + struct.pack("<i", 8 + 8 * 100) + sound[8:120]
    assert "header size is 808, but the file ends at 120" in refused(tmp_path / "a.m", content)


@pytest.mark.parametrize("key", [-1, 22, 100, INT_MIN, INT_MAX])
def test_an_unknown_key_is_refused_with_its_place(tmp_path, key):
    words = refused(tmp_path / "a.m", keyed(PAIRS | {key: 1}, 1000))
    assert f"offset {8 + 8 * 14}: header key {key} is unknown" in words


@pytest.mark.parametrize("key", [2, 3, 4, 5, 6, 9, 10])
def test_a_header_without_a_number_that_every_model_needs_is_refused(tmp_path, key):
    pairs = {k: v for k, v in PAIRS.items() if k != key}
    assert f"the header has no key {key} " in refused(tmp_path / "a.m", keyed(pairs, 1000))


def test_a_header_with_no_pairs_at_all_is_refused(tmp_path):
    assert "the header has no key 1 " in refused(tmp_path / "a.m", keyed({}))


ABSURD = [(key, value) for key in [2, 3, 4, 5, 6, 9, 10, 19] for value in [INT_MIN, -1, 0, INT_MAX]]
OTHER_ABSURD = [(12, INT_MIN), (12, -1), (12, 0), (1, 0), (1, -1), (1, 0xABCD0F), (7, -1), (8, -1),
                (11, 2), (11, -1), (13, -1), (13, 4), (13, INT_MAX),
                (14, 0), (14, -8), (18, 3), (18, -1), (20, 0), (20, 4), (20, INT_MAX)]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [*ABSURD, *OTHER_ABSURD])
@pytest.mark.parametrize("typed", [True, False])
def test_an_absurd_number_is_refused_and_named(tmp_path, key, value, typed):
    pairs = PAIRS | {key: value}
    if not typed and key != 13:
        del pairs[13]
    assert str(value) in refused(tmp_path / "a.m", keyed(pairs, 5000))


@pytest.mark.parametrize("typed", [True, False])
def test_the_largest_numbers_that_a_model_may_have_are_refused_as_too_long_for_the_file(tmp_path, typed):
    largest = {2: 1 << 20, 3: 1 << 22, 4: 1 << 12, 5: 1 << 14, 6: 1 << 14, 9: 1 << 24, 10: 1 << 24, 19: 1 << 14}
    pairs = PAIRS | largest
    if not typed:
        del pairs[13]
    words = refused(tmp_path / "a.m", keyed(pairs, 5000))
    assert ("embedding takes" if typed else "fit none") in words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({5: 3}, "does not divide dim"),
        ({6: 3}, "cannot share 3 KV heads"),
        ({5: 64}, "head_dim is 1"),
        ({13: 2, 3: 129}, "hidden_dim is 129; expected a multiple of 32"),
        ({14: 8}, "no key 15"),
        ({14: 8, 15: 0, 16: 4, 17: 8192}, "key 15"),
        ({14: 8, 15: 4, 16: 4, 17: 8192}, "key 16"),
        ({14: 8, 15: 1, 16: -4, 17: 8192}, "key 16"),
        ({14: 8, 15: 1, 16: 4, 17: 0}, "key 17"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(tmp_path, changes, words):
    assert words in refused(tmp_path / "a.m", keyed(PAIRS | changes, 5000))


def test_a_header_of_another_weight_type_than_the_file_is_refused(tmp_path, sound):
    at = 8 + 8 * 13 + 4
    assert "bytes too many" in refused(tmp_path / "a.m", sound[:at] + struct.pack("<i", 2) + sound[at + 4 :])


@pytest.mark.parametrize("value", [INT_MIN, -1, 0, INT_MAX])
@pytest.mark.parametrize("field", [0, 1, 2, 3, 4, 7, 8])
def test_an_absurd_number_in_an_old_header_is_refused(tmp_path, field, value):
    numbers = [64, 128, 2, 4, 2, 0, 0, 288, 64]
    numbers[field] = value
    refused(tmp_path / "a.m", struct.pack("<I9i", OLD_MAGIC, *numbers) + bytes(5000))


def test_an_old_file_cut_in_its_header_or_tensors_is_refused(tmp_path):
    whole = struct.pack("<I9i", OLD_MAGIC, 64, 128, 2, 4, 2, 0, 0, 288, 64) + bytes(5000)
    for cut in [*range(4, 41), 1000, len(whole)]:
        refused(tmp_path / "a.m", whole[:cut])


@pytest.mark.parametrize("opens", [open_m, open_model])
def test_devices_pipes_and_folders_are_refused_at_once(tmp_path, opens):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "not a regular file" in refusal(opens, pipe)
    assert "No such file" in refusal(opens, tmp_path / "missing.m")
    refusal(opens, tmp_path)
    refusal(opens, Path("/dev/zero"))


@any_file
@given(
    head=st.sampled_from([b"", struct.pack("<I", MAGIC), struct.pack("<I", OLD_MAGIC)]), rest=st.binary(max_size=400)
)
def test_random_bytes_are_refused(tmp_path, head, rest):
    refused(tmp_path / "a.m", head + rest)


@any_file
@given(
    pairs=st.dictionaries(st.integers(0, 21), st.one_of(st.integers(-3, 70), st.integers(INT_MIN, INT_MAX)), max_size=8)
)
def test_a_sound_header_with_numbers_changed_opens_or_is_refused(tmp_path, sound, pairs):
    path = tmp_path / "a.m"
    path.write_bytes(keyed(PAIRS | pairs) + sound[8 + 8 * len(PAIRS) :])
    opens_whole_or_is_refused(open_m, path)


def test_a_sound_file_larger_than_the_address_space_left_is_refused(tmp_path):
    path = tmp_path / "large.m"
    numbers = [4096, 14336, 32, 32, 8, 0, 0, 128256, 8192]  # Llama 3 8B, whose Q40 tensors are a hole in the file here
    with path.open("wb") as file:
        file.write(struct.pack("<I9i", OLD_MAGIC, *numbers))
        file.truncate(40 + 6_323_781_632)
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (1 << 30), before[1]))
    try:
        assert "cannot be mapped" in refusal(open_m, path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
