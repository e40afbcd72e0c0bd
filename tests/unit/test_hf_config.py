"""config.json and the names of transformers: what each key becomes, and what is refused by name."""

from __future__ import annotations

import json

import pytest
from folders import hf_config, write_hf
from msgspec.structs import replace
from tiny import TINY, tiny_spec

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.hf.config import read_config
from dllama_zmq.formats.tensor_names import hf_name
from dllama_zmq.spec import ModelSpec, Rope, RopeScaling

QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "head_dim": None}
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 32}
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
MIXTRAL = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
SCALED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def write(folder, base: ModelSpec = TINY, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in hf_config(base, **keys).items() if v != "absent"}))
    return path


def spec_of(folder, **keys) -> ModelSpec:
    return read_config(write(folder, **keys)).spec


def refusal(folder, **keys) -> str:
    path = write(folder, **keys)
    with pytest.raises(FormatError) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_llama_gets_its_numbers_and_interleaved_rows(tmp_path):
    assert spec_of(tmp_path) == TINY
    assert spec_of(tmp_path, head_dim=None) == TINY
    assert spec_of(tmp_path, head_dim="absent", num_key_value_heads="absent").n_kv_heads == TINY.n_heads


def test_llama_3_scaling_is_read_in_either_place(tmp_path):
    wanted = Rope(5e5, scaling=RopeScaling(8.0, 1.0, 4.0, 32))
    assert spec_of(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **SCALED}).rope == wanted
    new = {"rope_type": "llama3", "rope_theta": 5e5, **SCALED}
    assert spec_of(tmp_path, rope_theta="absent", rope_parameters=new).rope == wanted


def test_plain_and_linear_rope(tmp_path):
    assert spec_of(tmp_path, rope_theta="absent").rope == Rope()
    assert spec_of(tmp_path, rope_theta="absent", rope_parameters={"rope_theta": 1e6}).rope == Rope(1e6)
    assert spec_of(tmp_path, rope_scaling={"type": "linear", "factor": 4}).rope == Rope(factors=(4.0,) * 8)


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope", "mrope"])
def test_other_scaling_is_refused_by_name(tmp_path, kind):
    assert kind in refusal(tmp_path, rope_scaling={"rope_type": kind, "factor": 4.0})


def test_rope_that_is_said_by_kind_of_layer_is_read_where_all_kinds_agree(tmp_path):
    wanted = {"rope_type": "default", "rope_theta": 5e5}
    nested = {"full_attention": wanted, "sliding_attention": wanted}
    assert spec_of(tmp_path, rope_theta="absent", rope_parameters=nested).rope == Rope(5e5)
    assert spec_of(tmp_path, rope_theta="absent", rope_parameters={"full_attention": wanted}).rope == Rope(5e5)
    nested["sliding_attention"] = wanted | {"rope_theta": 1e4}
    words = refusal(tmp_path, rope_theta="absent", rope_parameters=nested)
    assert "rope_parameters of sliding_attention differ from those of full_attention" in words


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0}}, "partial_rotary_factor is 0"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor is 0"),
        ({"rope_scaling": {"factor": 4.0}}, "RoPE scaling has a factor of 4.0, but its type is default or missing"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0, "attention_factor": 2}}, "attention_factor is 2"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section is [16, 24, 24]"),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling and rope_parameters differ in the type",
        ),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "rope_parameters: factor: expected float"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, which this version does not support"),
        ({"attn_logit_softcapping": 50}, "attn_logit_softcapping is 50"),
        ({"logits_scaling": 8.0}, "logits_scaling is 8.0"),
        ({"logit_scale": 0.0625}, "logit_scale is 0.0625"),
        ({"residual_multiplier": 0.22}, "residual_multiplier is 0.22"),
        ({"attention_multiplier": 0.015625}, "attention_multiplier is 0.015625"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar is 256"),
        ({"use_qk_norm": True}, "use_qk_norm is True"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0]"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size is 8192"),
        ({"hidden_activation": "gelu_pytorch_tanh"}, "hidden_activation is 'gelu_pytorch_tanh' and hidden_act silu"),
        ({"quantization": {"bits": 4}}, "quantization: this version does not read weights that are quantized"),
        ({**MIXTRAL, "norm_topk_prob": False}, "norm_topk_prob is False"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
    ],
)
def test_a_number_that_changes_the_model_is_refused_by_name(tmp_path, keys, words):
    assert words in refusal(tmp_path, **keys)


