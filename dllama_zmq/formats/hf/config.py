"""config.json of Hugging Face transformers as a ModelSpec. See FORMATS.md §5. Knows no weights.

Anything that transformers would compute differently is refused by name, never ignored.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.files import read_json
from dllama_zmq.formats.hf.layers import LayerKeys, rope_by_kind, rope_parameters, window_of
from dllama_zmq.formats.hf.rope import read_rope
from dllama_zmq.models.gemma import ATTENTION_SOFTCAP, LOGIT_SOFTCAP
from dllama_zmq.spec import Activation, Architecture, FloatType, ModelSpec
from dllama_zmq.typed import typed

_ARCHITECTURES: dict[str, tuple[Architecture, str]] = {
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral": ("llama", "MistralForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3_moe": ("qwen3moe", "Qwen3MoeForCausalLM"),
    "mixtral": ("mixtral", "MixtralForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3_text": ("gemma3", "Gemma3ForCausalLM"),
}
_TEXT_OF = {"gemma3": ("gemma3_text", "Gemma3ForConditionalGeneration")}
"""Models of text and images by model_type: the type of their text part, in `text_config`, and its architecture."""
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
_INTERLEAVED = ("llama", "mistral")
_QWEN_MOE = "qwen3_moe"
_DEFAULT_THETA = {"mixtral": 1e6, "gemma3_text": 1e6}
_GEMMA = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {"num_key_value_heads": 8},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
    "qwen3_moe": {"num_key_value_heads": 4, "sliding_window": 4096},
    "gemma2": {
        **_GEMMA,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {**_GEMMA, "vocab_size": 262208, "max_position_embeddings": 131072},
}
"""Defaults of transformers 5.24 by model_type. Without one: rope_theta 10000, no window, as many KV heads as heads,
head_dim = width / heads."""
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attn_logit_softcapping": (0,), "final_logit_softcapping": (0,), "logit_scale": (1,), "logits_scaling": (1,),
    "embedding_multiplier": (1,), "residual_multiplier": (1,), "scale_emb": (1,), "scale_depth": (),
    "mup_attn_multiplier": (1,), "clip_qkv": (0,), "qk_layernorm": (False,), "use_qk_norm": (False,),
    "attention_out_bias": (False,), "use_parallel_residual": (False,), "alibi": (False,),
    "rope_interleaved": (False,), "rotary_pct": (1,), "rotary_percent": (1,), "rotary_emb_fraction": (1,),
    "no_rope_layers": ([],), "no_rope_layer_interval": (0,), "attention_chunk_size": (),
    "attn_temperature_tuning": (False,), "n_shared_experts": (0,), "num_shared_experts": (0,),
    "shared_expert_intermediate_size": (0,), "first_k_dense_replace": (0,), "routed_scaling_factor": (1,),
    "scoring_func": ("softmax",), "n_group": (0, 1), "num_nextn_predict_layers": (0,), "add_qk_norm": (False,),
    "use_bidirectional_attention": (False,),
}  # fmt: skip
"""Keys by which other models change the computation, with their neutral values; null is always neutral.

transformers ignores them in the models that are read here; the file's author meant another or a newer model.
"""


_SOFTCAPS = {"attn_logit_softcapping": ATTENTION_SOFTCAP, "final_logit_softcapping": LOGIT_SOFTCAP}
"""Gemma 2's."""


class _Config(Struct, frozen=True):
    """The keys that are read, besides those of the layers."""

    model_type: str | None = None
    architectures: list[str] | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    moe_intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    rms_norm_eps: float | None = None
    hidden_act: str | None = None
    hidden_activation: str | None = None
    rope_theta: float | None = None
    rope_local_base_freq: float = 10000.0
    partial_rotary_factor: float | None = None
    query_pre_attn_scalar: float | None = None
    attention_multiplier: float | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    num_local_experts: int | None = None
    num_experts: int | None = None
    num_experts_per_tok: int | None = None
    norm_topk_prob: bool | None = None
    decoder_sparse_step: int | None = None
    mlp_only_layers: list[int] | None = None
    quantization_config: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None


class HFConfig(Struct, frozen=True):
    """A checked config.json. `spec` has all weights F32. tied: the head is the embedding. has_more: the model has more
    than its text part."""

    spec: ModelSpec
    tied: bool
    has_more: bool = False


