"""config.json of Hugging Face transformers as a ModelSpec. See FORMATS.md §5. Knows no weights.

Anything that transformers would compute differently is refused by name, never ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.hf.rope import read_rope
from dllama_zmq.formats.json_file import read_json
from dllama_zmq.spec import Activation, Architecture, FloatType, ModelSpec
from dllama_zmq.typed import typed

_ARCHITECTURES: dict[str, tuple[Architecture, str]] = {
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral": ("llama", "MistralForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3_moe": ("qwen3moe", "Qwen3MoeForCausalLM"),
    "mixtral": ("mixtral", "MixtralForCausalLM"),
}
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
_INTERLEAVED = ("llama", "mistral")
_QWEN_MOE = "qwen3_moe"
_DEFAULT_THETA = {"mixtral": 1e6}
_DEFAULT_WINDOW = {"mistral": 4096, "qwen2": 4096, "qwen3": 4096, "qwen3_moe": 4096}
_DEFAULT_KV_HEADS = {"mistral": 8, "mixtral": 8, "qwen2": 32, "qwen3": 32, "qwen3_moe": 4}
_DEFAULT_HEAD_DIM = {"qwen3": 128}
"""Defaults of transformers 5.24 by model_type. For other types: rope_theta 10000, no window, as many KV heads as heads,
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
}  # fmt: skip
"""Keys by which other models change the computation, with their neutral values; null is always neutral.

transformers ignores them in the models that are read here. Whoever wrote them meant another model, or a newer one.
"""


class _Config(Struct, frozen=True):
    """The keys that are read."""

    model_type: str | None = None
    architectures: list[str] | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    moe_intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | UnsetType | None = UNSET
    head_dim: int | UnsetType | None = UNSET
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    rms_norm_eps: float | None = None
    hidden_act: str | None = None
    hidden_activation: str | None = None
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    query_pre_attn_scalar: float | None = None
    attention_multiplier: float | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    sliding_window: int | UnsetType | None = UNSET
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
    quantization: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class HFConfig:
    """A config.json. `spec` has all weights F32. tied: the head is the embedding."""

    spec: ModelSpec
    tied: bool


def read_config(path: Path) -> HFConfig:
    """Read and check a config.json. Raises FormatError or UnsupportedModel, naming the key."""
    raw = read_json(path, dict[str, Any])
    config = typed(raw, _Config, str(path))
    try:
        model_type = _model_type(config)
        _refuse_unsupported(config, model_type)
        _check_neutral(raw, config)
        spec = _spec(config, model_type)
        spec.check()
    except FormatError as error:
        raise type(error)(f"{path}: {error}") from error
    return HFConfig(spec, config.tie_word_embeddings or False)


def _model_type(config: _Config) -> str:
    runs = f"This version runs {', '.join(_ARCHITECTURES)}."
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
        if value is not None and value not in neutral:
            raise UnsupportedModel(f"{key} is {str(value)[:80]}, which this version does not support.")
    dense = config.model_type not in (_QWEN_MOE, "mixtral")
    for key in ("num_local_experts", "num_experts") if dense else ():
        if raw.get(key):
            raise UnsupportedModel(f"{key} is {raw[key]}, but a {config.model_type} has no experts.")
    if config.model_type == "mixtral" and config.norm_topk_prob is False:
        raise UnsupportedModel("norm_topk_prob is False; the experts' weights of a mixtral sum to 1.")
    if config.hidden_activation not in (None, config.hidden_act or "silu"):
        raise UnsupportedModel(
            f"hidden_activation is {config.hidden_activation[:40]!r} and hidden_act {config.hidden_act or 'missing'}; "
            "expected one activation."
        )


def _spec(config: _Config, model_type: str) -> ModelSpec:
    dim, n_heads = _needed(config, "hidden_size"), _needed(config, "num_attention_heads")
    head_dim = _DEFAULT_HEAD_DIM.get(model_type) if config.head_dim is UNSET else config.head_dim
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
    if n_kv_heads is UNSET:
        n_kv_heads = _DEFAULT_KV_HEADS.get(model_type)
    _check_scale(config, head_dim)
    rope = read_rope(
        _rope_parameters(config),
        default_theta=_DEFAULT_THETA.get(model_type, 10000.0) if config.rope_theta is None else config.rope_theta,
        default_part=1.0 if config.partial_rotary_factor is None else config.partial_rotary_factor,
        layout="interleaved" if model_type in _INTERLEAVED else "half",
        head_dim=head_dim,
    )
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
        activation=_activation(config.hidden_act or "silu"),
        n_experts=n_experts,
        n_active_experts=n_active,
        norm_topk=bool(config.norm_topk_prob) if model_type == _QWEN_MOE else True,  # Qwen3-MoE's default is false
        window=_window(config, model_type, seq_len),
    )


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


def _rope_parameters(config: _Config) -> dict[str, Any]:
    """RoPE's parameters, from the keys of transformers 5 or 4. Raises UnsupportedModel if these differ."""
    new, old = config.rope_parameters or {}, config.rope_scaling or {}
    if new and old:
        kinds = [raw.get("rope_type") or raw.get("type") or "default" for raw in (new, old)]
        if kinds[0] != kinds[1]:
            raise UnsupportedModel(
                f"rope_scaling and rope_parameters differ in the type: {str(kinds[1])[:40]!r} and "
                f"{str(kinds[0])[:40]!r}. Remove the one that is wrong."
            )
        for key in sorted(new.keys() & old.keys()):
            if new[key] != old[key]:
                raise UnsupportedModel(f"rope_scaling and rope_parameters differ in {key[:40]}. Remove the wrong one.")
    return new | old


def _window(config: _Config, model_type: str, seq_len: int) -> int | None:
    """The attention window of all layers, or None. Raises UnsupportedModel if only some layers have one."""
    if model_type == "llama":
        return None
    n_layers = _needed(config, "num_hidden_layers")
    window = _DEFAULT_WINDOW.get(model_type) if config.sliding_window is UNSET else config.sliding_window
    if model_type.startswith("qwen") and not config.use_sliding_window:
        window = None
    if window is not None and window < 1:
        raise FormatError(f"sliding_window is {window}; expected 1 or more.")
    full_layers = 0
    if model_type.startswith("qwen") and window is not None:
        full_layers = min(28 if config.max_window_layers is None else config.max_window_layers, n_layers)
    if config.layer_types is not None:
        full_layers = _full_layers(config.layer_types, n_layers)
        if full_layers == n_layers and window is not None and model_type not in ("qwen2", "qwen3"):
            raise UnsupportedModel(
                f"sliding_window is {window}, but all layer_types are full_attention; remove the wrong one."
            )
    if 0 < full_layers < n_layers:
        raise UnsupportedModel(
            f"{'max_window_layers' if config.layer_types is None else 'layer_types'}: {full_layers} of {n_layers} "
            "layers attend to all positions and the others to a sliding window, which this version does not support."
        )
    return None if full_layers or window is None or window >= seq_len else window


def _full_layers(kinds: list[str], n_layers: int) -> int:
    """The number of layers with full attention. Raises UnsupportedModel for other kinds of attention."""
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModel(f"layer_types has {kind[:40]!r}; this version runs full and sliding attention.")
    if len(kinds) != n_layers:
        raise FormatError(f"layer_types has {len(kinds)} entries; expected {n_layers}, one per layer.")
    return kinds.count("full_attention")


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
