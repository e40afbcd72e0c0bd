"""GGUF files: metadata and tensors of gguf-py's writer, names, parts of tensors, split files."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dllama_zmq.quants.k_quants import Q4_K, Q5_K, Q6_K
from gguf_writer import FileTensor, Typed, file_tensor, gguf_bytes, k_tensor, llama_metadata, llama_name, write_llama
from k_quantizers import K_QUANTIZERS
from tiny import tiny_spec, tiny_tensors

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats import gguf_metadata, open_gguf, open_model
from dllama_zmq.formats.gguf.container import Container
from dllama_zmq.formats.gguf.directory import Directory
from dllama_zmq.formats.stored import halved, interleaved
from dllama_zmq.formats.tensor_names import gguf_name
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.spec import FloatType, ModelSpec, Rope

GOLDEN = Path(__file__).parents[1] / "golden"
K_SPEC = tiny_spec(dim=256, hidden_dim=512, n_heads=4, n_kv_heads=2, weight_type=FloatType.Q41)


def test_metadata_of_every_type_is_read_as_gguf_py_wrote_it():
    got = gguf_metadata(GOLDEN / "gguf_metadata.gguf")
    assert got == {
        "general.architecture": "llama",
        "a.u8": 200,
        "a.i8": -100,
        "a.u16": 60000,
        "a.i16": -30000,
        "a.u32": 4_000_000_000,
        "a.i32": -2_000_000_000,
        "a.f32": float(np.float32(0.1)),
        "a.u64": 1 << 63,
        "a.i64": -(1 << 62),
        "a.f64": 0.1,
        "a.bool": True,
        "a.text": "Grüße, 世界\n",
        "a.texts": ["", "▁the", "ab\0c", "🦙"],
        "a.ints": [1, -2, 3],
        "a.floats": [0.5, -1.25],
        "a.bools": [True, False, True],
    }
    assert gguf_metadata(GOLDEN / "gguf_metadata.gguf", lists=False) == {
        key: value for key, value in got.items() if not isinstance(value, list)
    }


def test_plain_tensors_are_read_as_gguf_py_wrote_them():
    file = Container(GOLDEN / "gguf_metadata.gguf")
    values = np.arange(64, dtype=np.float32).reshape(2, 32) - 20
    assert [t.shape for t in file.tensors.values()] == [(2, 32)] * 6
    for tensor in file.tensors.values():
        assert isinstance(tensor.stored, FloatType)
        matrix = BlockMatrix(file.pages.view(tensor.offset, tensor.nbytes).reshape(2, -1), tensor.stored)
        tolerance = {"Q40": 2.8, "Q41": 1.1, "Q80": 0.2}.get(tensor.stored.name, 0)
        assert np.abs(matrix.dequantize() - values).max() <= tolerance, tensor.name


@pytest.mark.parametrize("weight_type", list(FloatType))
def test_a_llama_has_the_numbers_and_the_very_bytes_that_were_written(tmp_path, weight_type):
    spec = tiny_spec(weight_type=weight_type, norm_eps=1e-6, rope=Rope(500000.0))
    tensors = list(tiny_tensors(spec))
    with open_model(write_llama(tmp_path / "a.gguf", spec, tensors)) as model:
        assert model.spec == spec
        for name, matrix in tensors:
            got = model.read(name)
            assert np.array_equal(got.data, matrix.data), name
            assert got.float_type is matrix.float_type
            assert not got.data.flags.owndata
            assert not got.data.flags.writeable


def test_a_gguf_file_is_known_by_its_first_bytes_whatever_its_suffix(tmp_path):
    spec = tiny_spec()
    with open_model(write_llama(tmp_path / "a.bin", spec, tiny_tensors(spec))) as model:
        assert model.spec == spec


def test_tensors_outlive_the_file_and_a_closed_file_says_so(tmp_path):
    spec = tiny_spec()
    model = open_gguf(write_llama(tmp_path / "a.gguf", spec, tiny_tensors(spec)))
    head = model.read("head")
    before = head.dequantize().copy()
    model.close()
    model.close()
    assert np.array_equal(head.dequantize(), before)
    with pytest.raises(UsageError, match="closed"):
        model.read("head")


def test_tensors_of_several_types_are_said_and_read_in_their_own(tmp_path):
    spec = tiny_spec(weight_type=FloatType.Q40)
    tensors = dict(tiny_tensors(spec))
    for name, kind in [("embedding", FloatType.F16), ("layers.1.ffn.down", FloatType.Q80), ("head", FloatType.BF16)]:
        tensors[name] = BlockMatrix.from_array(tensors[name].dequantize(), kind)
    with open_gguf(write_llama(tmp_path / "a.gguf", spec, tensors.items())) as model:
        assert model.spec.weight_type is FloatType.Q40
        assert dict(model.spec.stored) == {
            "embedding": FloatType.F16,
            "layers.1.ffn.down": FloatType.Q80,
            "head": FloatType.BF16,
        }
        for name, matrix in tensors.items():
            assert np.array_equal(model.read(name).data, matrix.data), name


def test_a_head_that_is_not_there_is_the_embedding(tmp_path):
    spec = tiny_spec(weight_type=FloatType.Q80)
    tensors = dict(tiny_tensors(spec))
    del tensors["head"]
    with open_gguf(write_llama(tmp_path / "a.gguf", spec, tensors.items())) as model:
        assert dict(model.spec.stored) == {"head": FloatType.F32}
        assert np.array_equal(model.read("head").data, tensors["embedding"].data)


def k_model(path: Path, kinds: dict[str, str]) -> dict[str, F32]:
    """A model of K_SPEC with tensors of the named K-quants, the others F32; the values that were quantized."""
    values = {name: m.dequantize().copy() for name, m in tiny_tensors(replace(K_SPEC, weight_type=FloatType.F32))}
    if "head" in kinds and kinds["head"] == "tied":
        del values["head"]
    tensors = []
    for name, array in values.items():
        kind = kinds.get(name, kinds.get(name.rpartition(".")[2], "F32"))
        if kind == "F32":
            tensors.append(file_tensor(llama_name(name), BlockMatrix.from_array(array, FloatType.F32)))
        else:
            data = K_QUANTIZERS[kind](array)
            tensors.append(k_tensor(llama_name(name), *array.shape, kind, data.tobytes()))
    path.write_bytes(gguf_bytes(llama_metadata(K_SPEC), tensors))
    return values


def test_any_part_of_a_k_quant_is_the_part_of_its_whole(tmp_path):
    values = k_model(tmp_path / "a.gguf", {"q": "Q4_K", "down": "Q6_K", "gate": "Q5_K", "v": "Q4_K", "k": "Q4_K"})
    rng = np.random.default_rng(0)
    with open_gguf(tmp_path / "a.gguf") as model:
        for name, kind in [("attention.q", Q4_K), ("ffn.down", Q6_K), ("ffn.gate", Q5_K)]:
            name = f"layers.1.{name}"
            array = values[name]
            whole = model.read(name)
            assert whole.float_type is kind.read_as
            assert whole.shape == array.shape
            expected = kind.convert(K_QUANTIZERS[kind.name](array))
            assert np.array_equal(whole.data, expected)
            for _ in range(30):
                rows = sorted(rng.integers(0, array.shape[0] + 1, 2).tolist())
                columns = sorted((rng.integers(0, array.shape[1] // 32 + 1, 2) * 32).tolist())
                part = model.read(name, slice(*rows), slice(*columns))
                assert np.array_equal(part.data, whole.cut(slice(*rows), slice(*columns)).data), (rows, columns)


def test_a_k_quantized_embedding_is_read_exactly_and_the_head_tied_to_it_as_a_matrix(tmp_path):
    values = k_model(tmp_path / "a.gguf", {"embedding": "Q6_K", "head": "tied", "q": "Q4_K"})
    with open_gguf(tmp_path / "a.gguf") as model:
        stored = dict(model.spec.stored)
        assert "embedding" not in stored  # F32, as the table has it
        assert stored["head"] is FloatType.Q80
        data = K_QUANTIZERS["Q6_K"](values["embedding"])
        row = model.read("embedding", slice(7, 8))
        assert row.float_type is FloatType.F32
        assert np.array_equal(row.dequantize(), Q6_K.dequantize(data[7:8]))
        assert np.array_equal(model.read("head").data, Q6_K.convert(data))


def test_reading_rows_of_a_k_quant_takes_the_memory_of_those_rows(tmp_path):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (4096, 8 * 210), dtype=np.uint8)
    data[:, 208::210], data[:, 209::210] = 0, 0x20
    metadata = llama_metadata(tiny_spec(dim=2048, hidden_dim=256, n_heads=8, n_kv_heads=2, vocab_size=4096))
    spec = tiny_spec(dim=2048, hidden_dim=256, n_heads=8, n_kv_heads=2, vocab_size=4096, n_layers=1)
    metadata["llama.block_count"] = 1
    tensors = [file_tensor(llama_name(name), m) for name, m in tiny_tensors(spec) if name not in ("head", "embedding")]
    (tmp_path / "a.gguf").write_bytes(
        gguf_bytes(metadata, [*tensors, k_tensor("token_embd.weight", 4096, 2048, "Q6_K", data.tobytes())])
    )
    with open_gguf(tmp_path / "a.gguf") as model:
        tracemalloc.start()
        part = model.read("head", slice(1000, 1010))
        few = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        whole = model.read("head")
        much = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert few < 1 << 20
    assert much < whole.nbytes + part.nbytes + (16 << 20)


# --- names ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embedding", "token_embd.weight"),
        ("final_norm", "output_norm.weight"),
        ("head", "output.weight"),
        ("layers.0.attention.q", "blk.0.attn_q.weight"),
        ("layers.11.attention.o", "blk.11.attn_output.weight"),
        ("layers.3.attention.k_bias", "blk.3.attn_k.bias"),
        ("layers.3.attention.q_norm", "blk.3.attn_q_norm.weight"),
        ("layers.2.attention_norm", "blk.2.attn_norm.weight"),
        ("layers.2.ffn_norm", "blk.2.ffn_norm.weight"),
        ("layers.2.ffn.up", "blk.2.ffn_up.weight"),
        ("layers.2.router", "blk.2.ffn_gate_inp.weight"),
        ("layers.2.experts.7.down", "blk.2.ffn_down_exps.weight"),
    ],
)
def test_every_tensor_has_its_gguf_name(name, expected):
    assert gguf_name(name) == expected


def test_an_expert_is_some_rows_of_all_or_a_tensor_of_its_own(tmp_path):
    stacked = np.arange(3 * 4 * 8, dtype=np.float32)
    path = tmp_path / "a.gguf"
    path.write_bytes(
        gguf_bytes(
            {},
            [
                FileTensor("blk.0.ffn_up_exps.weight", [8, 4, 3], 0, stacked.tobytes()),
                FileTensor("blk.1.ffn_up.2.weight", [8, 4], 0, stacked[:32].tobytes()),
                FileTensor("blk.2.ffn_up_exps.weight", [8, 4, 1], 0, stacked[:32].tobytes()),
            ],
        )
    )
    directory = Directory("a", [Container(path)])
    place = directory.find("layers.0.experts.2.up")
    assert place.shape == (4, 8)
    assert np.array_equal(place.read(0, 4, 0, 8, FloatType.F32).view("<f4").ravel(), stacked[64:])
    assert directory.find("layers.1.experts.2.up").shape == (4, 8)
    assert directory.find("layers.2.experts.0.up").shape == (4, 8)
    for missing in ("layers.0.experts.3.up", "layers.1.experts.1.up", "layers.2.experts.1.up", "layers.3.experts.0.up"):
        with pytest.raises(FormatError, match="ffn_up"):
            directory.find(missing)


def test_rows_of_pairs_are_put_back_as_hugging_face_has_them():
    n_heads, head_dim, dim = 3, 8, 5
    original = np.arange(n_heads * head_dim * dim).reshape(-1, dim)
    # llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute
    in_file = original.reshape(n_heads, 2, head_dim // 2, dim).swapaxes(1, 2).reshape(original.shape)
    rows = np.arange(24)
    assert np.array_equal(in_file[halved(head_dim)(rows)], original)
    assert np.array_equal(in_file[halved(head_dim)(rows[5:19])], original[5:19])
    assert np.array_equal(original[interleaved(head_dim)(rows)], in_file)


# --- split files ---


def write_split(folder: Path, n_parts: int, spec: ModelSpec, **wrong: Any) -> list[Path]:
    """The tensors of a tiny model dealt to `n_parts` files; metadata in the first, as llama-gguf-split does it."""
    tensors = [file_tensor(llama_name(name), m) for name, m in tiny_tensors(spec)]
    paths = []
    for i in range(n_parts):
        split = {
            "split.no": Typed("u16", i),
            "split.count": Typed("u16", n_parts),
            "split.tensors.count": Typed("i32", len(tensors)),
        }
        metadata = (llama_metadata(spec) if i == 0 else {}) | split | (wrong if i == 1 else {})
        paths.append(folder / f"m-{i + 1:05}-of-{n_parts:05}.gguf")
        paths[-1].write_bytes(gguf_bytes(metadata, tensors[i::n_parts]))
    return paths


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_of_a_split_model_opens_the_whole(tmp_path, given):
    spec = tiny_spec(weight_type=FloatType.Q40)
    paths = write_split(tmp_path, 3, spec)
    with open_model(paths[given]) as model:
        assert model.spec == spec
        for name, matrix in tiny_tensors(spec):
            assert np.array_equal(model.read(name).data, matrix.data), name
    assert gguf_metadata(paths[given])["llama.block_count"] == 2


def test_split_models_that_are_not_whole_are_refused(tmp_path):
    spec = tiny_spec()
    paths = write_split(tmp_path, 3, spec)
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(paths[0].read_bytes())
    with pytest.raises(FormatError, match="one of 3 files of a model, which are found by their names"):
        open_gguf(moved)
    second = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(FormatError, match=r"m-00002-of-00003\.gguf is missing"):
        open_gguf(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(
        FormatError, match=r"m-00002-of-00003\.gguf: its metadata says part 3 of 3, but its name says 2 of 3"
    ):
        open_gguf(paths[0])
    paths[1].write_bytes(second)
    open_gguf(paths[0]).close()
    write_split(tmp_path, 3, spec, **{"split.no": Typed("u16", 0)})
    with pytest.raises(FormatError, match=r"part 1 of 3, but its name says 2 of 3"):
        open_gguf(paths[2])
    other = tmp_path / "other"
    other.mkdir()
    fewer = write_split(other, 3, tiny_spec(n_layers=1))
    write_split(tmp_path, 3, spec)
    paths[1].write_bytes(fewer[1].read_bytes())
    with pytest.raises(FormatError, match=r"tensor .* is in part|have \d+ tensors together"):
        open_gguf(paths[0])
