"""Published models by name, as numbers alone: enough to predict sizes and traffic without a file."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType

from dllama_zmq.errors import UsageError
from dllama_zmq.spec import FloatType, ModelSpec, Rope, RopeScaling

_LLAMA2_ROPE = Rope(theta=10000.0)
_LLAMA3_ROPE = Rope(theta=500000.0)
_LLAMA32_ROPE = Rope(theta=500000.0, scaling=RopeScaling(32.0, 1.0, 4.0, 8192))


def _llama(
    *, n_layers: int, dim: int, hidden_dim: int, n_heads: int, n_kv_heads: int, vocab_size: int = 32000,
    seq_len: int = 4096, rope: Rope = _LLAMA2_ROPE,
) -> ModelSpec:  # fmt: skip
    return ModelSpec(
        arch="llama", dim=dim, hidden_dim=hidden_dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads,
        head_dim=dim // n_heads, vocab_size=vocab_size, seq_len=seq_len, weight_type=FloatType.Q40, rope=rope,
    )  # fmt: skip


SHAPES: dict[str, ModelSpec] = {
    "tinyllama": _llama(n_layers=22, dim=2048, hidden_dim=5632, n_heads=32, n_kv_heads=4, seq_len=2048),
    "llama2-7b": _llama(n_layers=32, dim=4096, hidden_dim=11008, n_heads=32, n_kv_heads=32),
    "llama2-13b": _llama(n_layers=40, dim=5120, hidden_dim=13824, n_heads=40, n_kv_heads=40),
    "llama2-70b": _llama(n_layers=80, dim=8192, hidden_dim=28672, n_heads=64, n_kv_heads=8),
    "llama3-8b": _llama(
        n_layers=32, dim=4096, hidden_dim=14336, n_heads=32, n_kv_heads=8, vocab_size=128256, seq_len=8192,
        rope=_LLAMA3_ROPE,
    ),
    "llama3-70b": _llama(
        n_layers=80, dim=8192, hidden_dim=28672, n_heads=64, n_kv_heads=8, vocab_size=128256, seq_len=8192,
        rope=_LLAMA3_ROPE,
    ),
    "llama3.2-1b": _llama(
        n_layers=16, dim=2048, hidden_dim=8192, n_heads=32, n_kv_heads=8, vocab_size=128256, seq_len=131072,
        rope=_LLAMA32_ROPE,
    ),
}  # fmt: skip


OVERRIDES = ("layers", "dim", "hidden", "heads", "kv-heads", "head-dim", "vocab", "seq-len")
"""What a shape's numbers are called where they are given anew."""


def shape(
    name: str, weight_type: FloatType = FloatType.Q40, overrides: Mapping[str, int] = MappingProxyType({})
) -> ModelSpec:
    """The numbers of a published model, those of `overrides` (keys of OVERRIDES) instead of its own.

    Without `head-dim` the heads share the width. Raises UsageError, with the nearest names, for one not known here;
    FormatError where the numbers cannot be a model.
    """
    spec = SHAPES.get(name.lower())
    if spec is None:
        nearest = difflib.get_close_matches(name.lower(), SHAPES, n=3, cutoff=0.4)
        advice = f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(SHAPES)}"
        raise UsageError(f"{name!r} is no model shape known here; {advice}")
    dim, n_heads = overrides.get("dim", spec.dim), overrides.get("heads", spec.n_heads)
    heads_differ = (dim, n_heads) != (spec.dim, spec.n_heads)
    spec = dataclasses.replace(
        spec,
        weight_type=weight_type,
        dim=dim,
        n_heads=n_heads,
        n_layers=overrides.get("layers", spec.n_layers),
        hidden_dim=overrides.get("hidden", spec.hidden_dim),
        n_kv_heads=overrides.get("kv-heads", spec.n_kv_heads),
        head_dim=overrides.get("head-dim", dim // max(1, n_heads) if heads_differ else spec.head_dim),
        vocab_size=overrides.get("vocab", spec.vocab_size),
        seq_len=overrides.get("seq-len", spec.seq_len),
    )
    spec.check()
    return spec
