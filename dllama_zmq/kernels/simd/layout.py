"""What numba code and its callers, who must not import numba, both know, as numbers: how weights lie, what becomes of
sums, how the pool of threads lies, and where the arguments of jobs stand.

Two tiles of 16 rows make a pair, 32 outputs. Of quantized types, both tiles' blocks of the same 32 columns lie
together, in whole cache lines; of the others, the 32 values of a column. Whatever the type, a part of the columns is a
part of a pair's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

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

# Adding up what crosses the bus (wire.py), in bytes. PARTS: N_PARTS addresses of runs as the wire has them (FORM).
# WIRE: where their sum goes in that form, 0 for nowhere. OUT: where what WIRE says goes as f32, 0 for nowhere.
# N_PARTS 0: what is at OUT goes to WIRE.
ADD_PARTS, ADD_N_PARTS, ADD_WIRE, ADD_OUT, ADD_FORM = range(0, 40, 8)
ALONE_RUNS = 512
"""Up to so many runs are added up by one thread: the others would come too late."""

# A trade (trade.py), in bytes: libzmq's functions; what is sent and to which socket; what is awaited and from which;
# the outcome. PEERS: for each, 8 bytes each of the address and length of its identity (length 0: frames come without
# one), of where its part goes, and of whether it has come. ADD: the kernel that is run over ADD_ITEMS of ADD_JOB when
# all have come, 0 for none. LATE: send only then. LAST: the peer whose part came last, as its number in PEERS.
(
    SEND, INIT, RECEIVE, CLOSE, DATA, SIZE, MORE, TO, HEAD, HEAD_BYTES, BODY, BODY_BYTES, FROM, EXPECTED,
    EXPECTED_BYTES, PART_BYTES, PEERS, N_PEERS, N_LEFT, FRAMES, N_FRAMES, SPIN_NS, WAITED_NS, STATUS, ADD, ADD_JOB,
    ADD_ITEMS, LATE, LAST, BUSY_NS,
) = range(0, 240, 8)  # fmt: skip
PEER_BYTES = 32
FRAME_BYTES, MOST_FRAMES = 64, 4
"""zmq_msg_t, and how many frames of a message are taken at once: identity, header and array are three."""
ALL_HERE, TIME_IS_UP, OTHER = range(3)
"""How a trade ends; OTHER: N_FRAMES frames of a message that is not awaited are in FRAMES, open."""