def test_such_numbers_are_no_matter_where_they_change_nothing(tmp_path):
    neutral = {
        "final_logit_softcapping": None,
        "logit_scale": 1.0,
        "use_qk_norm": False,
        "rope_interleaved": False,
        "partial_rotary_factor": 1,
        "query_pre_attn_scalar": TINY.head_dim,
        "attention_multiplier": 0.25,
        "hidden_activation": "silu",
        "num_local_experts": 0,
    }
    assert spec_of(tmp_path, **neutral, rope_scaling={"rope_type": "default", "factor": 1.0}) == TINY


def test_keys_that_a_config_leaves_out_have_the_defaults_of_transformers(tmp_path):
    """Defaults of transformers 5.24's configuration classes."""
    large = tiny_spec(dim=256, n_heads=32, n_kv_heads=8, seq_len=8192)

    def spec(**keys):
        return read_config(write(tmp_path, large, **keys)).spec

    assert spec(**MISTRAL).window == 4096
    assert spec(**MISTRAL, num_key_value_heads="absent").n_kv_heads == 8
    assert spec(**MISTRAL, num_key_value_heads=None).n_kv_heads == 32
    assert spec(**MIXTRAL, rope_theta="absent").rope.theta == 1e6
    assert spec(**MIXTRAL).window is None
    assert spec(**QWEN2, use_sliding_window=True, max_window_layers=0).window == 4096
    assert spec(**QWEN2, use_sliding_window=True).window is None  # max_window_layers is 28
    assert spec(**QWEN2, num_key_value_heads="absent").n_kv_heads == 32
    assert spec(**QWEN3 | {"head_dim": "absent"}).head_dim == 128
    assert spec(**QWEN3_MOE, num_key_value_heads="absent").n_kv_heads == 4


def test_a_window_and_layers_without_one_contradict_each_other(tmp_path):
    full = ["full_attention"] * 2
    assert "sliding_window is 16, but all layer_types are full_attention" in refusal(
        tmp_path, **MISTRAL, sliding_window=16, layer_types=full
    )


def test_a_mistral_may_look_back_so_far_only(tmp_path):
    assert spec_of(tmp_path, **MISTRAL, sliding_window=16) == replace(TINY, window=16)
    assert spec_of(tmp_path, **MISTRAL, sliding_window=None) == TINY
    assert spec_of(tmp_path, **MISTRAL, sliding_window=TINY.seq_len) == TINY
    assert "sliding_window is 0" in refusal(tmp_path, **MISTRAL, sliding_window=0)


def test_a_qwen2_has_halves(tmp_path):
    spec = spec_of(tmp_path, **QWEN2, use_sliding_window=False, sliding_window=16, max_window_layers=2)
    assert spec == replace(TINY, arch="qwen2", rope=Rope(layout="half"))


def test_a_qwen2_with_windows_in_some_layers_is_refused(tmp_path):
    window = {"use_sliding_window": True, "sliding_window": 16}
    assert spec_of(tmp_path, **QWEN2, **window, max_window_layers=0).window == 16
    assert spec_of(tmp_path, **QWEN2, **window, max_window_layers=2).window is None
    assert "max_window_layers" in refusal(tmp_path, **QWEN2, **window, max_window_layers=1)
    mixed = ["full_attention", "sliding_attention"]
    assert "layer_types" in refusal(tmp_path, **QWEN2, **window, layer_types=mixed)
    assert spec_of(tmp_path, **QWEN2, **window, layer_types=mixed[:1] * 2).window is None
    assert spec_of(tmp_path, **QWEN2, **window, layer_types=mixed[1:] * 2).window == 16
    assert "layer_types has 1 entries; expected 2" in refusal(tmp_path, **QWEN2, **window, layer_types=mixed[1:])
    assert "chunked" in refusal(tmp_path, **QWEN2, **window, layer_types=["chunked_attention"])