def read_config(path: Path) -> HFConfig:
    """Read and check a config.json. Raises FormatError or UnsupportedModel, naming the key."""
    whole = read_json(path, dict[str, Any])
    raw = _text_part(whole)
    raw = {**_DEFAULTS.get(str(raw.get("model_type")), {}), **raw}
    config = typed(raw, _Config, str(path))
    try:
        model_type = _model_type(config)
        _refuse_unsupported(config, model_type)
        _check_neutral(raw, config)
        spec = _spec(config, model_type, raw)
        spec.check()
    except FormatError as error:
        raise type(error)(f"{path}: {error}") from error
    return HFConfig(
        spec, config.tie_word_embeddings or False, has_more=raw.get("model_type") != whole.get("model_type")
    )


def _text_part(whole: dict[str, Any]) -> dict[str, Any]:
    """The keys of the text part of a model of text and images; any other config unchanged."""
    model_type, text = whole.get("model_type"), whole.get("text_config")
    text_type, architecture = _TEXT_OF.get(model_type if isinstance(model_type, str) else "", ("", ""))
    architectures = whole.get("architectures")
    if not text_type or not isinstance(text, dict) or architectures not in (None, [architecture]):
        return whole
    outer = ("tie_word_embeddings", "quantization_config", "quantization")
    return {
        "model_type": text_type,
        **text,
        "architectures": None,
        **{key: whole[key] for key in outer if key in whole},
    }


def _model_type(config: _Config) -> str:
    runs = f"This version runs {', '.join([*_ARCHITECTURES, *_TEXT_OF])}."
    model_type = config.model_type
    if model_type is None:
        raise FormatError("model_type is missing. It is damaged, or not the config.json of a model.")
    if model_type not in _ARCHITECTURES:
        raise UnsupportedModel(f"model_type is {model_type[:80]!r}. {runs}")
    expected = _ARCHITECTURES[model_type][1]
    if config.architectures and expected not in config.architectures:
        raise UnsupportedModel(f"architectures is {config.architectures[0][:80]!r}, not {expected}. {runs}")
    return model_type


def _refuse_unsupported(config: _Config, model_type: str) -> None:
    if config.quantization_config is not None or config.quantization is not None:
        method = str((config.quantization_config or {}).get("quant_method", "unnamed"))[:40]
        key = "quantization" if config.quantization_config is None else "quantization_config"
        raise UnsupportedModel(
            f"{key}: this version does not read weights that are quantized with {method}. "
            "Get the original model and set `weights: q40` or q80, or get a GGUF file."
        )
    if model_type != "qwen2" and config.attention_bias:
        raise UnsupportedModel(f"attention_bias is true; this version runs {model_type} only without biases.")
    if config.mlp_bias:
        raise UnsupportedModel(f"mlp_bias is true; this version runs {model_type} only without biases.")
    if model_type == _QWEN_MOE and (config.mlp_only_layers or (config.decoder_sparse_step or 1) != 1):
        raise UnsupportedModel(
            f"mlp_only_layers is {config.mlp_only_layers or []}, decoder_sparse_step {config.decoder_sparse_step}; "
            "this version needs experts in every layer."
        )


def _check_neutral(raw: dict[str, Any], config: _Config) -> None:
    """Raise UnsupportedModel for a key that changes the computation."""
    for key, neutral in _NEUTRAL.items():
        value = raw.get(key)
        if config.model_type == "gemma2" and key in _SOFTCAPS:
            if value != _SOFTCAPS[key]:
                raise UnsupportedModel(
                    f"{key} is {str(value)[:80]}; this version runs a gemma2 only with {_SOFTCAPS[key]:g}."
                )
        elif value is not None and value not in neutral:
            raise UnsupportedModel(f"{key} is {str(value)[:80]}, which this version does not support.")
    dense = config.model_type not in (_QWEN_MOE, "mixtral")
    for key in ("num_local_experts", "num_experts") if dense else ():
        if raw.get(key):
            raise UnsupportedModel(f"{key} is {raw[key]}, but a {config.model_type} has no experts.")
    if config.model_type == "mixtral" and config.norm_topk_prob is False:
        raise UnsupportedModel("norm_topk_prob is False; the experts' weights of a mixtral sum to 1.")
    is_gemma = config.model_type in ("gemma2", "gemma3_text")
    if config.hidden_activation not in (None, config.hidden_act or (config.hidden_activation if is_gemma else "silu")):
        raise UnsupportedModel(
            f"hidden_activation is {config.hidden_activation[:40]!r} and hidden_act {config.hidden_act or 'missing'}; "
            "expected one activation."
        )


