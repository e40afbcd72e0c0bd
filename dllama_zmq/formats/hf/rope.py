"""RoPE in a config.json: `rope_scaling`, and since transformers 5 `rope_parameters`. Knows no other key.

Source: transformers 5.24, modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.spec import Rope, RopeScaling
from dllama_zmq.typed import typed


class _Parameters(Struct, frozen=True, forbid_unknown_fields=True):
    """The keys that are supported."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    partial_rotary_factor: float | None = None


def read_rope(
    raw: Mapping[str, Any],
    default_theta: float,
    default_part: float,
    layout: Literal["interleaved", "half"],
    head_dim: int,
) -> Rope:
    """The Rope in `raw`. Missing keys have `default_theta` and `default_part`, the rotated part of a head.

    Raises UnsupportedModel for an unsupported key or scaling, FormatError for a wrong value.
    """
    parameters = _parameters(_common(raw))
    theta = default_theta if parameters.rope_theta is None else parameters.rope_theta
    if not 0 < theta < math.inf:
        raise FormatError(f"rope_theta is {theta}; expected a positive number.")
    part = default_part if parameters.partial_rotary_factor is None else parameters.partial_rotary_factor
    if part != 1.0:
        raise UnsupportedModel(f"partial_rotary_factor is {part}; this version rotates only whole heads.")
    kind = parameters.rope_type or parameters.type or "default"
    if kind == "default":
        if parameters.factor not in (None, 1.0):
            raise UnsupportedModel(
                f"the RoPE scaling has a factor of {parameters.factor}, but its type is default or missing; "
                "expected the type linear or llama3, or no factor."
            )
        return Rope(theta, layout)
    if kind == "linear":
        if not 1 <= head_dim <= 1 << 14:
            raise FormatError(f"head_dim is {head_dim}; expected 1 to {1 << 14}")
        return Rope(theta, layout, factors=(_given(parameters.factor, "factor"),) * (head_dim // 2))
    if kind != "llama3":
        raise UnsupportedModel(f"rope type is {kind[:40]!r}; this version supports default, linear and llama3.")
    original = parameters.original_max_position_embeddings
    if original is None:
        raise FormatError("original_max_position_embeddings of the RoPE scaling is missing. Download it again.")
    low, high = (_given(getattr(parameters, f"{end}_freq_factor"), f"{end}_freq_factor") for end in ("low", "high"))
    return Rope(theta, layout, RopeScaling(_given(parameters.factor, "factor"), low, high, original))


def _common(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """`raw` without an object per kind of layer (full_attention, ...). Raises UnsupportedModel if these differ."""
    nested = {kind: value for kind, value in raw.items() if isinstance(value, dict)}
    if not nested:
        return raw
    first_kind, first = next(iter(nested.items()))
    for kind, value in nested.items():
        if value != first:
            raise UnsupportedModel(
                f"rope_parameters of {kind[:40]} differ from those of {first_kind[:40]}; this version runs models "
                "whose layers all have the same RoPE."
            )
    return {key: value for key, value in raw.items() if key not in nested} | first


def _parameters(raw: Mapping[str, Any]) -> _Parameters:
    given = {key: value for key, value in raw.items() if value is not None}
    kind = str(given.get("rope_type") or given.get("type") or "default")
    unknown = sorted(given.keys() - set(_Parameters.__struct_fields__))
    if unknown and kind in ("default", "linear", "llama3"):
        raise UnsupportedModel(
            f"rope_parameters: {unknown[0][:80]} is {str(given[unknown[0]])[:80]}, which this version does not support."
        )
    return typed({key: given[key] for key in given.keys() - set(unknown)}, _Parameters, "rope_parameters")


def _given(value: float | None, key: str) -> float:
    if value is None or not 0 < value < math.inf:
        raise FormatError(f"{key} of the RoPE scaling is {value}; expected a positive number.")
    return value
