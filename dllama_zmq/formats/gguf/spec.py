"""The metadata of a GGUF file as a ModelSpec, without the tensors' types. See FORMATS.md §4. Knows no tensor's bytes.

Sources: ggml's docs/gguf.md for the keys, llama.cpp's src/llama-model.cpp for their meaning in each architecture.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from msgspec import Struct, field
from msgspec.structs import fields, replace

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.gguf.container import ArrayLocation, Container
from dllama_zmq.models.gemma import ATTENTION_SOFTCAP, LOGIT_SOFTCAP
from dllama_zmq.models.rope import rope_frequencies
from dllama_zmq.quants import F32
from dllama_zmq.spec import Activation, Architecture, FloatType, ModelSpec, Rope, RopeScaling, full_every
from dllama_zmq.threads import converted_by_threads
from dllama_zmq.typed import typed


class Dialect(Struct, frozen=True):
    """An architecture of GGUF files in this package: without experts, with experts (None: refused), without biases.

    in_pairs: the file interleaves RoPE's rows of q and k. Those of a model with experts are read in half layout.
    full_every, window, window_theta: defaults for models with and without windows in their layers. n_layers_27b: the
    size whose scores are divided by the square root of width / heads, which no key says. softcaps: of attention's
    scores and of logits.
    """

    dense: Architecture | None
    with_experts: Architecture | None = None
    without_biases: Architecture | None = None
    in_pairs: bool = False
    activation: Activation = "silu"
    full_every: int = 0
    window: int = 0
    window_theta: float | None = None
    n_layers_27b: int = 0
    softcaps: tuple[float, float] = (0.0, 0.0)


_ARCHITECTURES = {
    "llama": Dialect("llama", with_experts="mixtral", in_pairs=True),
    # without biases it differs from a Llama only in RoPE's layout, which is in the spec
    "qwen2": Dialect("qwen2", without_biases="llama"),
    "qwen3": Dialect("qwen3"),
    "qwen3moe": Dialect(None, with_experts="qwen3moe"),
    "gemma2": Dialect(
        "gemma2",
        activation="gelu",
        full_every=2,
        window=4096,
        n_layers_27b=46,
        softcaps=(ATTENTION_SOFTCAP, LOGIT_SOFTCAP),
    ),
    "gemma3": Dialect("gemma3", activation="gelu", full_every=6, window_theta=10000.0, n_layers_27b=62),
}
_RUNS = f"This version runs {', '.join(_ARCHITECTURES)} (Mixtral is a llama with experts)."
_PARTS = {"adapter": "a LoRA adapter", "mmproj": "a vision projector (mmproj)"}
"""Values of general.type for parts of a model."""
_PATTERN = "attention.sliding_window_pattern"
_NEUTRAL = {
    "expert_shared_count": 0, "expert_group_count": (0, 1), "expert_weights_scale": (0, 1),
    "expert_gating_func": (0, 1), "leading_dense_block_count": 0, "nextn_predict_layers": 0,
    "attention.clamp_kqv": 0, "attention.scale": 0,
    "attention.max_alibi_bias": 0, "attention.causal": True, "logit_scale": (0, 1), "residual_scale": (0, 1),
    "embedding_scale": (0, 1), "rope.freq_base_swa": (),
    "use_parallel_residual": False, "router_logit_softcapping": 0, "swin_norm": False, "n_deepstack_layers": 0,
    "interleave_moe_layer_step": (0, 1), "moe_every_n_layers": (0, 1), "attention.output_scale": (0, 1),
    "attention.temperature_scale": 0, _PATTERN: 0, "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.yarn_attn_factor": (0, 1), "rope.scaling.yarn_ext_factor": (-1, 0), "rope.scaling.alpha": 0,
}  # fmt: skip
"""Keys that change the computation, with their neutral values."""
_IGNORED = {
    "vocab_size",
    "embedding_length_out",
    "tensor_data_layout",
    "pooling_type",
    "attention.layer_norm_epsilon",
    "expert_group_used_count",
    "expert_shared_feed_forward_length",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
"""Keys that the tensors determine, that belong to refused features (YaRN, shared experts), or that change nothing. Any
other key may change the computation, and is refused."""
_MAX_LAYERS = 1 << 12
_MAX_EXPERTS = 1 << 16
"""In all layers together."""
_LLAMA31 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_seq_len": 8192}
_FACTOR_ROUNDING = 2e-5
"""Converters compute the factors in float32, where the difference of nearly equal numbers loses some bits."""


@converted_by_threads
class _Numbers(Struct, frozen=True):
    """The metadata that is read, without the architecture's name."""

    n_layers: int = field(name="block_count")
    seq_len: int = field(name="context_length")
    dim: int = field(name="embedding_length")
    n_heads: int = field(name="attention.head_count")
    norm_eps: float = field(name="attention.layer_norm_rms_epsilon")
    n_kv_heads: int | None = field(name="attention.head_count_kv", default=None)
    head_dim: int | None = field(name="attention.key_length", default=None)
    v_head_dim: int | None = field(name="attention.value_length", default=None)
    rope_dim: int | None = field(name="rope.dimension_count", default=None)
    ffn_dim: int = field(name="feed_forward_length", default=0)
    expert_dim: int = field(name="expert_feed_forward_length", default=0)
    n_experts: int = field(name="expert_count", default=0)
    n_active_experts: int = field(name="expert_used_count", default=0)
    norm_topk: float | bool = field(name="expert_weights_norm", default=True)
    window: int | None = field(name="attention.sliding_window", default=None)
    full_every: int | None = field(name="attention.sliding_window_pattern", default=None)
    window_theta: float | None = field(name="rope.freq_base_swa", default=None)
    rope_theta: float = field(name="rope.freq_base", default=10000.0)
    rope_kind: str = field(name="rope.scaling.type", default="linear")  # llama.cpp's default
    rope_factor: float | None = field(name="rope.scaling.factor", default=None)
    rope_scale: float = field(name="rope.scale_linear", default=0.0)  # the factor's name in 2023


