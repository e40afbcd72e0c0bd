"""What a model is, as plain data: its numbers, its tensors, the names of their axes. Knows no file and no node."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from dllama_zmq.errors import FormatError


class FloatType(enum.IntEnum):
    """How numbers are stored. The values are those of `.m` header key 13 (weights_float_type)."""

    F32 = 0
    F16 = 1
    Q40 = 2
    Q80 = 3

    @property
    def block_values(self) -> int:
        """Values in one block: 32 for the quantized types, else 1."""
        return 32 if self in (FloatType.Q40, FloatType.Q80) else 1

    @property
    def block_bytes(self) -> int:
        """Bytes of one block. Q40 is an f16 scale and 16 bytes of nibbles, Q80 an f16 scale and 32 bytes."""
        return {FloatType.F32: 4, FloatType.F16: 2, FloatType.Q40: 18, FloatType.Q80: 34}[self]

    def row_bytes(self, n_values: int) -> int:
        """Bytes that `n_values` take; `n_values` must be whole blocks."""
        if n_values % self.block_values:
            raise ValueError(f"{n_values} values are not whole {self.name} blocks of {self.block_values}")
        return n_values // self.block_values * self.block_bytes


Axis = Literal["embed", "heads", "kv_heads", "ffn", "vocab", "head_dim", "one"]
Sync = Literal["f32", "f16", "q80"]
"""The type in which activations cross the bus."""

SYNC_FLOAT: dict[Sync, FloatType] = {"f32": FloatType.F32, "f16": FloatType.F16, "q80": FloatType.Q80}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's stretching of low frequencies. Source: Meta's llama-models, `apply_scaling`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_seq_len: int


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (arXiv:2104.09864). `interleaved` rotates values (2i, 2i + 1), `half` (i, i + Hd/2)."""

    theta: float = 10000.0
    layout: Literal["interleaved", "half"] = "interleaved"
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The numbers that define a decoder-only transformer. Lengths are in values, `seq_len` in tokens."""

    arch: Literal["llama"]
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    seq_len: int
    weight_type: FloatType
    rope: Rope = Rope()
    norm_eps: float = 1e-5

    @property
    def q_dim(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads together."""
        return self.n_kv_heads * self.head_dim

    def axis_width(self, axis: Axis) -> int:
        """Values along a named axis."""
        return {
            "embed": self.dim,
            "heads": self.q_dim,
            "kv_heads": self.kv_dim,
            "ffn": self.hidden_dim,
            "vocab": self.vocab_size,
            "head_dim": self.head_dim,
            "one": 1,
        }[axis]

    def check(self) -> None:
        """Raise FormatError, naming the value, where the numbers cannot be a model."""
        limits = {
            "dim": 1 << 20, "hidden_dim": 1 << 22, "n_layers": 1 << 12, "n_heads": 1 << 14, "n_kv_heads": 1 << 14,
            "head_dim": 1 << 14, "vocab_size": 1 << 24, "seq_len": 1 << 24,
        }  # fmt: skip
        for name, largest in limits.items():
            value = getattr(self, name)
            if not 1 <= value <= largest:
                raise FormatError(f"{name} is {value}; expected 1 to {largest}")
        if self.n_heads % self.n_kv_heads:
            raise FormatError(f"{self.n_heads} heads cannot share {self.n_kv_heads} KV heads equally")
        if self.head_dim % 2:
            raise FormatError(f"head_dim is {self.head_dim}; RoPE rotates pairs and needs an even number")
        if not 0 < self.norm_eps < 1:
            raise FormatError(f"norm_epsilon is {self.norm_eps}; expected a small positive number")
        if not self.rope.theta > 0:
            raise FormatError(f"rope_theta is {self.rope.theta}; expected a positive number")
        scaling = self.rope.scaling
        if scaling is not None and not (
            scaling.factor > 0
            and 0 < scaling.low_freq_factor <= scaling.high_freq_factor
            and scaling.original_seq_len > 0
        ):
            raise FormatError(
                f"rope scaling is {scaling}; expected positive numbers, the low factor not above the high"
            )
        block = self.weight_type.block_values
        for name in ("dim", "q_dim", "hidden_dim"):
            if getattr(self, name) % block:
                raise FormatError(
                    f"{name} is {getattr(self, name)}: not whole {self.weight_type.name} blocks of {block} values"
                )


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: its name, its axes (output, input), how it is stored, and whether only the root needs it.

    An output axis that is split means rows; an input axis that is split means columns and a partial sum.
    A vector has the axes ("one", axis): it is one row.
    """

    name: str
    axes: tuple[Axis, Axis]
    float_type: FloatType
    root_only: bool = False

    def shape(self, spec: ModelSpec) -> tuple[int, int]:
        """(rows, columns) of the whole tensor."""
        return spec.axis_width(self.axes[0]), spec.axis_width(self.axes[1])

    def nbytes(self, spec: ModelSpec) -> int:
        """Bytes of the whole tensor."""
        rows, columns = self.shape(spec)
        return rows * self.float_type.row_bytes(columns)
