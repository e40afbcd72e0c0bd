"""Layouts that numba code shares with its callers, who must not import numba: weights, the pool of threads, jobs.

Two tiles of 16 rows make a pair, 32 outputs. In quantized types, both tiles' blocks of the same 32 columns lie
together, in whole cache lines; in the others, the 32 values of a column. K-quants have one f16 factor (or two) for 256
columns of a row: those of a pair lie before its 8 blocks of these columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dllama_zmq.spec import Sync

LANES = 16
X_BLOCK = 64
"""Bytes of one token's block of 32 quantized values: the 32, then what `XBlock` says."""
SCALES = 2 * LANES
"""Bytes of 16 f16 scales."""

AS_F32, AS_F16, AS_Q80, GATED_SILU, GATED_GELU = range(5)
"""How a product stores 32 sums (`ProductJob.epilogue`). The first three are the types of the bus too."""
WIRE_TYPES: dict[Sync, int] = {"f32": AS_F32, "f16": AS_F16, "q80": AS_Q80}


class PoolLayout(NamedTuple):
    """The pool of threads: each field's byte offset. Fields that different threads write are 128 bytes apart."""

    posted: int = 0
    done: int = 128
    kernel: int = 256
    job: int = 264
    n_items: int = 272
    chunk: int = 280
    share: int = 288
    stop: int = 384
    n_threads: int = 392
    pauses: int = 400
    yields: int = 408
    threads: int = 512
    """One ThreadLayout after another; the caller's thread is the first."""


class ThreadLayout(NamedTuple):
    """One thread of the pool: each field's byte offset."""

    ticket: int = 0
    asleep: int = 128
    """1 while it sleeps."""
    event_file: int = 136
    """Its eventfd."""
    written: int = 144
    """Memory for what is written to it."""
    read: int = 152
    """Memory for what is read from it."""


POOL, THREAD, THREAD_BYTES = PoolLayout(), ThreadLayout(), 256


class XBlock(NamedTuple):
    """What is in a block of quantized values behind the 32: each field's byte offset.

    The last fields (i32) are what sums of products begin at if the weights' numbers are larger than their meaning by a
    bias: the sum of the values times minus the bias.
    """

    scale: int = 32
    """f32."""
    scaled_sum: int = 36
    """The sum of the 32 values times the scale, f32."""
    minus_8: int = 40
    minus_16: int = 44
    minus_128: int = 48
    first_minus_32: int = 52
    """Of the first 16 values."""
    last_minus_32: int = 56
    """Of the last 16 values."""

    def start(self, bias: int, part: int) -> int | None:
        """The offset of what sums begin at; None for 0. part: which 16 values, for a bias of 32."""
        if bias == 32:
            return self.last_minus_32 if part else self.first_minus_32
        return {8: self.minus_8, 16: self.minus_16, 128: self.minus_128}.get(bias)


X = XBlock()


