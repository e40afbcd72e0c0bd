"""config.json of Hugging Face transformers to a ModelSpec: see FORMATS.md §5. Knows no weights.

What this version would compute otherwise than transformers is refused by its name, never passed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.json_file import read_json
from dllama_zmq.spec import Activation, Architecture, FloatType, ModelSpec, Rope, RopeScaling

_ARCHITECTURES: dict[str, tuple[Architecture, str]] = {
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral": ("llama", "MistralForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3_moe": ("qwen3moe", "Qwen3MoeForCausalLM"),
    "mixtral": ("mixtral", "MixtralForCausalLM"),
}
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu",
}  # fmt: skip
_INTERLEAVED = ("llama", "mistral")
_QWEN_MOE = "qwen3_moe"


class _RopeParameters(Struct, frozen=True):
    """`rope_scaling`, and since transformers 5 `rope_parameters`."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    partial_rotary_factor: float | None = None


class _Config(Struct, frozen=True):
    """The keys that are looked at."""

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
    rope_theta: float | None = None
    rope_scaling: _RopeParameters | None = None
    rope_parameters: _RopeParameters | None = None
    partial_rotary_factor: float | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    layer_types: list[str] | None = None
    num_local_experts: int | None = None
    num_experts: int | None = None
    num_experts_per_tok: int | None = None
    norm_topk_prob: bool | None = None
    decoder_sparse_step: int | None = None
    mlp_only_layers: list[int] | None = None
    quantization_config: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class HFConfig:
    """What config.json says; `spec` as if all weights were F32. tied: the head is the embedding."""

    spec: ModelSpec
    tied: bool


def read_config(path: Path) -> HFConfig:
    """Read and check a config.json. Raises FormatError or UnsupportedModel, naming the key."""
    config = read_json(path, _Config)
    try:
        model_type = _model_type(config)
        _refuse_unknown(config, model_type)
        spec = _spec(config, model_type)
        spec.check()
    except FormatError as error:
        raise type(error)(f"{path}: {error}") from error
    return HFConfig(spec, config.tie_word_embeddings or False)


def _model_type(config: _Config) -> str:
    runs = f"This version runs {', '.join(_ARCHITECTURES)}."
    model_type = config.model_type
    if model_type is None:
        raise FormatError("there is no model_type. This is no config.json of a model, or a damaged one.")
    if model_type not in _ARCHITECTURES:
        raise UnsupportedModel(f"model_type is {model_type[:80]!r}. {runs}")
    expected = _ARCHITECTURES[model_type][1]
    if config.architectures and expected not in config.architectures:
        raise UnsupportedModel(f"architectures is {config.architectures[0][:80]!r}, not {expected}. {runs}")
    return model_type


def _refuse_unknown(config: _Config, model_type: str) -> None:
    if config.quantization_config is not None:
        method = str(config.quantization_config.get("quant_method", "unnamed"))[:40]
        raise UnsupportedModel(
            f"quantization_config: the weights are quantized already ({method}), which is not read here. "
            "Take the model they were made from, and `weights: q40` or q80; or a GGUF file."
        )
    if model_type != "qwen2" and config.attention_bias:
        raise UnsupportedModel(f"attention_bias is true; this version runs {model_type} without biases only.")
    if config.mlp_bias:
        raise UnsupportedModel(f"mlp_bias is true; this version runs {model_type} without biases only.")
    if model_type == _QWEN_MOE and (config.mlp_only_layers or (config.decoder_sparse_step or 1) != 1):
        raise UnsupportedModel(
            f"mlp_only_layers is {config.mlp_only_layers or []}, decoder_sparse_step {config.decoder_sparse_step}; "
            "this version runs a mixture of experts in every layer only."
        )


