"""The numbers of a model in GGUF metadata, for every architecture; refused where they mean another computation."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_writer import FileTensor, Typed, file_tensor, gguf_bytes, llama_metadata, llama_name, write_llama
from msgspec.structs import replace
from tiny import tiny_spec, tiny_tensors

from dllama_zmq.errors import UnsupportedModel
from dllama_zmq.formats import gguf_metadata, open_gguf
from dllama_zmq.formats.gguf.container import Container
from dllama_zmq.formats.gguf.spec import read_spec
from dllama_zmq.models.rope import rope_frequencies
from dllama_zmq.quants import F32
from dllama_zmq.spec import ModelSpec, Rope, RopeScaling


def spec_of(tmp_path: Path, metadata: dict[str, Any], factors: F32 | None = None) -> ModelSpec:
    path = tmp_path / "numbers.gguf"
    path.write_bytes(gguf_bytes(metadata))
    return read_spec(Container(path), 288, factors)


def changed(arch: str = "llama", /, **changes: Any) -> dict[str, Any]:
    metadata = llama_metadata(tiny_spec(), arch)
    for key, value in changes.items():
        metadata[f"{arch}.{key.replace('__', '.')}"] = value
    return {key: value for key, value in metadata.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attention__head_count_kv": None}, {"n_kv_heads": 4}),
        ({"attention__key_length": None, "attention__value_length": None}, {}),
        ({"rope__freq_base": None}, {"rope": Rope(10000.0)}),
        ({"attention__sliding_window": 32}, {"window": 32}),
        ({"attention__sliding_window": 64}, {"window": None}),
        ({"attention__head_count": Typed("i32", [4, 4])}, {}),
        ({"feed_forward_length": Typed("u64", 128)}, {}),
        ({"rope__scaling__type": "none"}, {}),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 1.0}, {}),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, {"rope": Rope(10000.0, factors=(4.0,) * 8)}),
        ({"rope__scale_linear": 0.1}, {"rope": Rope(10000.0, factors=(0.1,) * 8)}),
    ],
)
def test_numbers_of_a_llama(tmp_path, changes, expected):
    assert spec_of(tmp_path, changed(**changes)) == replace(tiny_spec(), **expected)


def test_numbers_of_the_other_architectures(tmp_path):
    half = replace(tiny_spec(), rope=Rope(10000.0, "half"))
    assert spec_of(tmp_path, changed("qwen2")) == replace(half, arch="qwen2")
    heads = {"attention__key_length": 32, "attention__value_length": 32, "rope__dimension_count": None}
    assert spec_of(tmp_path, changed("qwen3", **heads)) == replace(half, arch="qwen3", head_dim=32)
    moe = {"expert_count": 8, "expert_used_count": 2}
    assert spec_of(tmp_path, changed("qwen3moe", expert_feed_forward_length=96, **moe)) == replace(
        half, arch="qwen3moe", n_experts=8, n_active_experts=2, hidden_dim=96
    )
    assert spec_of(tmp_path, changed("llama", **moe)) == replace(half, arch="mixtral", n_experts=8, n_active_experts=2)


GEMMA2 = {
    "attention__key_length": 32,
    "attention__value_length": 32,
    "rope__dimension_count": None,
    "attention__sliding_window": 16,
}
GEMMA3 = {**GEMMA2, "rope__freq_base": 1e6}


def test_numbers_of_a_gemma(tmp_path):
    half = replace(tiny_spec(), rope=Rope(10000.0, "half"), head_dim=32, activation="gelu", window=16)
    gemma2 = replace(half, arch="gemma2", full_every=2)
    gemma3 = replace(half, arch="gemma3", full_every=6, rope=Rope(1e6, "half"), window_rope=Rope(1e4, "half"))
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    assert spec_of(tmp_path, changed("gemma2", **GEMMA2, **caps)) == gemma2
    assert spec_of(tmp_path, changed("gemma2", **GEMMA2)) == gemma2
    assert spec_of(tmp_path, changed("gemma2", **GEMMA2, block_count=46)).query_scalar == 64 // 4
    untold = spec_of(tmp_path, changed("gemma2", **GEMMA2 | {"attention__sliding_window": None}, context_length=8192))
    assert untold == replace(gemma2, seq_len=8192, window=4096)
    assert spec_of(tmp_path, changed("gemma3", **GEMMA3)) == gemma3
    assert spec_of(tmp_path, changed("gemma3", **GEMMA3, block_count=62)).query_scalar == 64 // 4
    scaled = {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0}
    of_full_layers = replace(gemma3.rope, factors=(8.0,) * 16)
    assert spec_of(tmp_path, changed("gemma3", **GEMMA3, **scaled)) == replace(gemma3, rope=of_full_layers)
    own = changed("gemma3", **GEMMA3, rope__freq_base_swa=500.0)
    assert spec_of(tmp_path, own).window_rope == Rope(500.0, "half")
    whole = spec_of(tmp_path, changed("gemma3", **GEMMA3 | {"attention__sliding_window": None}))
    assert whole == replace(gemma3, window=None, full_every=1, window_rope=None)


@pytest.mark.parametrize(
    ("windowed", "every"), [([True, False], 2), ([True, True], 0), ([False, False], 1), (4, 4), (0, 0)]
)
def test_which_layers_of_a_gemma_have_a_window(tmp_path, windowed, every):
    pattern = windowed if isinstance(windowed, int) else Typed("bool", windowed)
    metadata = changed("gemma3", **GEMMA3, attention__sliding_window_pattern=pattern)
    assert spec_of(tmp_path, metadata).full_every == every


def converters_factors(theta: float, head_dim: int, factor: float, original: int) -> F32:
    """rope_freqs.weight as llama.cpp's convert_hf_to_gguf.py makes it (LlamaModel.generate_extra_tensors), in f32."""
    freqs = np.float32(1) / np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    factors = []
    for wavelength in 2 * math.pi / freqs:
        if wavelength < original / 4:
            factors.append(1.0)
        elif wavelength > original / 1:
            factors.append(factor)
        else:
            smooth = (original / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_factors_of_a_published_scaling_become_that_scaling(tmp_path, factor):
    metadata = changed(
        rope__freq_base=500000.0, attention__key_length=64, attention__value_length=64, rope__dimension_count=64
    )
    factors = converters_factors(500000.0, 64, factor, 8192)
    assert len(set(factors.tolist())) > 4
    spec = spec_of(tmp_path, metadata, factors)
    assert spec.rope == Rope(500000.0, scaling=RopeScaling(factor, 1.0, 4.0, 8192))
    for other in (converters_factors(500000.0, 64, factor, 4096), factors * np.float32(1.0001)):
        rope = spec_of(tmp_path, metadata, other).rope
        assert rope.scaling is None
        assert np.allclose(rope.factors, other, rtol=1e-6)
        plain = rope_frequencies(replace(rope, factors=()), 64)
        assert np.allclose(rope_frequencies(rope, 64), plain / other, rtol=1e-6)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (changed("gemma"), "architecture is 'gemma'"),
        (changed("gemma2", **GEMMA2, attn_logit_softcapping=30.0), "attn_logit_softcapping is 30.0"),
        (changed("gemma3", **GEMMA3, final_logit_softcapping=30.0), "final_logit_softcapping is 30.0"),
        (changed("gemma3", **GEMMA3, attention__sliding_window_pattern=Typed("bool", [False, True])), "from layer to"),
        (changed(rope__freq_base_swa=1e4), "freq_base_swa is 10000"),
        (changed(attention__sliding_window_pattern=2), "sliding_window_pattern is 2"),
        (changed(rope__scaling__type="yarn", rope__scaling__factor=4.0), "'yarn' with a factor of 4"),
        (changed(rope__scaling__type="longrope"), "'longrope'"),
        (changed(rope__dimension_count=8), "dimension_count is 8"),
        (changed(attention__value_length=8), "value_length is 8"),
        (changed(logit_scale=0.5), "logit_scale is 0.5"),
        (changed(attention__head_count=Typed("u32", [4, 2])), "differs from layer to layer"),
        (changed("qwen2", expert_count=4, expert_used_count=2), "no experts"),
        (changed("qwen3moe", expert_count=4, expert_used_count=2, expert_shared_count=1), "expert_shared_count is 1"),
    ],
)
def test_sound_files_of_other_models_are_refused_by_name(tmp_path, metadata, words):
    with pytest.raises(UnsupportedModel, match=words):
        spec_of(tmp_path, metadata)


