"""params.json of Meta's model folders. See FORMATS.md §6. Knows no weights.

The file lacks some numbers. The tensors' shapes give the FFN's width and Llama 2's vocabulary; the generation of the
Llama gives the context length and RoPE's scaling.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from msgspec import Struct

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.files import read_json
from dllama_zmq.spec import FloatType, ModelSpec, Rope, RopeScaling
from dllama_zmq.threads import converted_by_threads
from dllama_zmq.typed import typed

_CODE_LLAMA_THETA, _LLAMA3_THETA = 1e6, 5e5
_LLAMA32_WIDTHS = (2048, 3072)  # 1B and 3B; no other model with scaled RoPE has these widths
_IGNORED = {"multiple_of", "ffn_dim_multiplier", "hidden_dim", "max_batch_size"}
"""Keys that the tensors' shapes determine, or that do not describe the model."""


@converted_by_threads
class Params(Struct, frozen=True):
    """The keys that are read."""

    dim: int
    n_layers: int
    n_heads: int
    norm_eps: float
    n_kv_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int = -1
    rope_theta: float = 10000.0
    use_scaled_rope: bool = False
    rope_scaling_factor: float | None = None
    max_seq_len: int | None = None
    sliding_window: int | None = None

    def spec(self, vocab_size: int, hidden_dim: int) -> ModelSpec:
        """The spec with all weights F32; the tensors give `vocab_size` and `hidden_dim`. Raises FormatError."""
        head_dim = self.head_dim
        if head_dim is None:
            if self.n_heads < 1 or self.dim % self.n_heads:
                raise FormatError(f"n_heads is {self.n_heads}: it does not divide dim, {self.dim}")
            head_dim = self.dim // self.n_heads
        if not 0 < self.rope_theta < math.inf:
            raise FormatError(f"rope_theta is {self.rope_theta}; expected a positive number")
        seq_len, window = self._seq_len(), self.sliding_window
        spec = ModelSpec(
            arch="llama",
            dim=self.dim,
            hidden_dim=hidden_dim,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads if self.n_kv_heads is None else self.n_kv_heads,
            head_dim=head_dim,
            vocab_size=self.vocab_size if self.vocab_size > 0 else vocab_size,
            seq_len=seq_len,
            weight_type=FloatType.F32,
            rope=Rope(self.rope_theta, scaling=self._scaling()),
            norm_eps=self.norm_eps,
            window=None if window is None or window >= seq_len else window,
        )
        if spec.n_kv_heads < 1:
            raise FormatError(f"n_kv_heads is {spec.n_kv_heads}; expected 1 or more")
        spec.check()
        return spec

    def _seq_len(self) -> int:
        if self.max_seq_len is not None:
            return self.max_seq_len
        if self.use_scaled_rope:
            return 131072
        if self.rope_theta == _CODE_LLAMA_THETA:
            return 16384
        return 8192 if self.rope_theta >= _LLAMA3_THETA else 4096

    def _scaling(self) -> RopeScaling | None:
        """Sources: llama-models, `apply_scaling` (always 8); the published configurations of 3.2 (32)."""
        if not self.use_scaled_rope:
            if self.rope_scaling_factor not in (None, 1.0):
                raise FormatError(
                    f"rope_scaling_factor is {self.rope_scaling_factor} and use_scaled_rope is false; "
                    "expected both or neither"
                )
            return None
        factor = self.rope_scaling_factor or (32.0 if self.dim in _LLAMA32_WIDTHS else 8.0)
        if not 0 < factor < math.inf:
            raise FormatError(f"rope_scaling_factor is {factor}; expected a positive number")
        return RopeScaling(factor, 1.0, 4.0, 8192)


def read_params(path: Path) -> Params:
    """Read a params.json. Raises FormatError, or UnsupportedModel for a key that may mean another computation."""
    raw = read_json(path, dict[str, Any])
    unknown = sorted(raw.keys() - set(Params.__struct_fields__) - _IGNORED)
    if unknown:
        raise UnsupportedModel(
            f"{path}: this version does not know the key {unknown[0][:80]!r}, which may mean another computation "
            "(experts, images, quantized weights). If the model is on Hugging Face, get it in that format."
        )
    params = typed(raw, Params, str(path))
    if not 1 <= params.n_layers <= 1 << 12 or not 1 <= params.dim <= 1 << 20:
        raise FormatError(f"{path}: no model has {params.n_layers} layers of width {params.dim}.")
    return params
