"""GGUF files: metadata and tensors of gguf-py's writer, names, parts of tensors, split files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_writer import FileTensor, Typed, file_tensor, gguf_bytes, llama_metadata, llama_name, write_llama
from k_quantizers import quantized
from msgspec.structs import replace
from tiny import tiny_spec, tiny_tensors

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats import gguf_metadata, open_gguf, open_m, open_model
from dllama_zmq.formats.convert import convert_model
from dllama_zmq.formats.gguf.container import Container
from dllama_zmq.formats.gguf.directory import Directory
from dllama_zmq.formats.stored import halved, interleaved
from dllama_zmq.formats.tensor_names import gguf_name
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType, ModelSpec, Rope

GOLDEN = Path(__file__).parents[1] / "golden"
K_SPEC = tiny_spec(dim=256, hidden_dim=512, n_heads=4, n_kv_heads=2)


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
    tensors = file.placed().values()
    assert [tensor.shape for tensor in tensors] == [(2, 32)] * 6
    for tensor in tensors:
        assert isinstance(tensor.stored, FloatType)
        matrix = BlockMatrix(file.pages.view(tensor.offset, tensor.nbytes).reshape(2, -1), tensor.stored)
        tolerance = {"Q40": 2.8, "Q41": 1.1, "Q80": 0.2}.get(tensor.stored.name, 0)
        assert np.abs(matrix.dequantize() - values).max() <= tolerance, tensor.name


@pytest.mark.parametrize("weight_type", list(FloatType))
def test_a_llama_has_the_numbers_and_the_very_bytes_that_were_written(tmp_path, weight_type):
    spec = replace(K_SPEC, weight_type=weight_type, norm_eps=1e-6, rope=Rope(500000.0))
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


def k_model(path: Path, kinds: dict[str, FloatType]) -> dict[str, BlockMatrix]:
    """A model of K_SPEC with tensors of the named types, by their names' last part, the others F32."""
    written = {
        name: quantized(matrix.dequantize(), kinds.get(name.rpartition(".")[2], matrix.float_type))
        for name, matrix in tiny_tensors(K_SPEC)
    }
    write_llama(path, K_SPEC, written.items())
    return written


def test_any_part_of_a_k_quant_is_a_view_of_the_blocks_in_which_it_lies(tmp_path):
    kinds = {"q": FloatType.Q4_K, "down": FloatType.Q6_K, "gate": FloatType.Q5_K, "v": FloatType.Q51}
    written = k_model(tmp_path / "a.gguf", kinds)
    rng = np.random.default_rng(0)
    with open_gguf(tmp_path / "a.gguf") as model:
        for name in ("attention.q", "ffn.down", "ffn.gate", "attention.v"):
            whole = written[f"layers.1.{name}"]
            kind, values = whole.float_type, whole.dequantize()
            for _ in range(30):
                rows = slice(*sorted(rng.integers(0, whole.rows + 1, 2).tolist()))
                columns = slice(*sorted((rng.integers(0, whole.columns // 32 + 1, 2) * 32).tolist()))
                part = model.read(f"layers.1.{name}", rows, columns)
                assert part.float_type is kind
                assert not part.data.flags.owndata
                assert np.array_equal(part.data, whole.cut(rows, columns).data), (rows, columns)
                assert np.array_equal(part.dequantize(), values[rows, columns]), (rows, columns)


def test_rows_of_k_quants_in_another_order_are_read_with_the_blocks_of_their_columns(tmp_path):
    """As Mixtral's q and k, which are put back to half layout: a copy, not a view of the file."""
    kind, order = FloatType.Q4_K, halved(64)
    q = quantized(np.random.default_rng(1).standard_normal((256, 512), dtype=np.float32), kind)
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes({}, [file_tensor("blk.0.attn_q.weight", q)]))
    place = replace(Directory("a", [Container(path)]).find("layers.0.attention.q"), order=order)
    expected = q.dequantize()[order(np.arange(256))]
    assert not np.array_equal(expected, q.dequantize())
    for columns in (slice(0, 512), slice(96, 160), slice(224, 288), slice(480, 512)):
        part = BlockMatrix.of_columns(place.read(10, 200, columns.start, columns.stop, kind), kind, columns)
        assert np.array_equal(part.dequantize(), expected[10:200, columns])


def test_a_k_quantized_embedding_is_read_exactly_and_so_is_the_head_tied_to_it(tmp_path):
    written = k_model(tmp_path / "a.gguf", {"embedding": FloatType.Q6_K, "q": FloatType.Q4_K})
    del written["head"]
    write_llama(tmp_path / "a.gguf", K_SPEC, written.items())
    with open_gguf(tmp_path / "a.gguf") as model:
        stored = dict(model.spec.stored)
        assert stored["embedding"] is stored["head"] is FloatType.Q6_K
        row = model.read("embedding", slice(7, 8))
        assert np.array_equal(row.dequantize(), written["embedding"].dequantize()[7:8])
        assert np.array_equal(model.read("head").data, written["embedding"].data)


@pytest.mark.parametrize(
    ("weights", "becomes"),
    [(None, FloatType.Q40), (FloatType.F32, FloatType.F32), (FloatType.Q80, FloatType.Q80)],
)
def test_k_quants_become_a_m_file_of_their_exact_values(tmp_path, weights, becomes):
    q4_k = dict.fromkeys(("q", "k", "v", "o", "gate", "up"), FloatType.Q4_K)
    written = k_model(tmp_path / "a.gguf", q4_k | {"down": FloatType.Q6_K, "head": FloatType.Q51})
    with open_gguf(tmp_path / "a.gguf") as model:
        spec = convert_model(model, tmp_path / "a.m", weights, lambda done, total: None)
    with open_m(tmp_path / "a.m") as model:
        assert spec.weight_type is becomes
        for tensor in model.tensors:
            expected = BlockMatrix.from_array(written[tensor.name].dequantize(), tensor.float_type)
            assert np.array_equal(model.read(tensor.name).data, expected.data), tensor.name


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
    with pytest.raises(FormatError, match="one of 3 files of a model, and the others are found by name"):
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