@pytest.mark.parametrize(
    ("arch", "kind", "words"),
    [("llama", "adapter", "LoRA adapter"), ("clip", "mmproj", "vision projector"), ("clip", "model", "'clip'")],
)
def test_a_file_that_is_no_text_model_is_refused_by_its_kind_before_a_tensor_is_missed(tmp_path, arch, kind, words):
    path = tmp_path / "part.gguf"
    tensor = FileTensor("v.blk.0.attn_q.weight", [32, 8], 0, bytes(1024))
    path.write_bytes(gguf_bytes({"general.architecture": arch, "general.type": kind}, [tensor]))
    with pytest.raises(UnsupportedModel, match=words):
        open_gguf(path)


def test_a_vocabulary_of_256_thousand_tokens_is_walked_over_and_read_soon(tmp_path):
    n = 256_000
    metadata = changed() | {
        "tokenizer.ggml.tokens": [f"▁token{i}" for i in range(n)],
        "tokenizer.ggml.scores": Typed("f32", [0.0] * n),
        "tokenizer.ggml.token_type": Typed("i32", [1] * n),
        "tokenizer.ggml.merges": [f"to ken{i}" for i in range(n)],
    }
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes(metadata))
    start = time.process_time()
    Container(path).pages.close()
    walked_s = time.process_time() - start
    got = gguf_metadata(path)
    read_s = time.process_time() - start - walked_s
    print(f"walked over in {walked_s:.3f} s, read in {read_s:.3f} s")
    assert got["tokenizer.ggml.tokens"][-1] == f"▁token{n - 1}"
    assert len(got["tokenizer.ggml.merges"]) == n
    assert walked_s < 0.8  # well under it on any CPU: measured 0.05 to 0.1
    assert read_s < 2


