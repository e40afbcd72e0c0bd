"""Damaged and hostile Hugging Face folders: our error, in bounded time and memory, with the file and the tensor."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from folders import arrays_of, hf_config, hf_tensors, safetensors, with_header, write_hf
from hostile.refusal import opens_whole_or_is_refused, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.errors import FormatError
from dllama_zmq.formats import open_hf, open_model
from dllama_zmq.formats.files import MAX_JSON_BYTES
from dllama_zmq.formats.hf.safetensors import read_shards

SPEC = tiny_spec(dim=32, hidden_dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=32)
GATE = "model.layers.0.mlp.gate_proj.weight"
any_file = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def arrays(tmp_path_factory) -> dict[str, np.ndarray]:
    with write_tiny_model(tmp_path_factory.mktemp("sound") / "a.m", SPEC) as model:
        return arrays_of(model)


@pytest.fixture(scope="module")
def sound(arrays) -> bytes:
    """A sound model.safetensors."""
    return safetensors(hf_tensors(SPEC, arrays))


@pytest.fixture
def folder(tmp_path, arrays) -> Path:
    return write_hf(tmp_path / "hf", SPEC, arrays)


def refused(folder: Path, content: bytes) -> str:
    (folder / "model.safetensors").write_bytes(content)
    return refusal(open_hf, folder)


def parts(sound: bytes) -> tuple[dict[str, dict], bytes]:
    """Header and data."""
    (n_header,) = struct.unpack("<Q", sound[:8])
    return json.loads(sound[8 : 8 + n_header]), sound[8 + n_header :]


def test_a_file_cut_at_any_boundary_is_refused(folder, sound):
    header, data = parts(sound)
    at = len(sound) - len(data)
    edges = [*range(0, at, 16), at, *(at + end for h in header.values() if "dtype" in h for end in h["data_offsets"])]
    for edge in edges:
        for cut in {max(0, edge - 1), edge, edge + 1} - {len(sound), len(sound) + 1}:
            refused(folder, sound[:cut])
    assert "takes" not in refused(folder, sound[:-1])
    assert "The file is cut short" in refused(folder, sound[:-1])


@pytest.mark.parametrize("n_header", [MAX_JSON_BYTES + 1, 1 << 31, 1 << 60, (1 << 64) - 1])
def test_a_huge_header_is_refused_before_it_is_read(folder, sound, n_header):
    assert f"offset 0: a header of {n_header} bytes" in refused(folder, struct.pack("<Q", n_header) + sound[8:])


def test_a_header_longer_than_the_file_is_refused(folder, sound):
    assert "the file ends at" in refused(folder, struct.pack("<Q", len(sound)) + sound[8:])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"a":',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"a":1}',
        b'{"a":{"dtype":1}}',
        b'{"a":{}}',
    ],
)
def test_a_header_that_is_none_is_refused(folder, text):
    refused(folder, with_header(text, b""))


CHANGES = [
    ({"data_offsets": [0, 1 << 60]}, "bytes 0 to 1152921504606846976 of"),
    ({"data_offsets": [1 << 60, 1 << 61]}, "bytes 1152921504606846976"),
    ({"data_offsets": [64, 0]}, "bytes 64 to 0"),
    ({"data_offsets": [-64, 0]}, "data_offsets"),
    ({"data_offsets": [0]}, "data_offsets"),
    ({"data_offsets": [0, 1 << 64]}, "data_offsets"),
    ({"shape": [1 << 60, 1 << 60]}, "but its offsets"),
    ({"shape": [33, 32]}, "takes 4224 bytes, but its offsets"),
    ({"shape": [-32, -32]}, "shape"),
    ({"shape": [1] * 1000}, "shape"),
    ({"shape": [32, 32, 1]}, "expected one or two numbers"),
    ({"shape": [16, 64]}, "is 16 x 64; by config.json it is 32 x 32"),
    ({"shape": []}, "but its offsets"),
    ({"dtype": "F16"}, "but its offsets"),
    ({"dtype": "I32"}, "is of type I32; expected F32, F16, BF16"),
    ({"dtype": "Q9"}, "is of type Q9"),
    ({"dtype": "F" * 1_000_000}, "is of type FFFF"),
    ({"dtype": None}, "has no dtype"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_tensor_that_cannot_be_is_refused_by_its_name(folder, sound, change, words):
    header, data = parts(sound)
    header[GATE] |= change
    said = refused(folder, with_header(header, data))
    assert words in said
    assert len(said) < 1000
    if "[...]" not in said:  # msgspec does not say the name
        assert GATE in said
        assert str(folder / "model.safetensors") in said


def test_overlapping_tensors_are_refused_by_their_names(folder, sound):
    header, data = parts(sound)
    up = "model.layers.0.mlp.up_proj.weight"
    header[up]["data_offsets"] = header[GATE]["data_offsets"]
    said = refused(folder, with_header(header, data))
    assert "overlap" in said or "of no tensor" in said
    header, data = parts(sound)
    first, last = header[GATE]["data_offsets"]
    header[GATE]["data_offsets"] = [first - 4, last - 4]
    said = refused(folder, with_header(header, data))
    assert f"and {GATE} overlap" in said


def test_bytes_of_no_tensor_are_refused(folder, sound):
    header, data = parts(sound)
    assert "40 bytes after" in refused(folder, with_header(header, data + bytes(40)))
    del header[GATE]
    assert "belong to no tensor" in refused(folder, with_header(header, data))


def test_one_name_twice_in_a_header_is_refused(folder, sound):
    header, data = parts(sound)
    text = json.dumps(header).encode()
    again = {GATE: {"dtype": "F32", "shape": [32, 32], "data_offsets": [len(data), len(data) + 4096]}}
    doubled = text[:-1] + b", " + json.dumps(again).encode()[1:]
    assert "names one tensor twice" in refused(folder, with_header(doubled, data + bytes(4096)))


def test_a_missing_tensor_and_one_too_many_are_refused_by_name(tmp_path, arrays):
    few = {name: values for name, values in arrays.items() if name != "layers.0.ffn.gate"}
    assert f"no file has the tensor {GATE}" in refusal(open_hf, write_hf(tmp_path / "few", SPEC, few))
    folder = write_hf(tmp_path / "many", SPEC, arrays)
    tensors = hf_tensors(SPEC, arrays)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (8,), bytes(32))
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    open_hf(folder).close()  # old files have it, and nobody reads it
    tensors["model.layers.0.self_attn.q_proj.bias"] = ("F32", (8,), bytes(32))
    assert "q_proj.bias does not belong to the model" in refused(folder, safetensors(tensors))


def test_more_layers_than_the_file_can_have_are_refused_before_they_are_listed(folder):
    config = hf_config(SPEC) | {"num_hidden_layers": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    assert "too few for the 4096 layers" in refusal(open_hf, folder)


def test_a_shard_that_is_missing_doubled_or_elsewhere_is_refused(tmp_path, arrays):
    folder = write_hf(tmp_path / "a", SPEC, arrays, n_shards=3)
    index = folder / "model.safetensors.index.json"
    shards = sorted(folder.glob("*.safetensors"))
    said = json.loads(index.read_text())
    moved = {"weight_map": said["weight_map"] | {GATE: shards[0].name}}
    wrong = next(name for name, shard in said["weight_map"].items() if shard != shards[0].name)
    index.write_text(json.dumps({"weight_map": said["weight_map"] | {wrong: shards[0].name}}))
    assert f"the tensor {wrong} is missing" in refusal(open_hf, folder)
    for name in ("../a.safetensors", "/etc/passwd", "", "a/b", ".hidden", "a" * 1000):
        index.write_text(json.dumps({"weight_map": moved["weight_map"] | {GATE: name}}))
        assert "not a plain file name" in refusal(open_hf, folder)
    index.write_text(json.dumps({"weight_map": {GATE: 1}}))
    refusal(open_hf, folder)
    index.write_text(json.dumps(said))
    shards[1].rename(tmp_path / "aside")
    assert f"the shard {shards[1].name} is not in the folder" in refusal(open_hf, folder)
    index.unlink()
    assert "no file has the tensor" in refusal(open_hf, folder)
    (folder / "zz.safetensors").write_bytes(shards[0].read_bytes())
    assert f"is in {shards[0].name} too" in refusal(open_hf, folder)


def test_a_folder_without_weights_says_what_it_lacks(folder):
    (folder / "model.safetensors").unlink()
    assert "has no .safetensors file" in refusal(open_hf, folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "PyTorch pickles" in refusal(open_hf, folder)


def test_a_pointer_of_git_lfs_is_called_so(folder):
    assert "git lfs pull" in refused(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_refused_at_once(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "not a regular file" in refusal(open_model if name == "model.safetensors" else open_hf, folder)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[" * 1_000_000, b"\xff", b'{"model_type": "llama"}', b"{" + b" " * 9_000_000]
)
def test_a_config_that_is_none_is_refused(folder, text):
    (folder / "config.json").write_bytes(text)
    refusal(open_hf, folder)


def test_a_header_full_of_tensors_takes_bounded_time_and_memory(folder):
    text = b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(40_000)) + b"}"
    refused(folder, with_header(text, b""))


@any_file
@given(data=st.data())
def test_a_header_with_any_bytes_changed_opens_or_is_refused(tmp_path_factory, arrays, sound, data):
    folder = tmp_path_factory.getbasetemp() / "flips"
    if not folder.exists():
        write_hf(folder, SPEC, arrays)
    (n_header,) = struct.unpack("<Q", sound[:8])
    changed = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 8 + n_header - 1))] = data.draw(st.integers(0, 255))
    (folder / "model.safetensors").write_bytes(changed)
    opens_whole_or_is_refused(open_hf, folder)


@any_file
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    try:
        tensors = read_shards(tmp_path)
    except FormatError:
        return
    assert not tensors  # `{}` is a sound header


def test_a_file_cut_at_random_is_refused(folder, sound):
    rng = random.Random(3)
    for _ in range(50):
        refused(folder, sound[: rng.randrange(len(sound))])
