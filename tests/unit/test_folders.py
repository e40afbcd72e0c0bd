"""Folders of Hugging Face and Meta: any part of any tensor, in the type asked for; which file is which."""

from __future__ import annotations

import json

import numpy as np
import pytest
from folders import arrays_of, hf_tensors, safetensors, write_hf, write_meta
from gguf_writer import gguf_of, write_llama
from msgspec.structs import replace
from tiny import TINY, tiny_spec, tiny_tensors, tiny_tokenizer_data, write_tiny_model

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats import (
    ModelFile,
    contents_of,
    model_file,
    open_hf,
    open_meta,
    open_model,
    read_tokenizer,
    write_t,
)
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.sources import tokenizer_beside
from dllama_zmq.spec import FloatType, RopeScaling

KINDS = [FloatType.F32, FloatType.F16, FloatType.Q40, FloatType.Q80]


@pytest.fixture(scope="module")
def values(tmp_path_factory) -> dict[str, np.ndarray]:
    with write_tiny_model(tmp_path_factory.mktemp("values") / "a.m", TINY, seed=1) as model:
        arrays = arrays_of(model)
    return {
        name: (a.view(np.uint32) & 0xFFFFE000).view(np.float32) for name, a in arrays.items()
    }  # F16 and BF16 differ


