"""params.json of Meta's model folders: see FORMATS.md §6. Knows no weights.

What it does not say (the vocabulary of Llama 2, the FFN's width) the tensors' shapes say; how long a text may be and by
how much RoPE is stretched, the generation says.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.json_file import read_json
from dllama_zmq.spec import FloatType, ModelSpec, Rope, RopeScaling
from dllama_zmq.threads import converted_by_threads

_CODE_LLAMA_THETA, _LLAMA3_THETA = 1e6, 5e5
_LLAMA32_WIDTHS = (2048, 3072)  # of the 1B and the 3B, the only ones with scaled RoPE that are so narrow
_NO_MATTER = {"multiple_of", "ffn_dim_multiplier", "hidden_dim", "max_batch_size"}
"""Keys that the tensors' shapes say better, or that are no part of a model."""


@converted_by_threads
class Params(Struct, frozen=True):
    """The keys that are looked at."""

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
        """The model's numbers, as if all weights were F32, with those that the tensors say. Raises FormatError."""
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
        """Source: llama-models, `apply_scaling`, which has 8 for all; the published configurations of 3.2 have 32."""
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
    """Read a params.json. Raises FormatError, or UnsupportedModel for a key that may stand for another computation."""
    said = read_json(path, dict[str, Any])
    unknown = sorted(said.keys() - set(Params.__struct_fields__) - _NO_MATTER)
    if unknown:
        raise UnsupportedModel(
            f"{path}: the key {unknown[0][:80]!r} is not known here, and may stand for what is not run here "
            "(experts, images, quantized weights). If the model is on Hugging Face, take it in that format."
        )
    try:
        params = msgspec.convert(said, Params)
    except msgspec.ValidationError as error:
        raise FormatError(f"{path}: {error}. It is damaged, or no params.json of a model.") from error
    if not 1 <= params.n_layers <= 1 << 12 or not 1 <= params.dim <= 1 << 20:
        raise FormatError(f"{path}: {params.n_layers} layers of a width of {params.dim} cannot be a model.")
    return params