def _spec(config: _Config, model_type: str, raw: dict[str, Any]) -> ModelSpec:
    dim, n_heads = _needed(config, "hidden_size"), _needed(config, "num_attention_heads")
    head_dim = config.head_dim
    if head_dim is None:
        if n_heads < 1 or dim % n_heads:
            raise FormatError(f"num_attention_heads is {n_heads}: it does not divide hidden_size, {dim}.")
        head_dim = dim // n_heads
    n_experts = n_active = 0
    if model_type in (_QWEN_MOE, "mixtral"):
        n_experts = config.num_local_experts or _needed(config, "num_experts")
        n_active = _needed(config, "num_experts_per_tok")
    seq_len = _needed(config, "max_position_embeddings")
    eps = config.rms_norm_eps
    if eps is None:
        raise _missing("rms_norm_eps")
    n_kv_heads = config.num_key_value_heads
    is_gemma = model_type.startswith("gemma")
    if not is_gemma:
        _check_scale(config, head_dim)
    layers = typed(raw, LayerKeys, "config.json")
    window, full_every = window_of(layers, model_type)
    rope_of = partial(
        read_rope,
        default_part=1.0 if config.partial_rotary_factor is None else config.partial_rotary_factor,
        layout="interleaved" if model_type in _INTERLEAVED else "half",
        head_dim=head_dim,
    )
    theta = _DEFAULT_THETA.get(model_type, 10000.0) if config.rope_theta is None else config.rope_theta
    window_rope = None
    if model_type == "gemma3_text":
        of_full, of_windowed = rope_by_kind(layers)
        rope = rope_of(of_full, default_theta=theta)
        window_rope = rope_of(of_windowed, default_theta=config.rope_local_base_freq)
    else:
        rope = rope_of(rope_parameters(layers), default_theta=theta)
    return ModelSpec(
        arch=_ARCHITECTURES[model_type][0],
        dim=dim,
        hidden_dim=_needed(config, "moe_intermediate_size" if model_type == _QWEN_MOE else "intermediate_size"),
        n_layers=_needed(config, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_heads if n_kv_heads is None else _positive("num_key_value_heads", n_kv_heads),
        head_dim=head_dim,
        vocab_size=_needed(config, "vocab_size"),
        seq_len=seq_len,
        weight_type=FloatType.F32,
        rope=rope,
        norm_eps=eps,
        activation=_activation(config.hidden_act or (config.hidden_activation if is_gemma else None) or "silu"),
        n_experts=n_experts,
        n_active_experts=n_active,
        norm_topk=bool(config.norm_topk_prob) if model_type == _QWEN_MOE else True,  # Qwen3-MoE's default is false
        window=window,
        full_every=full_every,
        window_rope=window_rope,
        query_scalar=_query_scalar(config, head_dim) if is_gemma else None,
    )


def _query_scalar(config: _Config, head_dim: int) -> int | None:
    """The number whose square root divides attention's scores, if it is not head_dim."""
    scalar = config.query_pre_attn_scalar
    if scalar is None or not 1 <= scalar < 1 << 31 or scalar != int(scalar):
        raise UnsupportedModel(f"query_pre_attn_scalar is {scalar}; expected a positive whole number.")
    return int(scalar) if scalar != head_dim else None


def _check_scale(config: _Config, head_dim: int) -> None:
    """Raise UnsupportedModel if attention's scores are not divided by sqrt(head_dim)."""
    if config.query_pre_attn_scalar not in (None, head_dim):
        raise UnsupportedModel(
            f"query_pre_attn_scalar is {config.query_pre_attn_scalar:g}; this version scales by head_dim, {head_dim}."
        )
    scale = config.attention_multiplier
    if scale is not None and not math.isclose(scale, max(1, head_dim) ** -0.5, rel_tol=1e-6):
        raise UnsupportedModel(
            f"attention_multiplier is {scale:g}; this version scales by 1 / sqrt(head_dim), and head_dim is {head_dim}."
        )


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        exact = " (exact GELU; this version has only the tanh approximation)" if name == "gelu" else ""
        raise UnsupportedModel(f"hidden_act is {name[:40]!r}{exact}; expected one of {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _needed(config: _Config, key: str) -> int:
    value = getattr(config, key)
    if value is None:
        raise _missing(key)
    return _positive(key, value)


def _positive(key: str, value: int) -> int:
    if not 1 <= value < 1 << 31:
        raise FormatError(f"{key} is {value}; expected a positive number.")
    return value


def _missing(key: str) -> FormatError:
    return FormatError(f"{key}, which this model needs, is missing. Download config.json again.")