def test_a_qwen3_and_its_experts(tmp_path):
    half = Rope(layout="half")
    assert spec_of(tmp_path, **QWEN3) == tiny_spec(arch="qwen3", head_dim=32, rope=half)
    moe = spec_of(tmp_path, **QWEN3_MOE)
    assert moe == replace(TINY, arch="qwen3moe", hidden_dim=32, n_experts=4, n_active_experts=2, rope=half)
    assert not spec_of(tmp_path, **QWEN3_MOE | {"norm_topk_prob": "absent"}).norm_topk
    assert "mlp_only_layers" in refusal(tmp_path, **QWEN3_MOE | {"mlp_only_layers": [0]})
    assert "decoder_sparse_step" in refusal(tmp_path, **QWEN3_MOE | {"decoder_sparse_step": 2})


def test_a_mixtral(tmp_path):
    spec = spec_of(tmp_path, **MIXTRAL, rope_theta=1e6)
    assert spec == replace(TINY, arch="mixtral", n_experts=8, n_active_experts=2, rope=Rope(1e6, "half"))
    assert "num_experts_per_tok" in refusal(tmp_path, **MIXTRAL | {"num_experts_per_tok": "absent"})


def test_the_activation_is_one_that_is_computed_alike(tmp_path):
    assert spec_of(tmp_path, hidden_act="gelu_pytorch_tanh").activation == "gelu"
    assert "exact" in refusal(tmp_path, hidden_act="gelu")
    assert "relu" in refusal(tmp_path, hidden_act="relu")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model_type": "gpt2"}, "UnsupportedModel: {path}: model_type is 'gpt2'. This version runs llama, mistral"),
        ({"model_type": "absent"}, "model_type is missing"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {}}, "weights that are quantized"),
        ({"rms_norm_eps": "absent"}, "rms_norm_eps"),
        ({"rms_norm_eps": 0}, "norm_epsilon"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size: expected int | null, got str"),
        ({"hidden_size": 10**400}, "hidden_size"),
        ({"num_hidden_layers": 1 << 20}, "n_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "cannot share 3 KV heads"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"head_dim": None, "num_attention_heads": 7}, "does not divide"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "original_max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "llama3", **SCALED, "factor": -8}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": "linear"}, "rope_scaling: expected object | null, got str"),
        ({"vocab_size": "absent"}, "vocab_size, which this model needs, is missing"),
    ],
)
def test_settings_that_are_not_run_or_make_no_sense_are_refused(tmp_path, keys, words):
    assert words.format(path=tmp_path / "config.json") in refusal(tmp_path, **keys)


def test_every_tensor_has_transformers_name():
    """The names that transformers 5.24 saved for tiny models of these types."""
    layer = "layers.3"
    assert hf_name("qwen2", f"{layer}.attention.q_bias") == "model.layers.3.self_attn.q_proj.bias"
    assert hf_name("qwen3", f"{layer}.attention.k_norm") == "model.layers.3.self_attn.k_norm.weight"
    assert hf_name("qwen3moe", f"{layer}.router") == "model.layers.3.mlp.gate.weight"
    assert hf_name("qwen3moe", f"{layer}.experts.11.down") == "model.layers.3.mlp.experts.11.down_proj.weight"
    assert hf_name("mixtral", f"{layer}.router") == "model.layers.3.block_sparse_moe.gate.weight"
    names = {hf_name("mixtral", f"{layer}.experts.0.{part}").split(".")[-2] for part in ("gate", "down", "up")}
    assert names == {"w1", "w2", "w3"}
    assert hf_name("mixtral", f"{layer}.experts.0.down") == "model.layers.3.block_sparse_moe.experts.0.w2.weight"
    assert hf_name("mixtral", f"{layer}.experts.0.up") == "model.layers.3.block_sparse_moe.experts.0.w3.weight"
    assert hf_name("llama", "head") == "lm_head.weight"


def test_a_folder_says_unsupported_before_its_weights_are_looked_for(tmp_path):
    write_hf(tmp_path / "hf", TINY, {}, model_type="gemma")
    with pytest.raises(UnsupportedModel, match="gemma"):
        read_config(tmp_path / "hf" / "config.json")