@pytest.fixture(params=["hf", "meta"])
def opened(request, tmp_path, values):
    """A folder of either kind with the same values, opened with weights of a type."""

    def make(weights: FloatType | None = None) -> ModelFile:
        if request.param == "hf":
            return open_hf(write_hf(tmp_path / "a", TINY, values, n_shards=3), weights)
        return open_meta(write_meta(tmp_path / "a", TINY, values, n_shards=2), weights)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_any_part_of_a_tensor_is_that_part_of_the_whole(opened, values, kind):
    rng = np.random.default_rng(2)
    with opened(kind) as model:
        for tensor in model.tensors:
            rows, columns = tensor.shape(model.spec)
            whole = BlockMatrix.from_array(values[tensor.name], tensor.float_type)
            assert np.array_equal(model.read(tensor.name).data, whole.data), tensor.name
            for _ in range(4):
                first, last = sorted(rng.integers(0, rows + 1, 2).tolist())
                left, right = sorted((32 * rng.integers(0, columns // 32 + 1, 2)).tolist())
                part = model.read(tensor.name, slice(first, last), slice(left, right))
                assert part.float_type is tensor.float_type
                assert np.array_equal(part.data, whole.cut(slice(first, last), slice(left, right)).data), tensor.name


def test_parts_are_converted_in_pieces_that_need_not_divide_them(opened, values, monkeypatch):
    monkeypatch.setattr(model_file, "_CHUNK_VALUES", 7 * 64)
    with opened(FloatType.Q40) as model:
        found = model.read("layers.0.attention.q", slice(3, 60))
    wanted = BlockMatrix.from_array(values["layers.0.attention.q"], FloatType.Q40).cut(slice(3, 60), slice(None))
    assert np.array_equal(found.data, wanted.data)


def test_weights_are_kept_as_they_are_stored_where_nothing_is_asked(tmp_path, values):
    types = dict.fromkeys(values, "F16") | {"layers.1.ffn.up": "F32", "final_norm": "F16", "embedding": "F32"}
    halves = {name: a.astype(np.float16).astype(np.float32) for name, a in values.items()}
    with open_hf(write_hf(tmp_path / "a", TINY, halves, types)) as model:
        assert model.spec == replace(TINY, weight_type=FloatType.F16, stored=(("layers.1.ffn.up", FloatType.F32),))
        for tensor in model.tensors:
            assert np.array_equal(model.read(tensor.name).dequantize(), halves[tensor.name])
        assert model.read("final_norm").float_type is FloatType.F32


def test_a_tensor_of_the_wanted_type_is_a_view_of_the_file(tmp_path, values):
    with open_hf(write_hf(tmp_path / "a", TINY, values)) as model:
        data = model.read("layers.0.ffn.gate", slice(2, 9)).data
        assert not data.flags.owndata
        assert not data.flags.writeable


def test_a_tied_head_is_the_embedding_and_may_be_quantized(tmp_path, values):
    with open_hf(write_hf(tmp_path / "a", TINY, values, tied=True), FloatType.Q80) as model:
        wanted = BlockMatrix.from_array(values["embedding"], FloatType.Q80)
        assert np.array_equal(model.read("head").data, wanted.data)
        assert np.array_equal(model.read("embedding", slice(5, 6)).dequantize(), values["embedding"][5:6])


def tied_folder(path, values, head):
    """A folder whose config.json says that its head is its embedding, and whose file has the tensors given."""
    folder = write_hf(path, TINY, {n: a for n, a in values.items() if n not in ("embedding", "head")}, tied=True)
    tensors = hf_tensors(TINY, {n: a for n, a in values.items() if n != "head"} | head)
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return folder


def test_a_tied_model_with_a_head_of_its_own_uses_it_and_says_so(tmp_path, values):
    with open_hf(tied_folder(tmp_path / "a", values, {"head": values["head"]})) as model:
        assert np.array_equal(model.read("head").dequantize(), values["head"])
        assert "lm_head.weight differs from the embedding" in model.notes[0]
    with open_hf(tied_folder(tmp_path / "b", values, {"head": values["embedding"]})) as model:
        assert np.array_equal(model.read("head").dequantize(), values["embedding"])
        assert not model.notes


def test_a_tied_model_may_have_its_head_alone(tmp_path, values):
    folder = tied_folder(tmp_path / "a", values, {"head": values["head"]})
    tensors = hf_tensors(TINY, {name: a for name, a in values.items() if name != "embedding"})
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    with open_hf(folder) as model:
        assert np.array_equal(model.read("embedding").dequantize(), values["head"])


def test_an_index_of_other_weights_is_passed_over_where_the_whole_is_there(tmp_path, values):
    folder = write_hf(tmp_path / "a", TINY, values)
    weight_map = {"lm_head.weight": "model-00001-of-00002.safetensors", "model.norm.weight": "model-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with open_hf(folder) as model:
        assert np.array_equal(model.read("head").dequantize(), values["head"])
    (folder / "model-00002.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match=r"the shard model-00001-of-00002\.safetensors is not in the folder"):
        open_hf(folder)


def test_a_folder_of_one_model_file_is_that_model(tmp_path):
    spec = tiny_spec(weight_type=FloatType.Q80)
    folder = tmp_path / "a"
    folder.mkdir()
    write_llama(folder / "ok.GGUF", spec, tiny_tensors(spec))
    (folder / "mmproj-ok.gguf").write_bytes(b"GGUF")
    with open_model(folder) as model:
        assert model.spec == spec
    write_tiny_model(folder / "b.m").close()
    with pytest.raises(FormatError, match=r"a: it has b\.m, ok\.GGUF\. Give the path of one of them"):
        open_model(folder)


@pytest.mark.parametrize("name", ["sha256-4d7a2146", "a.GGUF", "a.m"])
def test_a_gguf_of_any_name_brings_its_own_tokenizer(tmp_path, name):
    write_tiny_model(tmp_path / "a.m", replace(TINY, weight_type=FloatType.Q40)).close()
    write_t(tmp_path / "a.t", tiny_tokenizer_data())
    data = gguf_of(tmp_path / "a.m", tmp_path / "a.t")
    path = tmp_path / "blobs" / name
    path.parent.mkdir()
    path.write_bytes(data)
    assert tokenizer_beside(path) == path
    with open_model(path) as model:
        assert read_tokenizer(tokenizer_beside(path)).vocab_size == model.spec.vocab_size
    assert read_tokenizer(path.parent).vocab_size == 288 if path.suffix else True


@pytest.mark.parametrize("name", ["a.gguf", "a.m", "a.t", "config.json", "tokenizer.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_refused_as_one(tmp_path, values, name):
    folder = write_hf(tmp_path / "a", TINY, values)
    pointer = folder / name
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    read = read_tokenizer if name in ("a.t", "tokenizer.json") else open_model
    with pytest.raises(
        FormatError, match=r"is a pointer of git-lfs, not the file itself\. Fetch it: run `git lfs pull`"
    ):
        read(folder if name in ("config.json", "model.safetensors") else pointer)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused_as_they_are_read(tmp_path, values, bad):
    arrays = {name: (a.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, a in values.items()}
    arrays["layers.1.attention.o"][7, 3] = bad
    words = r"model\.layers\.1\.self_attn\.o_proj\.weight has values that are infinite or NaN"
    for i, kind in enumerate(["F32", "F16", "BF16"]):
        with open_hf(write_hf(tmp_path / str(i), TINY, arrays, kind)) as model:
            model.read("layers.1.attention.o", slice(0, 7))
            model.read("layers.1.attention.o", slice(0, 8), slice(32, 64))
            with pytest.raises(FormatError, match=words):
                model.read("layers.1.attention.o", slice(7, 8))


@pytest.mark.parametrize("kind", [FloatType.Q40, FloatType.Q41, FloatType.Q80])
@pytest.mark.parametrize("at", [0, 2])
def test_blocks_whose_scale_or_offset_is_no_number_are_refused(tmp_path, kind, at):
    if at == 2 and kind is not FloatType.Q41:
        return
    spec = tiny_spec(weight_type=kind)
    tensors = dict(tiny_tensors(spec))
    data = tensors["layers.0.ffn.up"].data.copy()
    data[5, kind.block_bytes + at : kind.block_bytes + at + 2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    tensors["layers.0.ffn.up"] = BlockMatrix(data, kind)
    with open_model(write_llama(tmp_path / "a.gguf", spec, tensors.items())) as model:
        assert model.read("layers.0.ffn.up", slice(5, 6), slice(0, 32)).is_finite
        with pytest.raises(FormatError, match=r"a\.gguf: tensor blk\.0\.ffn_up\.weight has values that are infinite"):
            model.read("layers.0.ffn.up")


def test_a_closed_folder_is_not_read(opened):
    model = opened(FloatType.Q40)
    model.close()
    with pytest.raises(UsageError, match="closed"):
        model.read("head")
    with pytest.raises(UsageError, match="closed"):
        model.read("layers.0.attention.q")


def test_weights_of_blocks_that_do_not_fit_are_refused(tmp_path):
    spec = tiny_spec(dim=48, n_heads=2, n_kv_heads=1)
    with write_tiny_model(tmp_path / "a.m", spec) as model:
        folder = write_hf(tmp_path / "a", spec, arrays_of(model))
    with pytest.raises(UsageError, match=r"dim is 48.*f16 or f32"):
        open_hf(folder, FloatType.Q40)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_values_that_are_no_numbers_are_not_quantized(tmp_path, values, bad, kind):
    spoiled = values["layers.0.ffn.up"].copy()
    spoiled[7, 3] = bad
    with (
        open_hf(write_hf(tmp_path / "a", TINY, values | {"layers.0.ffn.up": spoiled}), kind) as model,
        pytest.raises(FormatError, match=r"layers\.0\.mlp\.up_proj\.weight has values that are infinite"),
    ):
        model.read("layers.0.ffn.up")


def test_values_too_large_for_the_type_are_refused(tmp_path, values):
    large = values["layers.0.ffn.up"].copy()
    large[7, 3] = -70000
    with open_hf(write_hf(tmp_path / "a", TINY, values | {"layers.0.ffn.up": large}), FloatType.F16) as model:
        model.read("layers.0.ffn.up", slice(0, 7))
        with pytest.raises(FormatError, match=r"up to 70000, which F16 cannot hold"):
            model.read("layers.0.ffn.up")


@pytest.mark.parametrize("axis", [0, 1])
def test_the_embedding_is_cut_by_rows_or_by_columns(tmp_path, values, axis):
    folder = write_meta(tmp_path / "a", TINY, values, n_shards=4, embedding_axis=axis)
    with open_meta(folder) as model:
        assert model.spec == TINY
        assert np.array_equal(model.read("embedding").dequantize(), values["embedding"])
        assert np.array_equal(model.read("embedding", slice(287, 288)).dequantize(), values["embedding"][287:])


@pytest.mark.parametrize(
    ("params", "seq_len", "factor"),
    [
        ({"rope_theta": 10000.0}, 4096, None),
        ({"rope_theta": 1e6}, 16384, None),
        ({"rope_theta": 5e5}, 8192, None),
        ({"rope_theta": 5e5, "use_scaled_rope": True}, 131072, 8.0),
        ({"rope_theta": 5e5, "use_scaled_rope": True, "rope_scaling_factor": 32.0}, 131072, 32.0),
        ({"max_seq_len": 1000}, 1000, None),
    ],
)
def test_numbers_that_params_json_lacks_follow_from_the_generation(tmp_path, values, params, seq_len, factor):
    given = {"max_seq_len": None} | params
    with open_meta(write_meta(tmp_path / "a", TINY, values, **given)) as model:
        assert model.spec.seq_len == seq_len
        assert model.spec.rope.scaling == (None if factor is None else RopeScaling(factor, 1.0, 4.0, 8192))


def test_a_factor_that_params_json_does_not_use_is_refused(tmp_path, values):
    folder = write_meta(tmp_path / "a", TINY, values, rope_scaling_factor=8.0)
    with pytest.raises(FormatError, match=r"rope_scaling_factor is 8\.0 and use_scaled_rope is false"):
        open_meta(folder)


def test_a_format_is_known_by_its_path(tmp_path, values):
    hf, meta = write_hf(tmp_path / "hf", TINY, values), write_meta(tmp_path / "meta", TINY, values)
    with open_meta(meta) as expected:
        for path in (hf, hf / "model.safetensors", str(meta)):
            with open_model(path) as model:
                assert model.spec == expected.spec
                assert np.array_equal(model.read("head").data, expected.read("head").data)
    (tmp_path / "none").mkdir()
    with pytest.raises(FormatError, match=r"neither config\.json"):
        open_model(tmp_path / "none")


def test_weights_of_an_m_file_stay_what_they_are(tmp_path):
    write_tiny_model(tmp_path / "a.m", replace(TINY, weight_type=FloatType.Q40)).close()
    open_model(tmp_path / "a.m", FloatType.Q40).close()
    with pytest.raises(UsageError, match="its weights are Q40, and `weights` can only change"):
        open_model(tmp_path / "a.m", FloatType.Q80)


def test_a_folder_that_names_no_kind_of_model_has_none_in_its_contents(tmp_path, values):
    folder = write_hf(tmp_path / "a", TINY, values)
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    found = contents_of(folder)
    assert found is not None
    assert (found["architecture"], found["tensors"]) == ("none named", len(hf_tensors(TINY, values)))