@dataclass(frozen=True, slots=True)
class PairBlock:
    """32 columns of a pair of tiles: the first's values, the second's, then their scales and offsets.

    bits: of a value. bias: what a value's number is above its meaning; 0 if it is signed or the type has offsets.
    scales: of the 32 columns of a row. group: how many blocks share f16 factors, by which their scales and offsets,
    integers of a byte, are multiplied; 1 if scales and offsets are f16 themselves.
    source_bytes: of a row's block as files have it.
    """

    bits: int
    bias: int
    source_bytes: int
    offsets: bool = False
    scales: int = 1
    group: int = 1

    @property
    def value_bytes(self) -> int:
        """Bytes of one tile's values."""
        return 64 * self.bits

    @property
    def scale_bytes(self) -> int:
        """Bytes of one tile's scales, one of each row."""
        return SCALES if self.group == 1 else LANES

    @property
    def scales_at(self) -> int:
        """Bytes from the block's first to the first tile's scales."""
        return 2 * self.value_bytes

    @property
    def next_at(self) -> int:
        """Bytes from a tile's scales to its scales of the other 16 columns, or to its offsets."""
        return 2 * self.scale_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return self.scales_at + self.next_at * (self.scales + self.offsets)

    @property
    def factor_bytes(self) -> int:
        """Bytes of the factors of a group: of both tiles' scales, then of their offsets."""
        return 0 if self.group == 1 else 2 * SCALES * (1 + self.offsets)

    @property
    def group_bytes(self) -> int:
        """Bytes of a group: its factors, then its blocks."""
        return self.factor_bytes + self.group * self.nbytes

    def pair_bytes(self, n_blocks: int) -> int:
        """Bytes of a pair of rows of `n_blocks`."""
        return -(-n_blocks // self.group) * self.group_bytes


BLOCKS = {
    "q40": PairBlock(4, 8, 18),
    "q41": PairBlock(4, 0, 20, offsets=True),
    "q50": PairBlock(5, 16, 22),
    "q51": PairBlock(5, 0, 24, offsets=True),
    "q80": PairBlock(8, 0, 34),
    "q4_k": PairBlock(4, 0, 144, offsets=True, group=8),
    "q5_k": PairBlock(5, 0, 176, offsets=True, group=8),
    "q6_k": PairBlock(6, 32, 210, scales=2, group=8),
}
"""The blocks of every quantized type."""
REPACKED_AS = {**{kind: kind for kind in BLOCKS}, "f16": "16", "bf16": "16", "f32": "32"}
"""The types of weights, and the name of the kernel that repacks each."""


class ProductJob(NamedTuple):
    """The arguments of `product_*` (products.py): rows of a matrix times all tokens."""

    pairs: int = 0
    """The first pair of tiles."""
    pair_bytes: int = 0
    x: int = 0
    """Tokens: f32, or as `quantize` lays them out."""
    x_stride: int = 0
    """Bytes from a token to the next, if they are f32."""
    out: int = 0
    out_stride: int = 0
    n_rows: int = 0
    n_columns: int = 0
    n_segments: int = 0
    n_tokens: int = 0
    epilogue: int = 0
    first_unit: int = 0
    """Units (blocks of 32 columns, or columns) of a pair before the first that is multiplied."""


class ExpertsPart(NamedTuple):
    """The rest of the arguments of `experts_*` (mixture.py), whose first are a ProductJob for one segment."""

    table: int = 0
    """The address of each use's pairs of tiles."""
    weights: int = 0
    n_chosen: int = 0
    """Experts of a token."""
    items_each: int = 0
    """Items of a use, or of a token."""
    n_segments: int = 0
    segment_units: int = 0


class QuantizeJob(NamedTuple):
    """The arguments of `quantize` (products.py)."""

    x: int = 0
    x_stride: int = 0
    out: int = 0
    n_columns: int = 0
    n_tokens: int = 0
    gain: int = 0
    """Of a norm that comes first; 0 for none."""
    eps: int = 0
    """Of that norm, as f32."""


class NormJob(NamedTuple):
    """The arguments of `rms_norm` (rows.py)."""

    x: int = 0
    x_stride: int = 0
    out: int = 0
    gain: int = 0
    width: int = 0
    eps: int = 0
    """As f32."""


class ReadJob(NamedTuple):
    """The arguments of `read_memory` (rows.py)."""

    source: int = 0
    item_bytes: int = 0
    sums: int = 0
    """64 bytes for each item."""


class RepackJob(NamedTuple):
    """The arguments of `repack_*` (repacking.py)."""

    pairs: int = 0
    """The first pair."""
    pair_bytes: int = 0
    tile: int = 0
    """The index of this matrix's first tile; two make a pair."""
    step: int = 0
    """Tiles from one of the matrix to its next."""
    source: int = 0
    """Row 0's first byte."""
    source_stride: int = 0
    n_rows: int = 0
    n_units: int = 0
    """Blocks (of quantized types) or columns of a row."""
    exponent: int = 0
    """Of floats: the bits that are all set in an infinity and in a NaN."""
    not_finite: int = 0
    """Not 0 afterwards if a value is infinite or NaN."""


class AttentionJob(NamedTuple):
    """The arguments of `store_kv_*` and `attend_*` (attention.py), for one layer."""

    keys: int = 0
    """Page 0 of the first KV head's keys."""
    values: int = 0
    key_head_bytes: int = 0
    """From a KV head's keys to the next one's."""
    value_head_bytes: int = 0
    head_dim: int = 0
    groups: int = 0
    """For each KV head, its first query head and the one after its last."""
    n_kv_heads: int = 0
    max_group: int = 0
    """Query heads of the largest group."""
    spans: int = 0
    """The table of the batch: one SpanRow after another."""
    n_spans: int = 0
    page_ids: int = 0
    """i32."""
    q: int = 0
    """The first row of the batch, as for new_keys, new_values and out."""
    q_stride: int = 0
    """Bytes from a row to the next."""
    new_keys: int = 0
    key_stride: int = 0
    new_values: int = 0
    value_stride: int = 0
    out: int = 0
    out_stride: int = 0
    scale: int = 0
    """Of scores, as f32."""
    window: int = 0
    """Positions that a token sees."""
    softcap: int = 0
    """As f32; 0 for none."""
    cos: int = 0
    """The cosines of all rows; 0 for no rotation."""
    sin: int = 0
    interleaved: int = 0
    """1 if pairs are adjacent values, 0 if they are half a head apart."""
    store_kv: int = 0
    """The addresses of both kernels."""
    attend: int = 0


class SpanRow(NamedTuple):
    """A row of `Batch.table`."""

    row: int = 0
    start: int = 0
    n_rows: int = 0
    first_id: int = 0


MAX_HEAD_DIM = 512
PAGE = 64
"""KV_PAGE of `kernels/batch.py`: machine code is made anew when a file of this folder changes, and only then."""
KV_ROWS = 8
"""Query heads that go over a KV head together, of one token or of several of a span."""


class SequenceHead(NamedTuple):
    """The beginning of a sequence of kernels (sequences.py); `n_calls` times a Call follow."""

    pool: int = 0
    n_calls: int = 0


class Call(NamedTuple):
    """One kernel of a sequence: run over `n_items` of `job`, `chunk` items at a time to a thread."""

    kernel: int = 0
    job: int = 0
    n_items: int = 0
    chunk: int = 0


MAX_SERIAL_RUNS = 512
"""Runs of 32 values that one thread adds up alone: other threads would come too late to help."""


class SumJob(NamedTuple):
    """The arguments of `add_up` (sums.py)."""

    parts: int = 0
    """`n_parts` addresses of partial sums as the bus carries them."""
    n_parts: int = 0
    """0: the values at `out` are written to `wire`."""
    wire: int = 0
    """Where the sum is written as the bus carries it; 0 for nowhere."""
    out: int = 0
    """Where the sum, as `wire` has it, is written as f32; 0 for nowhere."""
    wire_type: int = 0
    """AS_F32, AS_F16 or AS_Q80."""
