"""Damaged and hostile GGUF files: always FormatError, in bounded time and memory, with what is wrong and where."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_writer import FileTensor, Typed, file_tensor, gguf_bytes, llama_metadata, llama_name, text
from hostile.refusal import refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_spec, tiny_tensors

from dllama_zmq.errors import FormatError
from dllama_zmq.formats import gguf_metadata, open_gguf, open_model
from dllama_zmq.formats.gguf.container import Container
from dllama_zmq.spec import FloatType

SPEC = tiny_spec(n_layers=1, weight_type=FloatType.Q80)
METADATA = llama_metadata(SPEC) | {
    "tokenizer.ggml.tokens": ["a", "b", "", "▁the"],
    "tokenizer.ggml.scores": Typed("f32", [0.0, 1.0, 2.0]),
    "general.alignment": 32,
}
TENSORS = [file_tensor(llama_name(name), m) for name, m in tiny_tensors(SPEC)]
SOUND = gguf_bytes(METADATA, TENSORS)
U64_MAX = (1 << 64) - 1
LENGTHS = [1 << 20, 1 << 32, 1 << 60, (1 << 63) - 1, 1 << 63, U64_MAX - 7, U64_MAX]
any_file = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(path: Path, content: bytes, read: Callable[[Path], object] = open_gguf) -> str:
    path.write_bytes(content)
    return refusal(read, path)


def opens_or_is_refused(path: Path, content: bytes) -> None:
    """What opens can be read from end to end."""
    path.write_bytes(content)
    try:
        with open_gguf(path) as model:
            assert sum(model.read(t.name).nbytes for t in model.tensors) == model.nbytes
        gguf_metadata(path)
    except FormatError as error:
        assert str(path) in str(error)  # noqa: PT017 - both ends are right; what must not be is another exception


def test_the_sound_file_opens(tmp_path):
    (tmp_path / "a.gguf").write_bytes(SOUND)
    open_model(tmp_path / "a.gguf").close()


def test_a_file_cut_anywhere_in_its_metadata_is_refused(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(SOUND)
    data_at = min(tensor.offset for tensor in Container(path).placed().values())
    for cut in range(data_at + 2):
        path.write_bytes(SOUND[:cut])
        with pytest.raises(FormatError, match=r"a\.gguf: "):
            open_gguf(path)


def test_a_file_cut_at_a_tensor_is_refused_with_the_tensor_and_the_bytes(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(SOUND)
    for tensor in Container(path).placed().values():
        for cut in (tensor.offset, tensor.offset + 1, tensor.offset + tensor.nbytes - 1):
            words = refused(path, SOUND[:cut])
            assert f"the file ends at {cut}. It is cut short" in words
    rng = random.Random(3)
    for _ in range(30):
        refused(path, SOUND[: rng.randrange(tensor.offset + tensor.nbytes)])


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("read", [open_gguf, gguf_metadata])
def test_lengths_beyond_the_file_are_refused(tmp_path, n, read):
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    key, path = text("k"), tmp_path / "a.gguf"
    assert "key 1 of 1" in refused(path, head + struct.pack("<Q", n) + bytes(100), read)
    assert "k takes" in (words := refused(path, head + key + struct.pack("<IQ", 8, n) + bytes(100), read)) or (
        f"k is {n} bytes long" in words
    )
    for kind in (0, 6, 8, 12):
        words = refused(path, head + key + struct.pack("<IIQ", 9, kind, n) + bytes(100), read)
        assert f"k has {n} items" in words or "k takes" in words or "string 12 of k takes 8" in words
    array = struct.pack("<IIQ", 9, 8, 2) + text("a") + struct.pack("<Q", n)
    assert "the last string of k" in refused(path, head + key + array + bytes(100), read)
    name = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", n)
    assert "the name of tensor 1 of 1" in refused(path, name + bytes(100), read)


@pytest.mark.parametrize("n", LENGTHS)
def test_counts_beyond_the_file_are_refused(tmp_path, n):
    path = tmp_path / "a.gguf"
    assert f"{n} tensors; expected at most" in refused(path, b"GGUF" + struct.pack("<IQQ", 3, n, 0) + bytes(1000))
    assert f"{n} metadata pairs; expected at most" in refused(path, b"GGUF" + struct.pack("<IQQ", 3, 0, n) + bytes(99))
    few = b"GGUF" + struct.pack("<IQQ", 3, 1 << 16, 1 << 14)
    assert "key" in refused(path, few + bytes(100))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "the file is empty"),
        (b"GGU", "begins with"),
        (b"FUGG", "begins with"),
        (b"GGUF", "the version takes 4 bytes"),
        (b"GGUF" + struct.pack("<I", 1), "GGUF version 1"),
        (b"GGUF" + struct.pack("<I", 4), "GGUF version 4"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF" + struct.pack("<I", 3), "the number of tensors takes 8 bytes"),
    ],
)
def test_a_file_that_is_no_gguf_of_a_known_version_is_refused(tmp_path, start, words):
    assert words in refused(tmp_path / "a.gguf", start)


def test_arrays_that_go_deeper_and_deeper_are_refused(tmp_path):
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 9)
    assert "array of arrays" in refused(tmp_path / "a.gguf", head + struct.pack("<IQ", 9, 1) * 100_000)


def test_more_items_than_any_vocabulary_has_are_refused(tmp_path):
    n = 1 << 21
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    most = text("k") + struct.pack("<IIQ", 9, 0, n) + bytes(n)
    words = refused(tmp_path / "a.gguf", head + most + text("l") + struct.pack("<IIQ", 9, 0, 1) + b"\0")
    assert "l has 1 items; expected at most" in words


def test_as_many_strings_as_there_may_be_are_walked_over_soon(tmp_path):
    n = 1 << 21
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, n) + bytes(8 * n))
    before = time.process_time()
    with pytest.raises(FormatError, match=r"general\.architecture is missing"):
        open_gguf(path)
    assert time.process_time() - before < 3  # measured 0.2 to 0.4


def test_metadata_without_end_is_refused_before_it_is_all_read(tmp_path):
    path = tmp_path / "a.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 1 << 21))
        file.write(struct.pack("<Q", 1 << 26))
        file.truncate(1 << 33)  # a hole: it takes no disk
    words = refusal(open_gguf, path)
    assert "metadata may not go beyond" in words


@pytest.mark.parametrize("kind", [13, 14, 100, (1 << 32) - 1])
def test_an_unknown_type_of_metadata_is_refused_with_its_place(tmp_path, kind):
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("key")
    words = refused(tmp_path / "a.gguf", head + struct.pack("<I", kind) + bytes(100))
    assert f"offset {len(head)}: key is of type {kind}" in words
    words = refused(tmp_path / "a.gguf", head + struct.pack("<IIQ", 9, kind, 1) + bytes(100))
    assert f"key has items of type {kind}" in words


def test_keys_and_tensors_that_are_there_twice_are_refused(tmp_path):
    pairs = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text("k") + struct.pack("<II", 4, 1))
    assert "key k occurs twice" in refused(tmp_path / "a.gguf", pairs)
    assert "occurs twice" in refused(tmp_path / "a.gguf", gguf_bytes(METADATA, [*TENSORS, TENSORS[3]]))


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb", b"\x1b[2J", "\u202e".encode()])
def test_names_that_cannot_be_shown_are_refused(tmp_path, name):
    tensor = FileTensor("", [32], 0, bytes(128))
    content = gguf_bytes(METADATA, [tensor]).replace(struct.pack("<QI", 0, 1), text(name) + struct.pack("<I", 1))
    words = refused(tmp_path / "a.gguf", content)
    assert "the name of tensor 1 of 1" in words
    assert words.isprintable()


def test_text_that_is_not_utf_8_is_refused_where_it_is_read(tmp_path):
    path = tmp_path / "a.gguf"
    assert "general.name is not UTF-8" in refused(path, gguf_bytes(METADATA | {"general.name": b"\xff"}, TENSORS))
    content = gguf_bytes(METADATA | {"tokenizer.ggml.tokens": ["a", b"\xc3("]}, TENSORS)
    assert "tokenizer.ggml.tokens: string 1 is not UTF-8" in refused(path, content, gguf_metadata)
    open_gguf(path).close()  # which does not read it


@pytest.mark.parametrize("alignment", [0, 3, 33, 1 << 31, "32", -32])
def test_an_alignment_that_is_none_is_refused(tmp_path, alignment):
    value: Any = Typed("i32", alignment) if alignment == -32 else alignment
    assert "general.alignment is" in refused(tmp_path / "a.gguf", gguf_bytes(METADATA | {"general.alignment": value}))


def with_tensor(**changes: Any) -> bytes:
    tensor = {"name": "x.weight", "axes": [64, 2], "type_id": 0, "data": bytes(512)} | changes
    return gguf_bytes(METADATA, [*TENSORS, FileTensor(**tensor)])


@pytest.mark.parametrize("offset", [1 << 20, 1 << 40, (1 << 63) - 32, 1 << 63, U64_MAX - 31])
def test_offsets_past_the_end_are_refused(tmp_path, offset):
    assert "tensor x.weight takes 512 bytes, but the file ends at" in refused(
        tmp_path / "a.gguf", with_tensor(offset=offset)
    )


def test_tensors_that_overlap_are_refused(tmp_path):
    for offset in (0, 32, 64):
        assert "overlap. The file is damaged" in refused(tmp_path / "a.gguf", with_tensor(offset=offset))
    assert "begins 33 bytes into the data; expected a multiple" in refused(tmp_path / "a.gguf", with_tensor(offset=33))


@pytest.mark.parametrize(
    "axes", [[0], [64, 0], [1 << 63, 2], [1 << 32, 1 << 32], [U64_MAX] * 4, [1 << 50], [1 << 25, 1 << 24]]
)
def test_absurd_shapes_are_refused(tmp_path, axes):
    words = refused(tmp_path / "a.gguf", with_tensor(axes=axes))
    assert "tensor x.weight has the shape" in words or "tensor x.weight takes" in words


def test_shapes_of_no_axes_or_many_are_refused(tmp_path):
    assert "x.weight has 0 axes" in refused(tmp_path / "a.gguf", with_tensor(axes=[]))
    assert "x.weight has 5 axes" in refused(tmp_path / "a.gguf", with_tensor(axes=[1] * 5))
    content = with_tensor(axes=[7]).replace(text("x.weight") + struct.pack("<I", 1), text("x.weight") + b"\xff" * 4)
    assert f"x.weight has {(1 << 32) - 1} axes" in refused(tmp_path / "a.gguf", content)


@pytest.mark.parametrize(
    ("type_id", "words"),
    [
        (16, "tensor x.weight is of type IQ2_XXS, which this version does not read. Get the model's Q4_K_M or Q8_0"),
        (21, "IQ3_S"),
        (29, "IQ1_M"),
        (40, "NVFP4"),
        (4, "of the unknown type 4"),
        ((1 << 32) - 1, "of the unknown type 4294967295"),
    ],
)
def test_types_that_are_not_read_are_refused_by_name(tmp_path, type_id, words):
    assert words in refused(tmp_path / "a.gguf", with_tensor(type_id=type_id))


@pytest.mark.parametrize("type_id", [2, 10, 11, 12, 13, 14, 20, 23, 34, 35, 39])
def test_rows_that_are_no_whole_blocks_are_refused(tmp_path, type_id):
    assert "needs whole blocks" in refused(tmp_path / "a.gguf", with_tensor(type_id=type_id, axes=[16, 2]))


def test_a_tensor_that_no_model_here_uses_is_refused(tmp_path):
    assert "this version does not use the tensor x.weight" in refused(tmp_path / "a.gguf", with_tensor())


@pytest.mark.parametrize("missing", range(len(TENSORS)))
def test_a_missing_tensor_is_named(tmp_path, missing):
    path = tmp_path / "a.gguf"
    content = gguf_bytes(METADATA, [t for i, t in enumerate(TENSORS) if i != missing])
    if TENSORS[missing].name == "output.weight":  # the embedding stands in
        path.write_bytes(content)
        open_gguf(path).close()
    else:
        assert f"the tensor {TENSORS[missing].name}, which the model needs, is missing" in refused(path, content)


SIZES = ["block_count", "context_length", "embedding_length", "feed_forward_length"]
NEEDED = [*SIZES, "attention.head_count", "attention.layer_norm_rms_epsilon"]


@pytest.mark.parametrize("key", NEEDED)
def test_a_number_that_every_model_needs_is_missed_by_name(tmp_path, key):
    metadata = {k: v for k, v in METADATA.items() if k != f"llama.{key}"}
    assert f"{key} is missing" in refused(tmp_path / "a.gguf", gguf_bytes(metadata, TENSORS))


@pytest.mark.parametrize("key", [*NEEDED, "attention.head_count_kv", "attention.key_length", "rope.freq_base"])
@pytest.mark.parametrize(
    "value",
    [0, Typed("i64", -1), Typed("u64", U64_MAX), (1 << 31) + 1, "8", Typed("f32", float("nan")),
     Typed("f64", float("inf")), Typed("f64", 1e300), 1.5, Typed("u32", []), Typed("u32", [1, 2]), ["a"],
     Typed("u8", [7] * 100_000)],
)  # fmt: skip
def test_an_absurd_number_is_refused_and_named(tmp_path, key, value):
    content = gguf_bytes(METADATA | {f"llama.{key}": value}, TENSORS)
    if key == "rope.freq_base" and value in ((1 << 31) + 1, Typed("u64", U64_MAX), 1.5, Typed("f64", 1e300)):
        opens_or_is_refused(tmp_path / "a.gguf", content)  # an odd base, but a base
        return
    words = refused(tmp_path / "a.gguf", content)
    assert len(words) < 1000


@pytest.mark.parametrize("experts", [1 << 10, 1 << 20, U64_MAX])
def test_more_experts_than_the_file_has_are_refused(tmp_path, experts):
    more = {"llama.expert_count": Typed("u64", experts), "llama.expert_used_count": 2, "llama.block_count": 1 << 12}
    assert "expert_count is" in refused(tmp_path / "a.gguf", gguf_bytes(METADATA | more, TENSORS))


def test_layers_without_end_are_refused(tmp_path):
    for layers in (2, 1 << 12, 1 << 20):
        words = refused(tmp_path / "a.gguf", gguf_bytes(METADATA | {"llama.block_count": layers}, TENSORS))
        assert "blk.1.attn_q.weight" in words or "n_layers is" in words


def test_metadata_of_another_shape_than_the_tensors_is_refused(tmp_path):
    content = gguf_bytes(METADATA | {"llama.feed_forward_length": 160}, TENSORS)
    words = refused(tmp_path / "a.gguf", content)
    assert "blk.0.ffn_gate.weight is 128 x 64; by the metadata it is 160 x 64" in words


@pytest.mark.parametrize(
    "changes", [{"split.count": Typed("u16", 60_000)}, {"split.count": "3"}, {"split.count": Typed("u64", U64_MAX)}]
)
def test_absurd_splits_are_refused(tmp_path, changes):
    words = refused(tmp_path / "a-00001-of-60000.gguf", gguf_bytes(METADATA | changes, TENSORS))
    assert "split.count" in words or "files of a model" in words


def test_many_layers_described_and_not_there_take_bounded_memory(tmp_path):
    tensors = [FileTensor(f"blk.{i}.attn_q.weight", [64, 64], 8, b"", offset=0) for i in range(20_000)]
    refused(tmp_path / "a.gguf", gguf_bytes(METADATA, tensors))


@any_file
@given(
    flips=st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    in_head=st.booleans(),
)
def test_a_sound_file_with_bytes_changed_opens_or_is_refused(tmp_path, flips, in_head):
    content = bytearray(SOUND)
    for at, value in flips:
        content[at % 2000 if in_head else at] = value
    opens_or_is_refused(tmp_path / "a.gguf", bytes(content))


@any_file
@given(rest=st.binary(max_size=400), counts=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_random_bytes_are_refused(tmp_path, rest, counts):
    refused(tmp_path / "a.gguf", b"GGUF" + struct.pack("<IQQ", 3, *counts) + rest)


@any_file
@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(METADATA)),
        st.one_of(st.integers(0, 300), st.floats(width=32), st.text(max_size=5), st.booleans()),
        max_size=3,
    )
)
def test_a_sound_file_with_metadata_changed_opens_or_is_refused(tmp_path, changes):
    opens_or_is_refused(tmp_path / "a.gguf", gguf_bytes(METADATA | changes, TENSORS))
