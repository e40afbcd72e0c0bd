"""What a model is, as plain data: its numbers, its tensors, the names of their axes. Knows no file and no node."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from dllama_zmq.errors import FormatError
from dllama_zmq.threads import converted_by_threads


class FloatType(enum.IntEnum):
    """How numbers are stored: formats/FORMATS.md §1. 0 to 3 are the values of `.m` header key 13
    (weights_float_type); the others are of other files."""

    F32 = 0
    F16 = 1
    Q40 = 2
    Q80 = 3
    BF16 = 4
    Q41 = 5
    Q50 = 6
    Q51 = 7
    Q4_K = 8
    Q5_K = 9
    Q6_K = 10

    @property
    def is_quantized(self) -> bool:
        """Whether values are integers that share scales."""
        return _BLOCKS[self][0] > 1

    @property
    def block_values(self) -> int:
        """Values in one block: 32 or 256 for the quantized types, else 1."""
        return _BLOCKS[self][0]

    @property
    def cut_values(self) -> int:
        """A matrix can be cut before every column that is a multiple of this: 32 for the quantized types, else 1."""
        return min(_BLOCKS[self][0], 32)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return _BLOCKS[self][1]

    def row_bytes(self, n_values: int) -> int:
        """Bytes that `n_values` take; `n_values` must be whole blocks."""
        if n_values % self.block_values:
            raise ValueError(f"{n_values} values are not whole {self.name} blocks of {self.block_values}")
        return n_values // self.block_values * self.block_bytes

    def whole_blocks(self, columns: slice) -> slice:
        """The columns of the blocks in which `columns` (with bounds) lie."""
        size = self.block_values
        return slice(columns.start // size * size, -(-columns.stop // size) * size)

    def values_in(self, n_bytes: int) -> int:
        """How many values `n_bytes` of whole blocks are."""
        return n_bytes // self.block_bytes * self.block_values


_BLOCKS = {
    FloatType.F32: (1, 4),
    FloatType.F16: (1, 2),
    FloatType.BF16: (1, 2),
    FloatType.Q40: (32, 18),
    FloatType.Q41: (32, 20),
    FloatType.Q50: (32, 22),
    FloatType.Q51: (32, 24),
    FloatType.Q80: (32, 34),
    FloatType.Q4_K: (256, 144),
    FloatType.Q5_K: (256, 176),
    FloatType.Q6_K: (256, 210),
}
"""Values and bytes of a block."""

Architecture = Literal["llama", "mixtral", "qwen2", "qwen3", "qwen3moe", "grok1", "gemma2", "gemma3"]
Activation = Literal["silu", "gelu"]
"""What a feed-forward network's gate goes through; GELU by its tanh formula (arXiv:1606.08415 §2)."""
Axis = Literal["embed", "heads", "kv_heads", "ffn", "vocab", "head_dim", "experts", "one"]
Sync = Literal["f32", "f16", "q80"]
"""The type in which activations cross the bus."""

Weights = Literal["q40", "q80", "f16", "f32"]
"""The type in which a model that keeps its weights as floats is read."""

WEIGHTS_FLOAT: dict[Weights, FloatType] = {
    "q40": FloatType.Q40,
    "q80": FloatType.Q80,
    "f16": FloatType.F16,
    "f32": FloatType.F32,
}
SYNC_FLOAT: dict[Sync, FloatType] = {"f32": FloatType.F32, "f16": FloatType.F16, "q80": FloatType.Q80}


MAX_HEAD_DIM = 1 << 14