def _own(file: Container, arch: str) -> dict[str, Any]:
    """The metadata under the architecture's name. A list with one number per layer becomes their common value, or the
    interval of layers without a window."""
    own: dict[str, Any] = {}
    for name, value in file.metadata.items():
        if not name.startswith(f"{arch}."):
            continue
        if isinstance(value, ArrayLocation):
            values = file.array(name) if 1 <= value.count <= _MAX_LAYERS else []
            if (
                _ARCHITECTURES[arch].full_every
                and name.endswith(_PATTERN)
                and (every := full_every(values)) is not None
            ):
                values = [every]
            if len(set(values)) != 1:
                raise UnsupportedModel(
                    f"{file.path}: {name} differs from layer to layer; this version runs models of equal layers."
                )
            value = values[0]
        if isinstance(value, float) and not math.isfinite(value):
            raise FormatError(f"{file.path}: {name} is {value}; expected a number. The file is damaged.")
        own[name.removeprefix(f"{arch}.")] = shortest(value) if isinstance(value, float) else value
    return own


def shortest(value: float) -> float:
    """The shortest decimal that rounds to `value` in f32: 1e-05 for a file's 9.9999997e-06."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def check_architecture(file: Container) -> tuple[str, Dialect]:
    """The architecture's name and its dialect. Raises FormatError if the name is missing; UnsupportedModel for a LoRA
    adapter, a vision projector (mmproj) and other architectures."""
    arch, kind = file.metadata.get("general.architecture"), file.metadata.get("general.type", "model")
    if not isinstance(arch, str):
        raise FormatError(f"{file.path}: general.architecture is missing, so this is not a model.")
    if isinstance(kind, str) and kind in _PARTS:
        raise UnsupportedModel(f"{file.path}: this is {_PARTS[kind]}, not a whole model. Get the model itself.")
    if arch not in _ARCHITECTURES:
        raise UnsupportedModel(f"{file.path}: the architecture is {arch[:64]!r}. {_RUNS}")
    return arch, _ARCHITECTURES[arch]


def read_spec(file: Container, vocab_size: int, rope_factors: F32 | None) -> ModelSpec:
    """The spec of `file`, with all weights F32.

    rope_factors: the values of the tensor rope_freqs, if it exists. Raises FormatError or UnsupportedModel.
    """
    arch, dialect = check_architecture(file)
    own = _own(file, arch)
    _check_neutral(file, arch, own, dialect)
    numbers = typed(own, _Numbers, f"{file.path}: {arch}")
    dim, n_heads, n_experts = numbers.dim, numbers.n_heads, numbers.n_experts
    window = dialect.window if numbers.window is None else numbers.window
    if numbers.head_dim is None and (n_heads < 1 or dim % n_heads):
        raise FormatError(
            f"{file.path}: {arch}.attention.head_count is {n_heads}; it does not divide the width, {dim}, and "
            f"{arch}.attention.key_length is missing. Convert the model again."
        )
    head_dim = dim // n_heads if numbers.head_dim is None else numbers.head_dim
    for key, width in (("attention.value_length", numbers.v_head_dim), ("rope.dimension_count", numbers.rope_dim)):
        if width not in (None, head_dim):
            raise UnsupportedModel(
                f"{file.path}: {arch}.{key} is {width}, and heads have {head_dim} values; this version runs models "
                "where both are equal."
            )
    here = dialect.with_experts if n_experts else dialect.dense
    if here is None and not n_experts:
        raise FormatError(f"{file.path}: {arch}.expert_count is {n_experts}; expected 1 or more.")
    if here is None:
        raise UnsupportedModel(f"{file.path}: {arch}.expert_count is {n_experts}; {arch} has no experts. {_RUNS}")
    hidden_dim = (numbers.expert_dim if n_experts else 0) or numbers.ffn_dim
    if not hidden_dim:
        raise FormatError(f"{file.path}: {arch}.feed_forward_length is missing. Convert the model again.")
    if n_experts * numbers.n_layers > _MAX_EXPERTS:
        raise FormatError(
            f"{file.path}: {arch}.expert_count is {n_experts}; expected at most {_MAX_EXPERTS} in all layers."
        )
    spec = ModelSpec(
        arch=here,
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=numbers.n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads if numbers.n_kv_heads is None else numbers.n_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        seq_len=numbers.seq_len,
        weight_type=FloatType.F32,
        norm_eps=numbers.norm_eps,
        activation=dialect.activation,
        n_experts=n_experts,
        n_active_experts=numbers.n_active_experts if n_experts else 0,
        norm_topk=bool(numbers.norm_topk),
        window=window if 0 < window < numbers.seq_len else None,
        query_scalar=dim // n_heads if numbers.n_layers == dialect.n_layers_27b and n_heads > 0 else None,
    )
    try:
        spec.check()  # bounds the numbers before _rope uses them
        spec = replace(
            spec,
            rope=_rope(numbers, spec, "interleaved" if dialect.in_pairs and not n_experts else "half", rope_factors),
        )
        if dialect.full_every:
            spec = _with_layers(spec, numbers, dialect, window)
        spec.check()
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{file.path}: {arch}.{error}") from error
    except FormatError as error:
        raise FormatError(f"{file.path}: {error}. The metadata cannot be that of a model.") from error
    return spec


def _with_layers(spec: ModelSpec, numbers: _Numbers, dialect: Dialect, window: int) -> ModelSpec:
    """`spec` with its layers with and without a window."""
    every = dialect.full_every if numbers.full_every is None else numbers.full_every
    if window <= 0:  # as in llama.cpp, where then no layer has its own RoPE either
        return replace(spec, full_every=1)
    theta = dialect.window_theta if numbers.window_theta is None else numbers.window_theta
    own_rope = None if theta is None else Rope(theta, spec.rope.layout)
    return replace(spec, full_every=every, window_rope=own_rope)


def _check_neutral(file: Container, arch: str, own: dict[str, Any], dialect: Dialect) -> None:
    attention_softcap, logit_softcap = dialect.softcaps
    neutrals = _NEUTRAL | {"attn_logit_softcapping": attention_softcap, "final_logit_softcapping": logit_softcap}
    if dialect.full_every:
        neutrals = {key: neutrals[key] for key in neutrals.keys() - {_PATTERN, "rope.freq_base_swa"}}
    read = {encoded.encode_name for encoded in fields(_Numbers)}
    unknown = sorted(own.keys() - read - _IGNORED - neutrals.keys())
    if unknown:
        raise UnsupportedModel(
            f"{file.path}: the key {arch}.{unknown[0][:80]} is {repr(own[unknown[0]])[:80]}; this version does not "
            f"know it, and it may mean another computation. {_RUNS}"
        )
    for key in neutrals.keys() & own.keys():
        neutral = neutrals[key]
        if own[key] not in (neutral if isinstance(neutral, tuple) else (neutral,)):
            raise UnsupportedModel(
                f"{file.path}: {arch}.{key} is {repr(own[key])[:80]}, which this version does not support. {_RUNS}"
            )


def _rope(numbers: _Numbers, spec: ModelSpec, layout: Literal["interleaved", "half"], stored: F32 | None) -> Rope:
    theta, kind = numbers.rope_theta, numbers.rope_kind
    rope = Rope(theta, layout)
    factor = numbers.rope_scale if numbers.rope_factor is None else numbers.rope_factor
    if kind not in ("none", "linear") and (factor not in (0.0, 1.0) or kind == "longrope"):
        raise UnsupportedModel(
            f"rope.scaling.type is {kind[:64]!r} with a factor of {factor:g}; this version scales RoPE only linearly "
            "or as Llama 3.1. Get a file without that scaling."
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
