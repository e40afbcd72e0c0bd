"""What a back end offers. Arrays are float32 and C-contiguous unless said; letters as everywhere in the package:
T tokens, D width, H heads, K KV heads, Hd values of a head.

Returned arrays are pooled: the memory is used again as soon as the caller drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dllama_zmq.kernels.batch import Batch
from dllama_zmq.kernels.simd.job import Job
from dllama_zmq.quants import F32, U8, BlockMatrix
from dllama_zmq.spec import Activation, Sync

KVType = Literal["f16", "f32"]
"""The type of keys and values in the cache."""


class Norm(Struct, frozen=True, eq=False):
    """`Kernels.rms_norm` of a product's input, with this gain (D,) and epsilon."""

    gain: F32
    eps: float


class Reduction(Struct, frozen=True):
    """How a node computes its part of a sum over all nodes. For `segments` and `wire` see `Kernels.linear`."""

    segments: int = 1
    wire: Sync | None = None


class Linear(Protocol):
    """A matrix, or several with the same input, made ready for products; with a norm, x is normed first."""

    def __call__(self, x: F32, /, then: Linear | None = None) -> Any:
        """x (T, columns) -> (T, rows): `x` times the matrix transposed. With several matrices: a list of such arrays,
        whose rows may have gaps between them.

        then: return that product of the result instead (of one matrix): the same bits as two calls, sooner.

        Quantized weights are multiplied by activations quantized to Q80. Of each 32 values (of Q6_K: 16, which have
        one scale) the integer sum is exact, and is scaled by the product of both scales in float32. Where the type has
        offsets, the offset times the sum of the activations is added. Blocks are added in the order that
        `Kernels.linear` states. F32, F16 and BF16 weights are multiplied in float32.
        """
        ...


class Experts(Protocol):
    """The experts of one layer, made ready."""

    def __call__(self, x: F32, chosen: npt.NDArray[np.int64], weights: F32, /) -> F32:
        """x (T, columns), each token's experts `chosen` (T, k), ascending, and their weights (T, k) -> (T, rows).

        An expert's result is down(weight * gated(x)). Within a segment the experts are added one after another in the
        order of `chosen`, then the segments as in `Kernels.linear`: a sum over all nodes has the same bits on any
        number of nodes.
        """
        ...


class Rotation(Struct, frozen=True, eq=False):
    """The angles of each row of a batch: their cos and sin (T, Hd / 2), of a head's pair after pair.

    layout: `interleaved` pairs values (2i, 2i + 1) of a head, `half` (i, i + Hd / 2).
    """

    cos: F32
    sin: F32
    layout: Literal["interleaved", "half"]


class CacheSpec(Struct, frozen=True):
    """A KV cache: room for `n_pages` pages of keys and values, and how they are attended over.

    Query head h reads KV head `kv_of_head[h]`; heads that share one are neighbours. window: a token sees the last
    `window` positions, its own included, but all of them in the layers `full_layers`. softcap: a score s counts as
    softcap * tanh(s / softcap). scale: what products of queries and keys are multiplied by to be scores; None:
    1 / sqrt(head_dim).
    """

    n_layers: int
    n_pages: int
    n_kv_heads: int
    head_dim: int
    kv_of_head: Sequence[int]
    kv_type: KVType
    window: int | None = None
    softcap: float | None = None
    full_layers: Sequence[int] = ()
    scale: float | None = None

    @property
    def score_scale(self) -> float:
        """`scale`, or what it is where it is not given."""
        return 1 / self.head_dim**0.5 if self.scale is None else self.scale

    def window_of(self, layer: int) -> int | None:
        """How many positions a token sees in a layer; None: all."""
        return None if layer in self.full_layers else self.window