class RopeScaling(Struct, frozen=True):
    """Llama 3.1's stretching of low frequencies. Source: Meta's llama-models, `apply_scaling`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_seq_len: int


class Rope(Struct, frozen=True):
    """Rotary position embedding (arXiv:2104.09864). `interleaved` rotates values (2i, 2i + 1), `half` (i, i + Hd/2).

    factors: what each pair's frequency is divided by, for files that say it so; else empty.
    """

    theta: float = 10000.0
    layout: Literal["interleaved", "half"] = "interleaved"
    scaling: RopeScaling | None = None
    factors: tuple[float, ...] = ()

    def check(self, head_dim: int) -> None:
        """Raise FormatError, naming the value, where this cannot be the RoPE of heads of `head_dim` values."""
        if not self.theta > 0:
            raise FormatError(f"rope_theta is {self.theta}; expected a positive number")
        if self.factors and not (
            len(self.factors) == head_dim // 2 and all(0 < factor < math.inf for factor in self.factors)
        ):
            raise FormatError(
                f"{len(self.factors)} RoPE factors; expected {head_dim // 2} positive numbers, one a pair"
            )
        scaling = self.scaling
        if scaling is not None and not (
            scaling.factor > 0
            and 0 < scaling.low_freq_factor <= scaling.high_freq_factor
            and scaling.original_seq_len > 0
        ):
            raise FormatError(
                f"rope scaling is {scaling}; expected positive numbers, the low factor not above the high"
            )


@converted_by_threads
class ModelSpec(Struct, frozen=True):
    """The numbers that define a decoder-only transformer. Lengths are in values, `seq_len` in tokens.

    n_experts: 0 for a dense model; `hidden_dim` is the width of one expert where there are any.
    norm_topk: the weights of the chosen experts are made to sum to 1.
    window: how many positions a token attends to, itself included, where the model limits them.
    full_every: every so many layers one attends to all positions; 0: the window is that of all layers.
    window_rope: RoPE of the layers with a window, where it is not `rope`.
    query_scalar: attention's scores are divided by its square root; None: it is head_dim.
    stored: the tensors that are of another type than `weight_type` (or the table's F32), by name.
    """

    arch: Architecture
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
    activation: Activation = "silu"
    n_experts: int = 0
    n_active_experts: int = 0
    norm_topk: bool = True
    window: int | None = None
    full_every: int = 0
    window_rope: Rope | None = None
    query_scalar: int | None = None
    stored: tuple[tuple[str, FloatType], ...] = ()

    def __hash__(self) -> int:
        """Without `stored`, which may name thousands of tensors: specs are keys of caches that each token asks."""
        return hash((self.arch, self.dim, self.hidden_dim, self.n_layers, self.n_heads, self.vocab_size, self.seq_len))

    @property
    def cut_values(self) -> int:
        """Values that a cut of columns must keep together, for all types of the weights."""
        return max(self.weight_type.cut_values, *(kind.cut_values for _, kind in self.stored), 1)

    @property
    def q_dim(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads together."""
        return self.n_kv_heads * self.head_dim

    @property
    def full_layers(self) -> range:
        """The layers that attend to all positions, where the others have a window."""
        return range(self.full_every - 1, self.n_layers, self.full_every) if self.full_every else range(0)

    def rope_of(self, layer: int) -> Rope:
        """The RoPE of a layer."""
        return self.rope if self.window_rope is None or layer in self.full_layers else self.window_rope

    def axis_width(self, axis: Axis) -> int:
        """Values along a named axis."""
        return {
            "embed": self.dim,
            "heads": self.q_dim,
            "kv_heads": self.kv_dim,
            "ffn": self.hidden_dim,
            "vocab": self.vocab_size,
            "head_dim": self.head_dim,
            "experts": self.n_experts,
            "one": 1,
        }[axis]

    def check(self) -> None:
        """Raise FormatError, naming the value, where the numbers cannot be a model."""
        limits = {
            "dim": 1 << 20,
            "hidden_dim": 1 << 22,
            "n_layers": 1 << 12,
            "n_heads": 1 << 14,
            "n_kv_heads": 1 << 14,
            "head_dim": MAX_HEAD_DIM,
            "vocab_size": 1 << 24,
            "seq_len": 1 << 24,
        }
        for name, largest in limits.items():
            value = getattr(self, name)
            if not 1 <= value <= largest:
                raise FormatError(f"{name} is {value}; expected 1 to {largest}")
        if self.n_heads % self.n_kv_heads:
            raise FormatError(f"{self.n_heads} heads cannot share {self.n_kv_heads} KV heads equally")
        if self.head_dim % 2:
            raise FormatError(f"head_dim is {self.head_dim}; RoPE rotates pairs and needs an even number")
        if not 0 <= self.n_experts <= 1 << 10:
            raise FormatError(f"n_experts is {self.n_experts}; expected 0 (none) to {1 << 10}")
        if self.n_layers * self.n_experts > 1 << 16:
            raise FormatError(f"{self.n_layers} layers of {self.n_experts} experts; expected at most {1 << 16} in all")
        least = min(1, self.n_experts)
        if not least <= self.n_active_experts <= self.n_experts:
            raise FormatError(f"n_active_experts is {self.n_active_experts}; expected {least} to {self.n_experts}")
        if self.window is not None and self.window < 1:
            raise FormatError(f"the sliding window is {self.window}; expected 1 or more")
        if not 0 < self.norm_eps < 1:
            raise FormatError(f"norm_epsilon is {self.norm_eps}; expected a small positive number")
        if self.full_every < 0:
            raise FormatError(f"one layer in {self.full_every} attends to all positions; expected 0 (none) or more")
        if self.query_scalar is not None and self.query_scalar < 1:
            raise FormatError(f"query_pre_attn_scalar is {self.query_scalar}; expected a positive number")
        for rope in (self.rope, self.window_rope or self.rope):
            rope.check(self.head_dim)
            if rope.layout != self.rope.layout:
                raise FormatError(f"layers with RoPE of {rope.layout} and of {self.rope.layout} layout; expected one")
        block = self.cut_values
        for name in ("dim", "q_dim", "hidden_dim"):
            if getattr(self, name) % block:
                raise FormatError(f"{name} is {getattr(self, name)}; expected a multiple of {block}")


def full_every(windowed: Sequence[bool]) -> int | None:
    """`ModelSpec.full_every` of layers that are each `windowed` or not; None where they follow no such rule."""
    full = [i for i, has_window in enumerate(windowed) if not has_window]
    period = full[0] + 1 if full else 0
    expected = range(period - 1, len(windowed), period) if period else range(0)
    return period if full == list(expected) else None


class TensorSpec(Struct, frozen=True):
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
