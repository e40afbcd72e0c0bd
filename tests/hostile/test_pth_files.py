"""Damaged and hostile folders of Meta's: our error, in bounded time and memory; and no pickle ever runs."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from folders import (
    arrays_of,
    meta_params,
    meta_tensors,
    pickled_dict,
    pickled_storage,
    pickled_tensor,
    text,
    write_archive,
    write_meta,
    write_pth,
)
from hostile.refusal import opens_whole_or_is_refused, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.errors import FormatError
from dllama_zmq.formats import open_meta
from dllama_zmq.formats.meta.pickled import MAX_OPCODES, MAX_PICKLE_BYTES, read_tensors

SPEC = tiny_spec(dim=32, hidden_dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=32)
any_file = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
GOLDEN = Path(__file__).parents[1] / "golden" / "meta_llama" / "consolidated.00.pth"


@pytest.fixture(scope="module")
def arrays(tmp_path_factory) -> dict[str, np.ndarray]:
    with write_tiny_model(tmp_path_factory.mktemp("sound") / "a.m", SPEC) as model:
        return arrays_of(model)


@pytest.fixture
def folder(tmp_path, arrays) -> Path:
    return write_meta(tmp_path / "meta", SPEC, arrays)


def refused(folder: Path, content: bytes) -> str:
    (folder / "consolidated.00.pth").write_bytes(content)
    return refusal(open_meta, folder)


def refused_pickle(folder: Path, data: bytes, **records: bytes) -> str:
    """The refusal of an archive with this data.pkl."""
    write_archive(folder / "consolidated.00.pth", {"data.pkl": data, "data/0": bytes(4096), **records})
    said = refusal(open_meta, folder)
    assert "consolidated.00.pth" in said
    return said


class _Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("inside", [False, True])
def test_a_pickle_that_would_execute_does_not(folder, protocol, inside):
    canary = folder / "canary"
    evil = _Runs(os.system, f"touch {canary}")
    said = refused_pickle(folder, pickle.dumps({"tok_embeddings.weight": evil} if inside else evil, protocol))
    assert "Nothing was executed" in said
    if protocol < 4:  # later ones are refused for their opcodes
        assert "posix.system" in said or "opcode" in said
    assert not canary.exists()
    pickle.loads(pickle.dumps(evil, protocol))  # noqa: S301 - the canary is one
    assert canary.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "os system",
        "torch load",
        "torch._utils _rebuild_tensor",
        "collections defaultdict",
        "torch LongStorage",
        "torch.BFloat16 Storage",
        "torch._utils _rebuild_tensor_v2.__globals__",
    ],
)
def test_a_name_that_no_file_of_tensors_needs_is_refused_and_named(folder, name):
    module, _, attribute = name.partition(" ")
    said = refused_pickle(folder, b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b".")
    assert f"it imports {module}.{attribute}" in said
    assert "offset 2" in said


STORAGE = pickled_storage("0", "FloatStorage", 1024)
PICKLES = {
    "nothing": b"",
    "no stop": b"\x80\x02}",
    "an empty stack": b"\x80\x02.",
    "a list": b"\x80\x02].",
    "a number": b"\x80\x02K\x01.",
    "a dict of numbers": b"\x80\x02}(" + text("a") + b"K\x01u.",
    "a dict of dicts": b"\x80\x02}(" + text("a") + b"}u.",
    "a dict in itself": b"\x80\x02}q\x00(" + text("a") + b"h\x00u.",
    "a key that is no text": b"\x80\x02}(K\x01" + pickled_tensor(STORAGE, (32, 32)) + b"u.",
    "a name twice": b"\x80\x02}(" + 2 * (text("a") + pickled_tensor(STORAGE, (32, 32))) + b"u.",
    "items without a value": b"\x80\x02}(" + text("a") + b"u.",
    "a value never kept": b"\x80\x02h\x07.",
    "no mark": b"\x80\x02}u.",
    "LONG4 of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b".",
    "LONG4 of -1 bytes": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "text of 2^32 bytes": b"\x80\x02X" + struct.pack("<I", (1 << 32) - 1) + b"a.",
    "text of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"a.",
    "bytes of 2^60": b"\x80\x05\x8e" + struct.pack("<Q", 1 << 60) + b"a.",
    "a frame of 2^60 bytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"a.",
    "a laugh": b"\x80\x02("
    + b"K\x01" * 10
    + b"t"
    + b"".join(b"q\x00(" + b"h\x00" * 10 + b"t" for _ in range(50))
    + b".",
    "a tower": b"\x80\x02)" + b"\x85" * 20_000 + b".",
    "doubled": b"\x80\x02]" + b"2" * 100_000 + b".",
    "a decimal of a million digits": b"\x80\x02L" + b"9" * 900_000 + b"L\n.",
    "an instance": b"\x80\x02(ios\nsystem\n.",
    "an object": b"\x80\x02(cos\nsystem\no.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id of text": b"\x80\x02Pabc\n.",
    "a storage of a list": b"\x80\x02" + text("storage") + b"Q.",
    "a storage of no type": b"\x80\x02(" + text("storage") + b"N" + text("0") + text("cpu") + b"K\x01tQ.",
    "a dict called with values": b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    "a storage called": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "a tuple called": b"\x80\x02))R.",
    "attributes of a tuple": b"\x80\x02)}b.",
    "few arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "a tensor of itself": pickled_dict({"a": pickled_tensor(b"K\x01", (32, 32))}),
    "protocol 255": b"\x80\xff}.",
}


@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_that_is_no_dict_of_tensors_is_refused(folder, what):
    refused_pickle(folder, PICKLES[what])


def test_a_pickle_of_too_many_opcodes_or_bytes_is_refused_for_that(folder):
    many, long = (b"\x80\x02" + b")" * n_opcodes + b"." for n_opcodes in (MAX_OPCODES + 1, MAX_PICKLE_BYTES))
    assert f"more than {MAX_OPCODES} opcodes" in refused_pickle(folder, many)
    assert f"expected at most {MAX_PICKLE_BYTES}" in refused_pickle(folder, long)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (pickled_tensor(STORAGE, (32, 33)), "from value 0 of a storage of 1024"),
        (pickled_tensor(STORAGE, (32, 32), first=1), "from value 1"),
        (pickled_tensor(STORAGE, (1 << 60, 1 << 60), strides=(1, 1)), "not contiguous"),
        (pickled_tensor(STORAGE, (1 << 60,)), "of a storage of 1024"),
        (pickled_tensor(STORAGE, (-32, -32)), "not sizes"),
        (pickled_tensor(STORAGE, (32, 32), first=-1), "not sizes"),
        (pickled_tensor(STORAGE, (32, 32), strides=(1, 32)), "not contiguous"),
        (pickled_tensor(STORAGE, (32, 32), strides=(0, 0)), "not contiguous"),
        (pickled_tensor(STORAGE, (32, 32), strides=(32,)), "not sizes"),
        (pickled_tensor(STORAGE, (1,) * 9), "not sizes"),
        (pickled_tensor(STORAGE, (2, 4, 4)), "shape [2, 4, 4]; expected one or two numbers"),
        (pickled_tensor(STORAGE, ()), "shape []; expected one or two numbers"),
        (pickled_tensor(pickled_storage("0", "FloatStorage", 1 << 60), (32, 32)), "has 4096 bytes"),
        (pickled_tensor(pickled_storage("0", "FloatStorage", -1), (32, 32)), "a type or size that no model has"),
        (pickled_tensor(pickled_storage("0", "HalfStorage", 1024), (32, 32)), "has 4096 bytes"),
        (pickled_tensor(pickled_storage("9", "FloatStorage", 1024), (32, 32)), "the record 'data/9' is missing"),
        (pickled_tensor(pickled_storage("../x", "FloatStorage", 1024), (32, 32)), "the record 'data/../x' is missing"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(folder, tensor, words):
    assert words in refused_pickle(folder, pickled_dict({"tok_embeddings.weight": tensor}))


def test_an_archive_cut_anywhere_is_refused(folder):
    content = GOLDEN.read_bytes()
    rng = random.Random(5)
    for cut in [
        *range(200),
        *range(len(content) - 200, len(content)),
        *(rng.randrange(len(content)) for _ in range(200)),
    ]:
        refused(folder, content[:cut])


def test_compressed_records_are_refused(folder):
    with zipfile.ZipFile(folder / "consolidated.00.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    assert "compressed" in refusal(open_meta, folder)


def test_an_archive_of_another_kind_is_refused(folder):
    for names in (["archive/data.pkl", "other/data.pkl"], ["data.pkl"], ["archive/data"], []):
        with zipfile.ZipFile(folder / "consolidated.00.pth", "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
        refusal(open_meta, folder)
    assert "PyTorch before 1.6" in refused(folder, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    assert "the file is empty" in refused(folder, b"")


def test_records_that_overlap_or_lie_outside_are_refused(folder, arrays):
    path = folder / "consolidated.00.pth"
    content = path.read_bytes()
    central = [i for i in range(len(content)) if content.startswith(b"PK\x01\x02", i)]

    def with_offset(entry: int, offset: int) -> bytes:
        changed = bytearray(content)
        struct.pack_into("<I", changed, central[entry] + 42, offset)
        return bytes(changed)

    first, second = (struct.unpack_from("<I", content, central[i] + 42)[0] for i in (2, 3))
    assert first != second
    assert "overlap" in refused(folder, with_offset(3, first))
    assert "no record begins there" in refused(folder, with_offset(3, first + 1))
    refused(folder, with_offset(3, len(content) - 4))
    refused(folder, with_offset(3, 0xFFFFFFFE))
    for size_at in (20, 24):  # compressed and plain size
        changed = bytearray(content)
        for at in (20, 24) if size_at == 24 else (20,):
            struct.pack_into("<I", changed, central[3] + at, 0xFFFFFFF0)
        refused(folder, bytes(changed))


def test_a_record_that_extends_beyond_the_file_is_refused(folder):
    changed = bytearray((folder / "consolidated.00.pth").read_bytes())
    last = changed.rindex(b"PK\x01\x02")
    struct.pack_into("<II", changed, last + 20, len(changed), len(changed))
    assert f"{len(changed)} bytes from offset" in refused(folder, bytes(changed))


def test_a_directory_said_to_be_huge_is_refused(folder):
    content = bytearray((folder / "consolidated.00.pth").read_bytes())
    end = content.rindex(b"PK\x05\x06")
    for n_bytes, at in ((0xFFFFFFF0, 0), (1 << 20, 0), (0, 0xFFFFFFF0)):
        changed = bytearray(content)
        struct.pack_into("<II", changed, end + 12, n_bytes, at)
        refused(folder, bytes(changed))
    large = b"PK\x03\x04" + bytes(3 << 20)
    directory = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 3 << 20, 4, 0)
    assert "bytes of directory" in refused(folder, large + directory)


def test_params_that_are_none_are_refused(folder):
    for said in (b"", b"[]", b"{}", b"[" * 1_000_000, b'{"dim": "a"}', b"\xff"):
        (folder / "params.json").write_bytes(said)
        refusal(open_meta, folder)
    changes = [
        {"dim": 1 << 40},
        {"dim": -1},
        {"dim": 64},
        {"n_layers": 1 << 30},
        {"n_layers": 4096},
        {"n_layers": 2},
        {"n_heads": 0},
        {"n_heads": 3},
        {"n_kv_heads": 0},
        {"n_kv_heads": 2},
        {"n_kv_heads": -1},
        {"norm_eps": 0},
        {"norm_eps": None},
        {"rope_theta": -1},
        {"vocab_size": 33},
        {"max_seq_len": 0},
        {"rope_scaling_factor": -1, "use_scaled_rope": True},
        {"sliding_window": 0},
        {"head_dim": 7},
    ]
    for change in changes:
        (folder / "params.json").write_text(json.dumps(meta_params(SPEC) | change))
        refusal(open_meta, folder)
    (folder / "params.json").write_text(json.dumps(meta_params(SPEC, moe={"num_experts": 8})))
    assert "does not know the key 'moe'" in refusal(open_meta, folder)
    (folder / "params.json").write_text(json.dumps(meta_params(SPEC)))
    open_meta(folder).close()


def test_shards_that_are_missing_or_of_another_model_are_refused(tmp_path, arrays):
    folder = write_meta(tmp_path / "a", SPEC, arrays, n_shards=2)
    second = folder / "consolidated.01.pth"
    kept = second.read_bytes()
    second.unlink()
    assert "by params.json it is" in refusal(open_meta, folder)
    (folder / "consolidated.02.pth").write_bytes(kept)
    assert "no consolidated.01.pth" in refusal(open_meta, folder)
    (folder / "consolidated.02.pth").unlink()
    tensors = meta_tensors(arrays)
    write_pth(second, tensors)
    assert "The shards are not of one model" in refusal(open_meta, folder)
    del tensors["norm.weight"]
    write_pth(second, tensors)
    assert "is missing" in refusal(open_meta, folder) or "not of one model" in refusal(open_meta, folder)
    write_pth(folder / "consolidated.00.pth", tensors)
    second.unlink()
    assert "the tensor norm.weight is missing" in refusal(open_meta, folder)
    write_pth(folder / "consolidated.00.pth", meta_tensors(arrays) | {"layers.0.lora.weight": np.zeros((2, 2), "f4")})
    assert "'layers.0.lora.weight' does not belong to the model" in refusal(open_meta, folder)


@any_file
@given(data=st.data())
def test_an_archive_with_any_bytes_changed_opens_or_is_refused(tmp_path_factory, arrays, data):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    path = folder / "consolidated.00.pth"
    if not folder.exists():
        write_meta(folder, SPEC, arrays)
        (folder / "sound").write_bytes(path.read_bytes())
    changed = bytearray((folder / "sound").read_bytes())
    pickled, directory = changed.index(b"\x80\x02}"), changed.index(b"PK\x01\x02")
    places = st.one_of(st.integers(0, pickled + 3000), st.integers(directory, len(changed) - 1))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(places)] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    opens_whole_or_is_refused(open_meta, folder)


@any_file
@given(st.binary(max_size=200))
def test_random_bytes_are_no_pickle_of_tensors(content):
    with pytest.raises(FormatError, match=r"a\.pkl"):
        read_tensors(b"\x80\x02" + content, "a.pkl")