class KVCache(Protocol):
    """The keys and values of one node's heads, in pages. Memory is taken as pages are written."""

    def attend(
        self,
        layer: int,
        batch: Batch,
        q: F32,
        k: F32,
        v: F32,
        rotation: Rotation | None = None,
        then: Linear | None = None,
    ) -> Any:
        """Causal attention of queries q (T, H * Hd) -> (T, H * Hd), each span over its own sequence. First q and the
        keys k (T, K * Hd) are rotated, in place, and k and the values v (T, K * Hd) stored in the spans' pages.

        The ids of pages are below `n_pages`; no two spans write to one page. Rows need not lie close together.
        then: that product of the result instead, as in `Linear`.
        """
        ...


class Native(Protocol):
    """What a compiled back end offers to compiled code of other packages. Kernels are given by name."""

    def entry(self, kernel: str, n_args: int) -> Callable[..., None]:
        """A kernel as a function of `n_args` integers."""
        ...

    def parallel_for(self, kernel: str, job: Job, n_items: int, chunk: int = 1) -> None:
        """Run a kernel over `n_items` on all threads, `chunk` items at a time."""
        ...

    def array(self, n_rows: int, width: int, dtype: Any = np.float32) -> tuple[Any, int]:
        """An array (n_rows, width) that nobody else holds, and its address."""
        ...

    def sum_kernel(self, sync: Sync, parts: int, n_parts: int) -> tuple[int, Job]:
        """The address of the kernel of `Kernels.add_up`, and a job that adds the parts listed at address `parts`."""
        ...


class Kernels(Protocol):
    """One back end. None of its methods knows what a model is; one thread calls them.

    `linear`, `gated` and `experts` raise FormatError for an unchecked matrix that has an infinity or a NaN.
    """

    name: str

    @property
    def native(self) -> Native | None:
        """None if this back end is not compiled."""
        ...

    def linear(
        self, *matrices: BlockMatrix, segments: int = 1, norm: Norm | None = None, wire: Sync | None = None
    ) -> Linear:
        """Make matrices (rows, columns) of one width ready, as one product.

        The columns are `segments` equal parts. Blocks of 32 values (of Q6_K: of 16) are added one after another within
        a part, the parts in a balanced tree (`tree_sum`). So a sum over all nodes has the same bits on any number of
        nodes. A matrix, and a part, may begin and end within a block of 256.
        norm: the product has the same bits as `rms_norm` followed by the product without it.
        wire: the result (of one matrix) is as `encode` returns it for this type: (T, bytes of its rows).
        """
        ...

    def gated(
        self, gate: BlockMatrix, up: BlockMatrix, activation: Activation = "silu", norm: Norm | None = None
    ) -> Linear:
        """activation(gate x) * (up x) as one product: the SwiGLU or GEGLU of arXiv:2002.05202, GELU by its tanh
        formula. norm: as in `linear`."""
        ...

    def experts(
        self,
        experts: Iterable[tuple[BlockMatrix, BlockMatrix, BlockMatrix]],
        segments: int = 1,
        activation: Activation = "silu",
    ) -> Experts:
        """Make the experts of a layer ready: the gate, up (F, D) and down (D, F) of each, read one after another.

        `segments`: equal parts of the columns of down, as in `linear`.
        """
        ...

    def kv_cache(self, spec: CacheSpec) -> KVCache:
        """An empty cache."""
        ...

    def rms_norm(self, x: F32, gain: F32, eps: float) -> F32:
        """Scale each row of `x` (T, D) to unit root-mean-square, then by `gain` (D,). Source: arXiv:1910.07467."""
        ...

    def encode(self, x: F32, sync: Sync) -> U8:
        """x (T, D) in a type of the bus: (T, bytes of D values)."""
        ...

    def add_up(self, parts: Sequence[U8], sync: Sync, encoded: bool) -> tuple[U8 | None, F32]:
        """The sum of parts in a type of the bus, in `tree_sum`'s order -> (in that type, and that as float32).

        If not `encoded`, the first is None, and the second is the sum itself, which was never rounded to that type.
        """
        ...
