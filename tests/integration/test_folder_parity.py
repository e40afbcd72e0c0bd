"""Folders of Hugging Face and Meta run as they are: transformers' logits, and the bits of the same weights as `.m`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from folders import arrays_of, write_hf, write_meta
from msgspec.structs import replace
from tiny import tiny_spec, write_tiny_model

from dllama_zmq import load
from dllama_zmq.formats import open_model, write_m
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import WEIGHTS_FLOAT, FloatType, ModelSpec, Rope, RopeScaling

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4  # as in test_hf_parity.py
TOKENS = [5, 250, 17, 3, 99, 180, 42, 7]


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("name", ["hf_llama", "hf_mistral", "hf_gemma2", "hf_gemma3", "meta_llama"])
def test_a_folder_that_transformers_or_torch_wrote_has_transformers_logits(name, nodes):
    with np.load(GOLDEN / name / "logits.npz") as golden:
        tokens, expected = golden["tokens"].tolist(), golden["logits"]
    with load(GOLDEN / name, nodes=nodes, kv_cache="f32", weights="f32") as model:
        logits = model.logits(tokens)
    print(f"largest difference of a logit: {np.abs(logits - expected).max():.1e}")
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "kind"), [("hf_llama", FloatType.BF16), ("hf_mistral", FloatType.F16)])
def test_weights_kept_as_they_are_stored_have_transformers_logits(name, kind):
    with np.load(GOLDEN / name / "logits.npz") as golden:
        tokens, expected = golden["tokens"].tolist(), golden["logits"]
    with load(GOLDEN / name, nodes=2, kv_cache="f32") as model:
        assert model.spec.weight_type is kind
        assert dict(model.spec.stored) == {"embedding": kind}
        logits = model.logits(tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("case", ["gqa", "mha", "llama31", "tied", "odd", "head_dim", "eps"])
def test_a_hugging_face_folder_has_transformers_logits(tmp_path, case, nodes):
    with np.load(GOLDEN / f"llama_{case}.npz") as golden:
        arrays = dict(golden)
    spec = msgspec.json.decode(str(arrays.pop("spec")), type=ModelSpec)
    tokens, expected = arrays.pop("tokens"), arrays.pop("logits")
    values = {name: array.astype(np.float32) for name, array in arrays.items()}
    write_hf(tmp_path / "hf", spec, values, "F16", tied=case == "tied", n_shards=1 + (case == "odd"))
    with load(tmp_path / "hf", nodes=nodes, kv_cache="f32", weights="f32") as model:
        assert replace(model.spec, stored=()) == spec
        logits = model.logits(tokens.tolist())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


SPEC = tiny_spec(dim=64, n_heads=4, n_kv_heads=2, rope=Rope(500000.0, scaling=RopeScaling(8.0, 1.0, 4.0, 32)))


@pytest.fixture(scope="module")
def bf16_values(tmp_path_factory) -> dict[str, np.ndarray]:
    """Weights that BF16 holds, in float32."""
    with write_tiny_model(tmp_path_factory.mktemp("values") / "a.m", SPEC, seed=5) as model:
        arrays = arrays_of(model)
    return {name: (values.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, values in arrays.items()}


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("weights", ["f32", "f16", "q80", "q40"])
def test_the_same_weights_as_m_and_as_folders_give_the_same_bits(tmp_path, bf16_values, weights, nodes):
    spec = replace(SPEC, weight_type=WEIGHTS_FLOAT[weights])
    matrices = {t.name: BlockMatrix.from_array(bf16_values[t.name], t.float_type) for t in tensor_table(spec)}
    write_m(tmp_path / "a.m", spec, matrices)
    write_hf(tmp_path / "hf", SPEC, bf16_values, "BF16", n_shards=2)
    write_meta(tmp_path / "meta", SPEC, bf16_values, "BFloat16Storage", 2, use_scaled_rope=True)
    with load(tmp_path / "a.m", nodes=nodes) as model:
        expected = model.logits(TOKENS)
    with load(tmp_path / "hf", nodes=nodes, weights=weights) as model:
        assert np.array_equal(model.logits(TOKENS), expected)
    with open_model(tmp_path / "hf", WEIGHTS_FLOAT[weights]) as hf, open_model(tmp_path / "a.m") as m:
        for tensor in tensor_table(spec):
            if tensor.name != "embedding":
                assert np.array_equal(hf.read(tensor.name).data, m.read(tensor.name).data), tensor.name
    with open_model(tmp_path / "meta", WEIGHTS_FLOAT[weights]) as meta, open_model(tmp_path / "a.m") as m:
        for tensor in tensor_table(spec):
            found, wanted = meta.read(tensor.name), m.read(tensor.name)
            assert np.array_equal(found.dequantize(), wanted.dequantize()), tensor.name
