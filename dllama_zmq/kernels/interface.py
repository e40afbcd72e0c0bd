"""What a back end offers. Arrays are float32 and C-contiguous unless said; letters as everywhere in the package:
T tokens, D width, H heads, K KV heads, S cached positions, Hd values of a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from dllama_zmq.quants import F32, BlockMatrix


class Linear(Protocol):
    """A matrix made ready for products."""

    def __call__(self, x: F32) -> F32:
        """x (T, columns) -> (T, rows): `x` times the matrix transposed.

        Quantized weights meet activations quantized to Q80: the integer sum of each block of 32 is exact, is scaled by
        the product of both scales in float32, and the blocks are added in the order that `Kernels.linear` states.
        F16 and F32 weights are multiplied in float32.
        """
        ...


class Kernels(Protocol):
    """One back end. Every method is pure but for the buffers it may keep; none of them knows what a model is."""

    name: str

    def linear(self, matrix: BlockMatrix, segments: int = 1) -> Linear:
        """Make `matrix` (rows, columns) ready.

        The columns are `segments` equal parts. Blocks are added one after another within a part, and the parts in
        a balanced tree (`tree_sum`). That makes a sum over all nodes the same bits however many nodes share it.
        """
        ...

    def rms_norm(self, x: F32, gain: F32, eps: float) -> F32:
        """Scale each row of `x` (T, D) to unit root-mean-square, then by `gain` (D,). Source: arXiv:1910.07467."""
        ...

    def rotate(self, x: F32, cos: F32, sin: F32, layout: Literal["interleaved", "half"]) -> F32:
        """Rotate the pairs of `x` (T, H, Hd) by the angles whose `cos` and `sin` are (T, Hd / 2)."""
        ...

    def attend(self, q: F32, keys: F32, values: F32, kv_of_head: Sequence[int]) -> F32:
        """Causal attention of the last T of S positions: q (T, H, Hd), keys and values (K, S, Hd) -> (T, H * Hd).

        Query head h reads KV head `kv_of_head[h]`; heads that share one are neighbours.
        """
        ...

    def silu_times(self, gate: F32, up: F32) -> F32:
        """silu(gate) * up, elementwise: the SwiGLU of arXiv:2002.05202."""
        ...
