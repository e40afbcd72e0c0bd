"""The metadata of a GGUF file as a ModelSpec, without the tensors' types. See FORMATS.md §4. Knows no tensor's bytes.

Sources: ggml's docs/gguf.md for the keys, llama.cpp's src/llama-model.cpp for their meaning in each architecture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.gguf.container import Container
from dllama_zmq.formats.gguf.head import ArrayLocation
from dllama_zmq.models.rope import rope_frequencies
from dllama_zmq.quants import F32
from dllama_zmq.spec import Architecture, FloatType, ModelSpec, Rope, RopeScaling

_ARCHITECTURES: dict[str, Architecture] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3moe"}
_RUNS = f"This version runs {', '.join(_ARCHITECTURES)} (Mixtral is a llama with experts)."
_PARTS = {"adapter": "a LoRA adapter", "mmproj": "a vision projector (mmproj)"}
"""Values of general.type for parts of a model."""
_NEUTRAL = {
    "expert_shared_count": 0, "expert_group_count": (0, 1), "expert_weights_scale": (0, 1),
    "expert_gating_func": (0, 1), "leading_dense_block_count": 0, "nextn_predict_layers": 0,
    "attention.clamp_kqv": 0, "attention.scale": 0,
    "attention.max_alibi_bias": 0, "attention.causal": True, "logit_scale": (0, 1), "residual_scale": (0, 1),
    "embedding_scale": (0, 1), "attn_logit_softcapping": 0, "final_logit_softcapping": 0,
    "use_parallel_residual": False, "router_logit_softcapping": 0, "swin_norm": False, "n_deepstack_layers": 0,
    "interleave_moe_layer_step": (0, 1), "moe_every_n_layers": (0, 1), "attention.output_scale": (0, 1),
    "attention.temperature_scale": 0, "attention.sliding_window_pattern": 0, "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.yarn_attn_factor": (0, 1), "rope.scaling.yarn_ext_factor": (-1, 0), "rope.scaling.alpha": 0,
}  # fmt: skip
"""Keys that change the computation, with their neutral values."""
_READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "expert_count", "expert_used_count",
    "expert_feed_forward_length", "expert_weights_norm", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.sliding_window",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
}  # fmt: skip
_IGNORED = {
    "vocab_size", "embedding_length_out", "tensor_data_layout", "pooling_type", "attention.layer_norm_epsilon",
    "expert_group_used_count", "expert_shared_feed_forward_length", "rope.scaling.finetuned",
    "rope.scaling.original_context_length", "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}  # fmt: skip
"""Keys that the tensors tell better, that belong to refused features (YaRN, shared experts), or that change nothing.
Any other key may mean another computation and is refused."""
_MAX_LAYERS = 1 << 12
_MAX_EXPERTS = 1 << 16
"""In all layers together."""
_LLAMA31 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_seq_len": 8192}
_FACTOR_ROUNDING = 2e-5
"""Converters compute the factors in float32, where the difference of nearly equal numbers loses some bits."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """The metadata under an architecture's name. Every getter checks the value's type."""

    file: Container
    arch: str

    def number(self, key: str, default: float | None = None) -> float:
        """A number, or the common value of a list with one number per layer."""
        name = f"{self.arch}.{key}"
        value = self.file.metadata.get(name, default)
        if value is None:
            raise FormatError(
                f"{self.file.path}: {name}, which every model needs, is missing. Convert the model again."
            )
        if isinstance(value, ArrayLocation):
            values = self.file.array(name) if 1 <= value.count <= _MAX_LAYERS else []
            if len(set(values)) != 1:
                raise UnsupportedModel(
                    f"{self.file.path}: {name} differs from layer to layer; this version runs models of equal layers."
                )
            value = values[0]
        if isinstance(value, str) or not math.isfinite(value):
            raise FormatError(f"{self.file.path}: {name} is {_shown(value)}; expected a number. The file is damaged.")
        return shortest(value) if isinstance(value, float) else value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value != int(value):
            raise FormatError(f"{self.file.path}: {self.arch}.{key} is {value}; expected a whole number.")
        return int(value)

    def text(self, key: str) -> str:
        value = self.file.metadata.get(f"{self.arch}.{key}", "")
        if not isinstance(value, str):
            raise FormatError(
                f"{self.file.path}: {self.arch}.{key} is {_shown(value)}; expected text. The file is damaged."
            )
        return value


def _shown(value: object) -> str:
    return "a list" if isinstance(value, ArrayLocation) else repr(value)[:80]


def shortest(value: float) -> float:
    """The shortest decimal that rounds to `value` in f32: 1e-05 for a file's 9.9999997e-06."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def check_architecture(file: Container) -> str:
    """The architecture's name. Raises FormatError if it is missing, UnsupportedModel for a LoRA adapter, a vision
    projector (mmproj) and other architectures."""
    arch, kind = file.metadata.get("general.architecture"), file.metadata.get("general.type", "model")
    if not isinstance(arch, str):
        raise FormatError(f"{file.path}: general.architecture is missing, so this is not a model.")
    if isinstance(kind, str) and kind in _PARTS:
        raise UnsupportedModel(f"{file.path}: this is {_PARTS[kind]}, not a whole model. Get the model itself.")
    if arch not in _ARCHITECTURES:
        raise UnsupportedModel(f"{file.path}: the architecture is {arch[:64]!r}. {_RUNS}")
    return arch


