"""The layers of a config.json that attend to all positions, and the RoPE of each kind of layer. Knows no other key.

Source: transformers 5.24, configuration_gemma3.py and modeling_rope_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.spec import full_every

_DEFAULT_PATTERN = {"gemma2": 2, "gemma3_text": 6}
"""The default interval of layers without a window, of transformers 5.24, by model_type."""
_FULL, _WINDOWED = "full_attention", "sliding_attention"


class LayerKeys(Struct, frozen=True):
    """The keys that are read."""

    num_hidden_layers: int
    max_position_embeddings: int
    sliding_window: int | None = None
    sliding_window_pattern: int | None = None
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    layer_types: list[str] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None


def window_of(keys: LayerKeys, model_type: str) -> tuple[int | None, int]:
    """The attention window or None, and `ModelSpec.full_every`. Raises UnsupportedModel if the layers without a window
    follow another rule."""
    if model_type == "llama":
        return None, 0
    n_layers = keys.num_hidden_layers
    window = keys.sliding_window
    if window is not None and window < 1:
        raise FormatError(f"sliding_window is {window}; expected 1 or more.")
    within_context = window if window is not None and window < keys.max_position_embeddings else None
    if model_type in _DEFAULT_PATTERN:
        return within_context, _pattern(keys, model_type)
    if model_type.startswith("qwen") and not keys.use_sliding_window:
        window = within_context = None
    full_layers = 0
    if model_type.startswith("qwen") and window is not None:
        full_layers = min(28 if keys.max_window_layers is None else keys.max_window_layers, n_layers)
    if keys.layer_types is not None:
        full_layers = n_layers - sum(_windowed(keys.layer_types, n_layers))
        if full_layers == n_layers and window is not None and model_type not in ("qwen2", "qwen3"):
            raise UnsupportedModel(
                f"sliding_window is {window}, but all layer_types are full_attention; remove the wrong one."
            )
    if 0 < full_layers < n_layers:
        raise UnsupportedModel(
            f"{'max_window_layers' if keys.layer_types is None else 'layer_types'}: {full_layers} of {n_layers} "
            f"layers attend to all positions and the others to a sliding window, which this version does not support "
            f"in a {model_type}."
        )
    return None if full_layers else within_context, 0


def _pattern(keys: LayerKeys, model_type: str) -> int:
    """The interval of the layers that attend to all positions."""
    if keys.layer_types is not None:
        every = full_every(_windowed(keys.layer_types, keys.num_hidden_layers))
        if every is None:
            raise UnsupportedModel(
                "layer_types: the layers with full_attention are not every nth layer, which this version does not "
                "support."
            )
        return every
    default = _DEFAULT_PATTERN[model_type]
    every = keys.sliding_window_pattern if model_type == "gemma3_text" else None
    if every is not None and every < 1:
        raise FormatError(f"sliding_window_pattern is {every}; expected 1 or more.")
    return every or default


def _windowed(kinds: list[str], n_layers: int) -> list[bool]:
    """Whether each layer has a window. Raises UnsupportedModel for other kinds of attention."""
    for kind in kinds:
        if kind not in (_FULL, _WINDOWED):
            raise UnsupportedModel(f"layer_types has {kind[:40]!r}; this version runs full and sliding attention.")
    if len(kinds) != n_layers:
        raise FormatError(f"layer_types has {len(kinds)} entries; expected {n_layers}, one per layer.")
    return [kind == _WINDOWED for kind in kinds]


def rope_by_kind(keys: LayerKeys) -> tuple[dict[str, Any], dict[str, Any]]:
    """The RoPE parameters of a Gemma 3: of the layers without a window, and of those with one."""
    both = keys.rope_parameters or {}
    for kind, parameters in both.items():
        if kind not in (_FULL, _WINDOWED) or not isinstance(parameters, dict | None):
            raise UnsupportedModel(
                f"rope_parameters has {kind[:40]!r}; expected one object for {_FULL} and one for {_WINDOWED}."
            )
    return _merged(both.get(_FULL) or {}, keys.rope_scaling or {}), both.get(_WINDOWED) or {}


def rope_parameters(keys: LayerKeys) -> dict[str, Any]:
    """RoPE's parameters, from the keys of transformers 5 or 4. Raises UnsupportedModel if these differ."""
    return _merged(keys.rope_parameters or {}, keys.rope_scaling or {})


def _merged(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
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
    return {**new, **old}