def _spec(config: _Config, model_type: str) -> ModelSpec:
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
    return ModelSpec(
        arch=_ARCHITECTURES[model_type][0],
        dim=dim,
        hidden_dim=_needed(config, "moe_intermediate_size" if model_type == _QWEN_MOE else "intermediate_size"),
        n_layers=_needed(config, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=_positive("num_key_value_heads", config.num_key_value_heads or n_heads),
        head_dim=head_dim,
        vocab_size=_needed(config, "vocab_size"),
        seq_len=seq_len,
        weight_type=FloatType.F32,
        rope=_rope(config, model_type, head_dim),
        norm_eps=eps,
        activation=_activation(config.hidden_act or "silu"),
        n_experts=n_experts,
        n_active_experts=n_active,
        norm_topk=bool(config.norm_topk_prob) if model_type == _QWEN_MOE else True,  # false where it is not said
        window=_window(config, model_type, seq_len),
    )


def _rope(config: _Config, model_type: str, head_dim: int) -> Rope:
    parameters = config.rope_parameters or config.rope_scaling or _RopeParameters()
    theta = parameters.rope_theta or config.rope_theta or (1e6 if model_type == "mixtral" else 10000.0)
    if not 0 < theta < math.inf:
        raise FormatError(f"rope_theta is {theta}; expected a positive number.")
    rotated = parameters.partial_rotary_factor or config.partial_rotary_factor or 1.0
    if rotated != 1.0:
        raise UnsupportedModel(f"partial_rotary_factor is {rotated}; this version rotates whole heads only.")
    layout: Literal["interleaved", "half"] = "interleaved" if model_type in _INTERLEAVED else "half"
    kind = parameters.rope_type or parameters.type or "default"
    if kind == "default":
        return Rope(theta, layout)
    if kind == "linear":
        if not 1 <= head_dim <= 1 << 14:
            raise FormatError(f"head_dim is {head_dim}; expected 1 to {1 << 14}")
        return Rope(theta, layout, factors=(_given(parameters.factor, "factor"),) * (head_dim // 2))
    if kind != "llama3":
        raise UnsupportedModel(f"rope type {kind[:40]!r} is not run by this version; default, linear and llama3 are.")
    original = parameters.original_max_position_embeddings
    if original is None:
        raise _missing("original_max_position_embeddings of the RoPE scaling")
    low, high = (_given(getattr(parameters, f"{end}_freq_factor"), f"{end}_freq_factor") for end in ("low", "high"))
    return Rope(theta, layout, RopeScaling(_given(parameters.factor, "factor"), low, high, original))


def _window(config: _Config, model_type: str, seq_len: int) -> int | None:
    """How far back a token looks, where every layer limits it. Raises UnsupportedModel where only some do."""
    if model_type == "llama":
        return None
    window, n_layers = config.sliding_window, _needed(config, "num_hidden_layers")
    if config.layer_types is not None:
        kinds = set(config.layer_types)
        strange = sorted(kinds - {"full_attention", "sliding_attention"})
        if strange:
            raise UnsupportedModel(
                f"layer_types has {strange[0][:40]!r}; this version runs full and sliding attention."
            )
        if len(kinds) > 1:
            raise _mixture("layer_types")
        if kinds == {"full_attention"}:
            return None
    elif model_type.startswith("qwen"):
        full_layers = min(config.max_window_layers or 0, n_layers)
        if not config.use_sliding_window or full_layers == n_layers:
            return None
        if full_layers:
            raise _mixture("max_window_layers")
    if window is not None and window < 1:
        raise FormatError(f"sliding_window is {window}; expected 1 or more.")
    return None if window is None or window >= seq_len else window


def _mixture(key: str) -> UnsupportedModel:
    return UnsupportedModel(f"{key}: some layers attend to a sliding window and some to all, which is not run here.")


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        exact = " (the exact one; this version has GELU by its tanh formula)" if name == "gelu" else ""
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


def _given(value: float | None, key: str) -> float:
    if value is None or not 0 < value < math.inf:
        raise FormatError(f"{key} of the RoPE scaling is {value}; expected a positive number.")
    return value


def _missing(key: str) -> FormatError:
    return FormatError(f"there is no {key}, which this model needs. Download config.json again.")
