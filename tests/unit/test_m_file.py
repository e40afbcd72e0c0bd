"""`.m` files: read from bytes written by hand, written and read back, and refused in words."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from m_bytes import HAND_PAIRS, HAND_VALUES, keyed, old
from msgspec.structs import replace
from tiny import TINY, tiny_spec, tiny_tensors, write_tiny_model

from dllama_zmq.errors import FormatError, UnsupportedModel, UsageError
from dllama_zmq.formats import data_bytes, open_m, open_model, write_m
from dllama_zmq.formats.m_keys import M_TYPES
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType, Rope, RopeScaling

LLAMA3_8B = tiny_spec(
    dim=4096, hidden_dim=14336, n_layers=32, n_heads=32, n_kv_heads=8, vocab_size=128256, weight_type=FloatType.Q40
)
LLAMA2_7B = replace(LLAMA3_8B, hidden_dim=11008, n_kv_heads=32, vocab_size=32000)
TINYLLAMA = replace(LLAMA2_7B, dim=2048, hidden_dim=5632, n_layers=22, n_kv_heads=4, head_dim=64)


def test_a_keyed_file_written_by_hand_gives_its_numbers_and_every_tensor(tmp_path):
    path = tmp_path / "hand.m"
    path.write_bytes(keyed(HAND_PAIRS))
    with open_m(path) as model:
        spec = model.spec
        assert (spec.dim, spec.hidden_dim, spec.n_layers, spec.n_heads, spec.n_kv_heads) == (2, 4, 1, 1, 1)
        assert (spec.head_dim, spec.vocab_size, spec.seq_len, spec.weight_type) == (2, 3, 16, FloatType.F32)
        assert (spec.rope, spec.norm_eps, model.nbytes) == (Rope(10000.0), 1e-5, 4 * HAND_VALUES)
        expected = {
            "embedding": [[0, 1], [2, 3], [4, 5]],
            "layers.0.attention.q": [[6, 7], [8, 9]],
            "layers.0.attention.k": [[10, 11], [12, 13]],
            "layers.0.attention.v": [[14, 15], [16, 17]],
            "layers.0.attention.o": [[18, 19], [20, 21]],
            "layers.0.ffn.gate": [[22, 23], [24, 25], [26, 27], [28, 29]],
            "layers.0.ffn.down": [[30, 31, 32, 33], [34, 35, 36, 37]],
            "layers.0.ffn.up": [[38, 39], [40, 41], [42, 43], [44, 45]],
            "layers.0.attention_norm": [[46, 47]],
            "layers.0.ffn_norm": [[48, 49]],
            "final_norm": [[50, 51]],
            "head": [[52, 53], [54, 55], [56, 57]],
        }
        assert {t.name: model.read(t.name).dequantize().tolist() for t in model.tensors} == expected


def test_pairs_may_come_in_any_order_and_the_last_of_a_key_wins(tmp_path):
    path = tmp_path / "hand.m"
    file = keyed(dict(reversed(HAND_PAIRS.items())))
    header = struct.pack("<4i", 0x0A00ABCD, 8 + 8 * 15, 10, 99) + file[8:]
    path.write_bytes(header)
    with open_m(path) as model:
        assert model.spec.seq_len == 16
        assert model.read("head").dequantize()[-1].tolist() == [56, 57]


@pytest.mark.parametrize(("float_type", "nbytes"), [("F32", 4096), ("F16", 2048), ("Q40", 576), ("Q80", 1088)])
@pytest.mark.parametrize("header", ["old", "keyed without key 13"])
def test_a_file_without_weight_type_gets_it_from_its_size(tmp_path, header, float_type, nbytes):
    # dim, FFN and vocabulary of 32: one f32 embedding, seven matrices and a head of 32 x 32, three f32 vectors of 32.
    numbers = [32, 32, 1, 1, 1, 0, 0, 32, 64]
    tensors = bytes(4096 + 8 * nbytes + 3 * 128)
    path = tmp_path / "a.m"
    if header == "old":
        path.write_bytes(old(numbers, tensors))
    else:
        pairs = dict(zip([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [0xABCD00, *numbers], strict=True))
        path.write_bytes(keyed(pairs, 0) + tensors)
    with open_m(path) as model:
        assert model.spec.weight_type is FloatType[float_type]
        assert (model.spec.vocab_size, model.spec.seq_len, model.spec.rope.theta) == (32, 64, 10000.0)


@pytest.mark.parametrize("weight_type", M_TYPES)
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"n_kv_heads": 4},
        {"head_dim": 32},
        {"norm_eps": 1e-6},
        {"rope": Rope(500000.0)},
        {"rope": Rope(10000.0, "half")},
        {"rope": Rope(500000.0, "interleaved", RopeScaling(32.0, 1.0, 4.0, 8192))},
    ],
)
def test_a_written_model_reads_back_the_same(tmp_path, weight_type, overrides):
    spec = tiny_spec(weight_type=weight_type, **overrides)
    with write_tiny_model(tmp_path / "a.m", spec, seed=3) as model:
        assert model.spec == spec
        for name, matrix in tiny_tensors(spec, seed=3):
            assert np.array_equal(model.read(name).data, matrix.data), name


def test_a_plain_llama_is_written_with_keys_0_to_13_only(tmp_path):
    write_tiny_model(tmp_path / "a.m").close()
    raw = (tmp_path / "a.m").read_bytes()
    magic, size = struct.unpack_from("<Ii", raw)
    assert (magic, size) == (0x0A00ABCD, 8 + 8 * 14)
    assert sorted(struct.unpack_from("<28i", raw, 8)[::2]) == list(range(14))


def test_tensors_are_read_only_views_that_outlive_the_file(tmp_path):
    model = write_tiny_model(tmp_path / "a.m")
    matrix = model.read("head")
    assert not matrix.data.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        matrix.data[0, 0] = 1
    before = matrix.dequantize().copy()
    model.close()
    model.close()
    assert np.array_equal(matrix.dequantize(), before)
    with pytest.raises(UsageError, match="closed"):
        model.read("head")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [(LLAMA3_8B, 6_323_781_632), (LLAMA2_7B, 4_142_416 * 1024), (TINYLLAMA, 824_584 * 1024)],
)
def test_the_tensors_of_known_models_take_the_published_bytes(spec, expected):
    assert data_bytes(spec) == expected


def test_a_model_of_six_gigabytes_opens_without_being_read(tmp_path):
    path = tmp_path / "llama3-8b.m"
    numbers = [4096, 14336, 32, 32, 8, 0, 0, 128256, 8192]
    with path.open("wb") as file:
        file.write(old(numbers, b""))
        file.truncate(40 + 6_323_781_632)  # a hole: it takes no disk
    tracemalloc.start()
    with open_m(path) as model:
        assert model.spec.weight_type is FloatType.Q40
        assert model.read("head").shape == (128256, 4096)
        assert not model.read("layers.31.ffn.up").data[-1].any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    spec = tiny_spec(dim=256, hidden_dim=512, n_layers=12)
    largest = max(tensor.nbytes for _, tensor in tiny_tensors(spec))
    tracemalloc.start()
    write_m(tmp_path / "a.m", spec, tiny_tensors(spec))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * largest < data_bytes(spec) / 2


def test_a_mapping_may_have_any_order(tmp_path):
    tensors = dict(reversed(list(tiny_tensors(TINY))))
    write_m(tmp_path / "a.m", TINY, tensors)
    with open_m(tmp_path / "a.m") as model:
        assert np.array_equal(model.read("final_norm").data, tensors["final_norm"].data)


def wrong_tensors(case: str) -> list[tuple[str, BlockMatrix]]:
    tensors = list(tiny_tensors(TINY))
    if case == "missing":
        return tensors[:-1]
    if case == "out of order":
        tensors[1], tensors[2] = tensors[2], tensors[1]
    elif case == "one too many":
        tensors.append(("head", tensors[-1][1]))
    elif case == "other shape":
        tensors[3] = (tensors[3][0], tensors[3][1].cut(slice(0, 8), slice(None)))
    elif case == "other type":
        tensors[3] = (tensors[3][0], BlockMatrix.from_array(tensors[3][1].dequantize(), FloatType.Q80))
    return tensors


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", "expected head next, but there are no more"),
        ("out of order", r"expected layers\.0\.attention\.q next, but layers\.0\.attention\.k came"),
        ("one too many", "head comes after the last tensor"),
        ("other shape", r"layers\.0\.attention\.v is \(8, 64\) F32; expected \(32, 64\) F32"),
        ("other type", r"layers\.0\.attention\.v is \(32, 64\) Q80; expected \(32, 64\) F32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_the_file_before_stays(tmp_path, case, words):
    path = tmp_path / "a.m"
    path.write_bytes(b"what was here before")
    with pytest.raises(FormatError, match=words):
        write_m(path, TINY, wrong_tensors(case))
    assert path.read_bytes() == b"what was here before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_refused_in_words(tmp_path):
    with pytest.raises(UsageError, match=r"a\.m cannot be written: No such file or directory"):
        write_m(tmp_path / "missing" / "a.m", TINY, tiny_tensors(TINY))


def test_an_unknown_name_in_a_mapping_is_refused(tmp_path):
    tensors = dict(tiny_tensors(TINY))
    tensors["tail"] = tensors["head"]
    with pytest.raises(FormatError, match="tail comes after the last tensor, or is of another model"):
        write_m(tmp_path / "a.m", TINY, tensors)


def test_a_writer_that_fails_half_way_leaves_nothing_behind(tmp_path):
    def failing():
        yield from list(tiny_tensors(TINY))[:5]
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError, match="the source went away"):
        write_m(tmp_path / "a.m", TINY, failing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "overrides",
    [
        {"norm_eps": 3e-5},
        {"rope": Rope(10000.5)},
        {"rope": Rope(1e4, "interleaved", RopeScaling(2.5, 1.0, 4.0, 8192))},
        {"rope": Rope(1e4, "half", RopeScaling(8.0, 1.0, 4.0, 8192))},
    ],
)
def test_numbers_that_the_header_cannot_hold_are_refused_before_a_file_appears(tmp_path, overrides):
    spec = tiny_spec(**overrides)
    with pytest.raises(FormatError, match=r"a \.m file cannot hold"):
        write_m(tmp_path / "a.m", spec, tiny_tensors(spec))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.gguf", b"", "a.gguf: the file is empty"),
        ("a.gguf", bytes(100), "not a GGUF"),
        ("b.m", b"GGUF" + bytes(90), "version 0"),
        ("c.m", b"PK" + bytes(90), "not a .m model file"),
        (
            "pytorch_model.bin",
            b"PK\x03\x04" + bytes(90),
            r"single PyTorch file cannot be read\. Give the folder of the model",
        ),
        (
            "consolidated.00.pth",
            b"\x80\x02\x8a" + bytes(90),
            r"single PyTorch file cannot be read\. Give the folder of the model",
        ),
        ("old.bin", b"tjgg" + bytes(90), "or a GGUF file of it"),
        ("d", None, "neither config.json .* nor params.json"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_open_model_refuses_what_is_no_model_by_name(tmp_path, name, content, words):
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=words):
        open_model(tmp_path / name)


def test_open_model_refuses_a_lora_adapter_by_name(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="LoRA adapter"):
        open_model(tmp_path)


def test_open_model_opens_an_m_file_of_any_suffix(tmp_path):
    write_tiny_model(tmp_path / "weights.bin").close()
    with open_model(str(tmp_path / "weights.bin")) as model:
        assert model.spec == TINY
