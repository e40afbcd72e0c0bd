"""config.json of a Gemma: windows and RoPE by kind of layer, the text part of a model with images, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from folders import hf_config
from msgspec.structs import replace
from tiny import TINY

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.hf.config import read_config
from dllama_zmq.shapes import shape
from dllama_zmq.spec import FloatType, ModelSpec, Rope


def gemma3(folder: Path, pattern: object = 6, **keys: Any) -> ModelSpec:
    config = hf_config(TINY) | {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_act": "absent",
        "rope_theta": "absent",
        "sliding_window": 16,
        "sliding_window_pattern": pattern,
        **keys,
    }
    path = folder / "config.json"
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return read_config(path).spec


def test_a_gemma_3_in_the_keys_of_transformers_4_and_5(tmp_path):
    wanted = replace(
        TINY,
        arch="gemma3",
        rope=Rope(1e6, "half"),
        activation="gelu",
        window=16,
        full_every=6,
        window_rope=Rope(1e4, "half"),
        query_scalar=256,
    )
    assert gemma3(tmp_path) == wanted
    assert gemma3(tmp_path, "absent") == wanted
    old = {"rope_theta": 5e5, "rope_local_base_freq": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    ropes = {"rope": Rope(5e5, "half", factors=(8.0,) * 8), "window_rope": Rope(500.0, "half")}
    assert gemma3(tmp_path, 2, **old, query_pre_attn_scalar=24) == replace(
        wanted, full_every=2, query_scalar=24, **ropes
    )
    new = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    }
    layers = ["sliding_attention", "full_attention"]
    assert gemma3(tmp_path, "absent", rope_parameters=new, layer_types=layers) == replace(wanted, full_every=2, **ropes)


def test_the_text_part_of_a_gemma_3_with_images_has_the_defaults_of_its_own_type(tmp_path):
    """As google/gemma-3-4b-it has them: what is not said is Gemma3TextConfig's."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(whole))
    config = read_config(path)
    assert config.tied
    assert config.has_more
    assert config.spec == shape("gemma3-4b", FloatType.F32)
    path.write_text(json.dumps(whole | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(UnsupportedModel, match="awq"):
        read_config(path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "are not every nth layer"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ({"query_pre_attn_scalar": 24.5}, "query_pre_attn_scalar is 24.5"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters has 'rope_theta'"),
        (
            {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "final_logit_softcapping": None},
            "final_logit_softcapping is None; this version runs a gemma2 only with 30",
        ),
    ],
)
def test_settings_that_a_gemma_does_not_have_are_refused_by_name(tmp_path, keys, words):
    with pytest.raises(FormatError, match=words):
        gemma3(tmp_path, **({"pattern": keys["sliding_window_pattern"]} if "sliding_window_pattern" in keys else keys))
