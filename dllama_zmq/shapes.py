"""Published models by name, as numbers alone: enough to predict sizes and traffic without a file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from dllama_zmq.errors import UsageError
from dllama_zmq.spec import Architecture, FloatType, ModelSpec, Rope, RopeScaling

_LLAMA2_ROPE = Rope(theta=10000.0)
_LLAMA3_ROPE = Rope(theta=500000.0)
_LLAMA31_ROPE = Rope(theta=500000.0, scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
_LLAMA32_ROPE = Rope(theta=500000.0, scaling=RopeScaling(32.0, 1.0, 4.0, 8192))
_HALF_ROPE = Rope(theta=10000.0, layout="half")
_LONG_HALF_ROPE = Rope(theta=1e6, layout="half")

_GEMMA3_ROPE = Rope(theta=1e6, layout="half", factors=(8.0,) * 128)
_GEMMA3_27B_ROPE = Rope(theta=1e6, layout="half", factors=(8.0,) * 64)


def _shape(
    arch: Architecture,
    n_layers: int,
    dim: int,
    hidden_dim: int,
    heads: tuple[int, int],
    vocab_size: int,
    seq_len: int,
    rope: Rope,
    **others: Any,
) -> ModelSpec:
    """heads: query and KV heads. others: numbers of ModelSpec that differ from those of Llama 3."""
    return ModelSpec(
        arch=arch,
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=n_layers,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        vocab_size=vocab_size,
        seq_len=seq_len,
        weight_type=FloatType.Q40,
        rope=rope,
        **{"head_dim": 128, "norm_eps": 1e-5, **others},
    )


_MIXTRAL_EXPERTS = {"n_experts": 8, "n_active_experts": 2}
_GROK1 = {**_MIXTRAL_EXPERTS, "activation": "gelu", "norm_topk": False}
_QWEN3_EXPERTS = {"norm_eps": 1e-6, "n_experts": 128, "n_active_experts": 8}

_GEMMA = {"head_dim": 256, "norm_eps": 1e-6, "activation": "gelu"}
_GEMMA2 = {**_GEMMA, "window": 4096, "full_every": 2}
_GEMMA3 = {**_GEMMA, "window": 512, "full_every": 6, "window_rope": _HALF_ROPE}
_GEMMA3_1024 = {**_GEMMA3, "window": 1024}
_GEMMA3_27B = {**_GEMMA3_1024, "head_dim": 128, "query_scalar": 168}

# The numbers of each model's own config.json, as its publisher has it; Grok-1's of its run.py.
_LLAMA31_8B = _shape("llama", 32, 4096, 14336, (32, 8), 128256, 131072, _LLAMA31_ROPE)
_LLAMA31_70B = _shape("llama", 80, 8192, 28672, (64, 8), 128256, 131072, _LLAMA31_ROPE)
SHAPES: dict[str, ModelSpec] = {
    "tinyllama": _shape("llama", 22, 2048, 5632, (32, 4), 32000, 2048, _LLAMA2_ROPE, head_dim=64),
    "llama2-7b": _shape("llama", 32, 4096, 11008, (32, 32), 32000, 4096, _LLAMA2_ROPE),
    "llama2-13b": _shape("llama", 40, 5120, 13824, (40, 40), 32000, 4096, _LLAMA2_ROPE),
    "llama2-70b": _shape("llama", 80, 8192, 28672, (64, 8), 32000, 4096, _LLAMA2_ROPE),
    "llama3-8b": _shape("llama", 32, 4096, 14336, (32, 8), 128256, 8192, _LLAMA3_ROPE),
    "llama3-70b": _shape("llama", 80, 8192, 28672, (64, 8), 128256, 8192, _LLAMA3_ROPE),
    "llama3.1-8b": _LLAMA31_8B,
    "llama3.2-1b": _shape("llama", 16, 2048, 8192, (32, 8), 128256, 131072, _LLAMA32_ROPE, head_dim=64),
    "llama3.2-3b": _shape("llama", 28, 3072, 8192, (24, 8), 128256, 131072, _LLAMA32_ROPE),
    "llama3.3-70b": _LLAMA31_70B,
    "mistral-7b": _shape("llama", 32, 4096, 14336, (32, 8), 32000, 32768, _LLAMA2_ROPE, window=4096),
    "mixtral-8x7b": _shape("mixtral", 32, 4096, 14336, (32, 8), 32000, 32768, _LONG_HALF_ROPE, **_MIXTRAL_EXPERTS),
    "qwen2.5-7b": _shape("qwen2", 28, 3584, 18944, (28, 4), 152064, 32768, _LONG_HALF_ROPE, norm_eps=1e-6),
    "qwen3-0.6b": _shape("qwen3", 28, 1024, 3072, (16, 8), 151936, 40960, _LONG_HALF_ROPE, norm_eps=1e-6),
    "qwen3-8b": _shape("qwen3", 36, 4096, 12288, (32, 8), 151936, 40960, _LONG_HALF_ROPE, norm_eps=1e-6),
    "qwen3-30b-a3b": _shape("qwen3moe", 48, 2048, 768, (32, 4), 151936, 40960, _LONG_HALF_ROPE, **_QWEN3_EXPERTS),
    "grok-1": _shape("grok1", 64, 6144, 32768, (48, 8), 131072, 8192, _HALF_ROPE, **_GROK1),
    "gemma2-2b": _shape("gemma2", 26, 2304, 9216, (8, 4), 256000, 8192, _HALF_ROPE, **_GEMMA2),
    "gemma2-9b": _shape("gemma2", 42, 3584, 14336, (16, 8), 256000, 8192, _HALF_ROPE, **_GEMMA2),
    "gemma3-270m": _shape("gemma3", 18, 640, 2048, (4, 1), 262144, 32768, _LONG_HALF_ROPE, **_GEMMA3),
    "gemma3-1b": _shape("gemma3", 26, 1152, 6912, (4, 1), 262144, 32768, _LONG_HALF_ROPE, **_GEMMA3),
    "gemma3-4b": _shape("gemma3", 34, 2560, 10240, (8, 4), 262208, 131072, _GEMMA3_ROPE, **_GEMMA3_1024),
    "gemma3-12b": _shape("gemma3", 48, 3840, 15360, (16, 8), 262208, 131072, _GEMMA3_ROPE, **_GEMMA3_1024),
    "gemma3-27b": _shape("gemma3", 62, 5376, 21504, (32, 16), 262208, 131072, _GEMMA3_27B_ROPE, **_GEMMA3_27B),
    "deepseek-r1-distill-llama-8b": _LLAMA31_8B,
    "deepseek-r1-distill-llama-70b": _LLAMA31_70B,
    "deepseek-r1-distill-qwen-7b": _shape("qwen2", 28, 3584, 18944, (28, 4), 152064, 131072, _HALF_ROPE, norm_eps=1e-6),
}


_FIELDS = {
    "layers": "n_layers",
    "dim": "dim",
    "hidden": "hidden_dim",
    "heads": "n_heads",
    "kv-heads": "n_kv_heads",
    "head-dim": "head_dim",
    "vocab": "vocab_size",
    "seq-len": "seq_len",
}
OVERRIDES = tuple(_FIELDS)
"""The names of a shape's numbers for those who change them."""


def shape(
    name: str, weight_type: FloatType = FloatType.Q40, overrides: Mapping[str, int] = MappingProxyType({})
) -> ModelSpec:
    """The numbers of a published model, with those of `overrides` (keys of OVERRIDES) instead of its own.

    Without `head-dim` the heads share the width. Raises UsageError with the nearest names for an unknown model,
    FormatError if the numbers cannot be a model.
    """
    published = SHAPES.get(name.lower())
    if published is None:
        nearest = difflib.get_close_matches(name.lower(), SHAPES, n=3, cutoff=0.4)
        advice = f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(SHAPES)}"
        raise UsageError(f"{name!r} is no model shape known here; {advice}")
    changed: dict[str, Any] = {_FIELDS[key]: value for key, value in overrides.items()}
    spec = replace(published, weight_type=weight_type, **changed)
    if "head-dim" not in overrides and (spec.dim, spec.n_heads) != (published.dim, published.n_heads):
        spec = replace(spec, head_dim=spec.dim // max(1, spec.n_heads))
    spec.check()
    return spec