def read_spec(file: Container, vocab_size: int, rope_factors: F32 | None) -> ModelSpec:
    """The spec of `file`, with all weights F32.

    rope_factors: the values of the tensor rope_freqs, if it exists. Raises FormatError or UnsupportedModel.
    """
    arch = check_architecture(file)
    keys = _Keys(file, arch)
    _check_neutral(keys)
    dim, n_heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    if "attention.key_length" not in _own(keys) and (n_heads < 1 or dim % n_heads):
        raise FormatError(
            f"{file.path}: {arch}.attention.head_count is {n_heads}; it does not divide the width, {dim}, and "
            f"{arch}.attention.key_length is missing. Convert the model again."
        )
    head_dim = keys.whole("attention.key_length", dim // max(1, n_heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if (width := keys.whole(key, head_dim)) != head_dim:
            raise UnsupportedModel(
                f"{file.path}: {arch}.{key} is {width}, and heads have {head_dim} values; this version runs models "
                "where both are equal."
            )
    n_experts = keys.whole("expert_count", 0)
    if arch == "qwen3moe" and n_experts < 1:
        raise FormatError(f"{file.path}: {arch}.expert_count is {n_experts}; expected 1 or more.")
    if n_experts and arch in ("qwen2", "qwen3"):
        raise UnsupportedModel(f"{file.path}: {arch}.expert_count is {n_experts}; {arch} has no experts. {_RUNS}")
    if n_experts * keys.whole("block_count") > _MAX_EXPERTS:
        raise FormatError(
            f"{file.path}: {arch}.expert_count is {n_experts}; expected at most {_MAX_EXPERTS} in all layers."
        )
    hidden_dim = keys.whole("expert_feed_forward_length", 0) if n_experts else 0
    seq_len, window = keys.whole("context_length"), keys.whole("attention.sliding_window", 0)
    spec = ModelSpec(
        arch="mixtral" if arch == "llama" and n_experts else _ARCHITECTURES[arch],
        dim=dim,
        hidden_dim=hidden_dim or keys.whole("feed_forward_length"),
        n_layers=keys.whole("block_count"),
        n_heads=n_heads,
        n_kv_heads=keys.whole("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        vocab_size=vocab_size,
        seq_len=seq_len,
        weight_type=FloatType.F32,
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        n_experts=n_experts,
        n_active_experts=keys.whole("expert_used_count") if n_experts else 0,
        norm_topk=bool(keys.number("expert_weights_norm", 1)),
        window=window if 0 < window < seq_len else None,
    )
    try:
        spec.check()  # bounds the numbers before _rope uses them
        spec = replace(spec, rope=_rope(keys, spec, rope_factors))
        spec.check()
    except UnsupportedModel:
        raise
    except FormatError as error:
        raise FormatError(f"{file.path}: {error}. The metadata cannot be that of a model.") from error
    return spec


def _own(keys: _Keys) -> set[str]:
    prefix = f"{keys.arch}."
    return {key.removeprefix(prefix) for key in keys.file.metadata if key.startswith(prefix)}


def _check_neutral(keys: _Keys) -> None:
    present = _own(keys)
    unknown = sorted(present - _READ - _IGNORED - _NEUTRAL.keys())
    if unknown:
        raise UnsupportedModel(
            f"{keys.file.path}: the key {keys.arch}.{unknown[0][:80]} is "
            f"{_shown(keys.file.metadata[f'{keys.arch}.{unknown[0]}'])}; this version does not know it, and it may "
            f"mean another computation. {_RUNS}"
        )
    for key, neutral in _NEUTRAL.items():
        if key in present:
            value = keys.number(key)
            if value not in (neutral if isinstance(neutral, tuple) else (neutral,)):
                raise UnsupportedModel(
                    f"{keys.file.path}: {keys.arch}.{key} is {value:g}, which this version does not support. {_RUNS}"
                )


def _rope(keys: _Keys, spec: ModelSpec, stored: F32 | None) -> Rope:
    """RoPE. llama.cpp's converter interleaves the rows of `llama`; those of a Mixtral are put back when read."""
    theta = keys.number("rope.freq_base", 10000.0)
    rope = Rope(theta, "interleaved" if spec.arch == "llama" else "half")
    kind, factor = keys.text("rope.scaling.type"), keys.number("rope.scaling.factor", 0.0)
    if "rope.scaling.factor" not in _own(keys):
        factor = keys.number("rope.scale_linear", 0.0)  # its name in 2023
    kind = kind or "linear"  # llama.cpp's default
    if kind not in ("none", "linear") and (factor not in (0.0, 1.0) or kind == "longrope"):
        raise UnsupportedModel(
            f"{keys.file.path}: {keys.arch}.rope.scaling.type is {kind[:64]!r} with a factor of {factor:g}; this "
            "version scales RoPE only linearly or as Llama 3.1. Get a file without that scaling."
        )
    scale = factor if kind == "linear" and factor else 1.0
    if not theta > 0 or not scale > 0:
        raise FormatError(f"RoPE's base is {theta:g} and its scale {scale:g}; expected positive numbers")
    if stored is None:
        return replace(rope, factors=(scale,) * (spec.head_dim // 2)) if scale != 1 else rope
    if len(stored) != spec.head_dim // 2:
        raise FormatError(f"rope_freqs.weight has {len(stored)} values; expected {spec.head_dim // 2}, one per pair")
    scaling = _published(rope, spec.head_dim, stored) if scale == 1 else None
    if scaling is not None:
        return replace(rope, scaling=scaling)
    return replace(rope, factors=tuple(scale * shortest(float(f)) for f in stored))


def _published(rope: Rope, head_dim: int, stored: F32) -> RopeScaling | None:
    """Llama 3.1's scaling if it gives the factors `stored`: then results have the same bits as in other formats."""
    scaling = RopeScaling(float(np.rint(stored.max())) if np.isfinite(stored).all() else 0.0, **_LLAMA31)  # type: ignore[arg-type]
    if scaling.factor <= 1:
        return None
    plain, scaled = rope_frequencies(rope, head_dim), rope_frequencies(replace(rope, scaling=scaling), head_dim)
    return scaling if np.allclose(plain / scaled, stored, rtol=_FACTOR_ROUNDING, atol=0) else None
