"""What numba code and its callers, who must not import numba, both know, as numbers: how weights lie, what becomes of
sums, how the pool of threads lies, and where the arguments of jobs stand.

Two tiles of 16 rows make a pair, 32 outputs. Of quantized types, both tiles' blocks of the same 32 columns lie
together, in whole cache lines; of the others, the 32 values of a column. Whatever the type, a part of the columns is a
part of a pair's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

LANES = 16
X_BLOCK = 40
"""Bytes of one token's block of 32 quantized values: the 32, the scale (f32), the sum of the 32 (i32)."""
SCALES = 2 * LANES
"""Bytes of 16 f16 scales."""

AS_F32, AS_F16, AS_Q80, GATED, GATED_GELU = range(5)
"""What becomes of 32 sums of a product; the first three are the forms of what crosses the bus too."""

# The pool, in bytes; what different threads write is 128 bytes apart.
POSTED, DONE, KERNEL, JOB, N_ITEMS, CHUNK, SHARE, STOP, N_THREADS, PAUSES, YIELDS = (
    0, 128, 256, 264, 272, 280, 288, 384, 392, 400, 408,
)  # fmt: skip
THREADS, THREAD_BYTES = 512, 256
TICKET, ASLEEP, EVENT_FILE, WRITTEN, READ = 0, 128, 136, 144, 152
"""Of each thread, the caller's first: its ticket; 1 while it sleeps; its eventfd; room for what is written and read."""


@dataclass(frozen=True, slots=True)
class PairBlock:
    """32 columns of a pair of tiles: the first's values, the second's, 16 f16 scales of each, 16 f16 offsets of each
    where the type has them.

    value_bytes: of one tile's values. source_bytes: of a row's block as files have it, its values at `source_values`.
    """

    value_bytes: int
    offsets: bool
    source_bytes: int

    @property
    def nibbles(self) -> bool:
        """Two values share a byte."""
        return self.value_bytes == 256

    @property
    def scales_at(self) -> int:
        """Bytes from the block's first to the first tile's scales."""
        return 2 * self.value_bytes

    @property
    def offsets_at(self) -> int:
        """Bytes from a tile's scales to its offsets."""
        return 2 * SCALES

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return self.scales_at + 2 * SCALES * (2 if self.offsets else 1)

    @property
    def source_values(self) -> int:
        """Bytes before the values in a row's block: its scale, and its offset if it has one."""
        return 4 if self.offsets else 2


Q40 = PairBlock(256, False, 18)
Q41 = PairBlock(256, True, 20)
Q80 = PairBlock(512, False, 34)


# A product's job and `quantize`'s (products.py), in bytes. GAIN: of a norm that comes first, in `quantize` alone, 0 for
# none; EPS, f32: its epsilon.
PAIRS, PAIR_BYTES, X, X_STRIDE, OUT, OUT_STRIDE, N_ROWS, N_COLUMNS, N_SEGMENTS, N_TOKENS, FORM = range(0, 88, 8)
GAIN, EPS = 88, 96
QUANTIZE_FIELDS = 13
# `rms_norm`'s (rows.py). EPS: as f32.
NORM_X, NORM_X_STRIDE, NORM_OUT, NORM_GAIN, NORM_WIDTH, NORM_EPS = range(0, 48, 8)

# Attention's (attention.py), of one layer and slot: KEYS, VALUES of its first KV head, HEAD_BYTES of each to the next
# one's. GROUPS: for each KV head, its first query head and the one after its last; GROUP_ITEMS items of up to 8 rows.
# Q, NEW_KEYS, NEW_VALUES, OUT: of the run's first token, STRIDE bytes to its next. SCALE, f32: of scores. WINDOW:
# positions that a token sees. SOFTCAP, f32: 0 for none. COS, SIN: of the run's tokens, COS 0 for no rotation;
# NEIGHBOURS: 1 where pairs are, 0 where they lie half a head apart. TAKE_IN, ATTEND: addresses of those two kernels.
(
    KV_KEYS, KV_VALUES, KV_KEY_HEAD_BYTES, KV_VALUE_HEAD_BYTES, KV_HEAD_DIM, KV_GROUPS, KV_GROUP_ITEMS, KV_START,
    KV_N_TOKENS, KV_Q, KV_Q_STRIDE, KV_NEW_KEYS, KV_KEY_STRIDE, KV_NEW_VALUES, KV_VALUE_STRIDE, KV_OUT, KV_OUT_STRIDE,
    KV_SCALE, KV_WINDOW, KV_SOFTCAP, KV_COS, KV_SIN, KV_NEIGHBOURS, KV_TAKE_IN, KV_ATTEND,
) = range(0, 200, 8)  # fmt: skip
MOST_HEAD_DIM = 512
KV_ROWS = 8
"""Query heads that go over a KV head together, of one token or of several."""

# A chain of jobs (chaining.py), in bytes: the pool, how many links it has, and the links: LINK_KERNEL over LINK_ITEMS
# of LINK_JOB, LINK_CHUNK at a time.
CHAIN_POOL, N_LINKS, LINKS = 0, 8, 16
LINK_KERNEL, LINK_JOB, LINK_ITEMS, LINK_CHUNK = range(0, 32, 8)
LINK_BYTES = 32

MAX_SERIAL_RUNS = 512
"""Runs of 32 values that one thread adds up alone: other threads would come too late to help."""


class SumJob(NamedTuple):
    """The arguments of `add_up` (wire.py)."""

    parts: int = 0
    """`n_parts` addresses of partial sums as the bus carries them."""
    n_parts: int = 0
    """0: the values at `out` are written to `wire`."""
    wire: int = 0
    """Where the sum is written as the bus carries it; 0 for nowhere."""
    out: int = 0
    """Where the sum, as `wire` has it, is written as f32; 0 for nowhere."""
    form: int = 0
    """AS_F32, AS_F16 or AS_Q80: how the bus carries it."""