def test_a_factor_without_a_type_is_linear_as_llama_cpp_takes_it(tmp_path):
    spec = tiny_spec()
    for extra in ({"rope.scaling.factor": 4.0}, {"rope.scale_linear": 4.0}):
        with open_gguf(write_llama(tmp_path / "a.gguf", spec, tiny_tensors(spec), **extra)) as model:
            assert model.spec.rope == Rope(factors=(4.0,) * 8)
    plain = {"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}
    with open_gguf(write_llama(tmp_path / "a.gguf", spec, tiny_tensors(spec), **plain)) as model:
        assert model.spec.rope == Rope()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.sinks", 4),
        ("rope.freq_base_swa", 1e4),
        ("rope.dimension_sections", Typed("i32", [8, 8, 0, 0])),
        ("rope.scaling.attn_factor", 0.5),
        ("attention.temperature_scale", 0.1),
        ("router_logit_softcapping", 30.0),
    ],
)
def test_a_key_that_may_stand_for_another_computation_is_refused_by_name(tmp_path, key, value):
    spec = tiny_spec()
    with pytest.raises(UnsupportedModel, match=key.replace(".", r"\.")):
        open_gguf(write_llama(tmp_path / "a.gguf", spec, tiny_tensors(spec), **{key: value}))


def test_a_qwen2_without_biases_is_run_without_them(tmp_path):
    spec = tiny_spec(rope=Rope(layout="half"))
    tensors = [file_tensor(llama_name(name), matrix) for name, matrix in tiny_tensors(spec)]
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes(llama_metadata(spec, "qwen2"), tensors))
    with open_gguf(path) as model:
        assert model.spec == spec
