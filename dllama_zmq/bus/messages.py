"""The messages between root and workers, and their fields' types and bounds. `bus/PROTOCOL.md` is the text of it.

`codec.py` makes frames of them, and reads them.
"""

from __future__ import annotations

import re
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from dllama_zmq.spec import SYNC_FLOAT, Sync

PROTOCOL = 8
MAX_FRAME_BYTES = 64 * 1024 * 1024
"""ZMQ_MAXMSGSIZE of every socket that a peer can send arrays to: 64 tokens of a width of 2^18 in f32."""
MAX_PROBE_BYTES = 16 << 20
"""The most bytes of a probe, and of its answer."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
Big = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Endpoint = Annotated[str, msgspec.Meta(max_length=512)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
ArrayType = Literal["f32", "f16", "q80", "i32", "f64", "u8"]
Frame: TypeAlias = bytes | memoryview

_BLOCKS: dict[str, tuple[int, int]] = {name: (t.block_values, t.block_bytes) for name, t in SYNC_FLOAT.items()}
_BLOCKS |= {"i32": (1, 4), "f64": (1, 8), "u8": (1, 1)}


class ArrayHead(msgspec.Struct, frozen=True, array_like=True):
    """Describes the raw frame of the same index: `rows` x `columns` values of `type`."""

    type: ArrayType
    rows: Count
    columns: Count

    @property
    def nbytes(self) -> int:
        """Bytes that the frame must have."""
        block_values, block_bytes = _BLOCKS[self.type]
        if self.columns % block_values:
            raise ValueError(f"{self.columns} columns are not whole {self.type} blocks of {block_values}")
        return self.rows * (self.columns // block_values * block_bytes)


Heads = Annotated[list[ArrayHead], msgspec.Meta(max_length=4)]


class RowAsk(msgspec.Struct, frozen=True, array_like=True):
    """The ask of one row: its best `k` candidates (0: all logits), and log-sum-exps.

    temperature: that of the candidates' log-sum-exp (0: not taken). logprobs: that of all raw logits at 1 too.
    n_listed: number of this row's ids among the listed ids of the step. masked: the row has the next of its masks.
    """

    row: Count
    k: Count
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    logprobs: bool
    n_listed: Count
    masked: bool


Asks = Annotated[list[RowAsk], msgspec.Meta(max_length=4096)]
Offered = Annotated[list[tuple[Name, Sha256]], msgspec.Meta(min_length=1, max_length=4096)]
Needed = Annotated[list[tuple[Name, Big]], msgspec.Meta(min_length=1, max_length=4096)]
Again = Annotated[list[tuple[Count, Count]], msgspec.Meta(min_length=1, max_length=4096)]


def wire_name(class_name: str) -> str:
    """The kind of a message on the wire: `BeaconAck` is `beacon_ack`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


class Message(msgspec.Struct, frozen=True, array_like=True, tag=wire_name):
    """Base of all messages. Its kind on the wire is `wire_name` of the class name."""


class Kinds(dict[str, type[Message]]):
    """The messages that one direction of one link carries, by their name on the wire."""

    def __init__(self, *messages: type[Message]) -> None:
        super().__init__({wire_name(message.__name__): message for message in messages})
        self.decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(reduce(or_, messages))


# --- root to every worker, on PUB -----------------------------------------------------------------------------------


class Beacon(Message, frozen=True):
    """The root is alive, and this is its epoch. A loaded worker answers the first beacon of an epoch with BeaconAck."""

    epoch: Big


class Step(Message, frozen=True):
    """Run these rows: x (T, D) in the sync type, and page ids i32 (1, P): first those of the first span, and so on.

    `spans` are [start, count] and cover the rows in order; the pages of a span are those of its positions from 0 on.
    Answer `asks`, whose rows ascend. Their listed ids (i32) and then their masks (u8) follow, where there are any.
    """

    epoch: Big
    step: Big
    spans: Annotated[list[tuple[Count, Count]], msgspec.Meta(min_length=1, max_length=256)]
    asks: Asks
    arrays: Heads


class Sum(Message, frozen=True):
    """The root's message for one stage, (T, D) in the sync type.

    With two nodes it is the root's partial sum, to which the worker adds its own; with more it is the sum of all.
    """

    epoch: Big
    step: Big
    stage: Count
    arrays: Heads


class MoreCandidates(Message, frozen=True):
    """Answer each [row, k] with k candidates, as this stage; the step's own were too few."""

    epoch: Big
    step: Big
    stage: Count
    again: Again


class Bye(Message, frozen=True):
    """The root leaves on purpose. rejoin: wait for it to return and join again; else exit."""

    rejoin: bool
    reason: Text


# --- root to one worker, on ROUTER ----------------------------------------------------------------------------------


class Welcome(Message, frozen=True):
    """Answer to Join: your node number and name, and the addresses to use from now on.

    A host of * means the host at which you reached the root. If `replies` is another address than the present one,
    connect there and join again.
    """

    node: Count
    name: Name
    steps: Endpoint
    replies: Endpoint


class Refuse(Message, frozen=True):
    """Answer to Join: there is no place for you, and why. retry: a later Join may succeed."""

    reason: Text
    retry: bool


class Enrolled(Message, frozen=True):
    """Answer to Enroll: your key is admitted. `name`: the worker or client it is now; empty: any that is free."""

    name: Name


class Plan(Message, frozen=True):
    """What to load: the model's sizes, the number of nodes, and `pages` pages of KV cache.

    pages: no more than the worker's computer has memory for; steps use as many as the node with the fewest has.
    kv: the type in which keys and values are kept.
    """

    spec: dict[str, Any]
    nodes: Count
    sync: Sync
    kernels: Literal["auto", "simd", "numpy"]
    kv: Literal["f16", "f32"]
    pages: Count
    step_s: Seconds


class Offer(Message, frozen=True):
    """The next of this node's slices, in file order: each a tensor's name and the SHA-256 of the slice, in hex."""

    slices: Offered


class Weights(Message, frozen=True):
    """A piece of this node's slice of one tensor: its bytes from `offset` on (u8). Slices come in the order of Need."""

    tensor: Name
    offset: Big
    arrays: Heads


class Ping(Message, frozen=True):
    """The root waits for parts of `stage`. A node that lacks the input of its part answers Resend.

    Sending it fails at once if the connection is broken.
    """

    epoch: Big
    step: Big
    stage: Count


class Probe(Message, frozen=True):
    """Answer at once, between two steps, with Probed of this number and `answer_bytes` bytes.

    Its own bytes (u8, at most MAX_PROBE_BYTES), if there are any, mean nothing. One that asks for more is not answered.
    """

    number: Count
    answer_bytes: Count
    arrays: Heads


# --- worker to root, on DEALER --------------------------------------------------------------------------------------


class Join(Message, frozen=True):
    """A worker asks for work. `host` is equal for processes of one host; `name` may be empty.

    host_name: of its host, for people. free_bytes: memory available to it there, None if unknown.
    """

    name: Name
    host: Annotated[str, msgspec.Meta(max_length=128)]
    pid: Count
    version: Name
    host_name: Name
    threads: Count
    free_bytes: Big | None


class Enroll(Message, frozen=True):
    """Admit this public key (Z85), which connects next. Its sender has connected with the secret of a token.

    Answered with Enrolled or Refuse. A token's holder may say nothing else.
    """

    public: Name


class Credit(Message, frozen=True):
    """Send me this many more pieces of weights. The first one follows Plan; after it, the root offers slices."""

    pieces: Count


class Need(Message, frozen=True):
    """The offered slices that this worker lacks: each by name, and the first byte that is missing."""

    slices: Needed


class Preparing(Message, frozen=True):
    """This worker prepares: what it does, for people, and the percentage done.

    held_bytes: bytes of its weights in its memory.
    """

    doing: Name
    percent: Count
    held_bytes: Big


class Loaded(Message, frozen=True):
    """All weights are loaded: their bytes, from any source."""

    nbytes: Big


class BeaconAck(Message, frozen=True):
    """This worker has heard the Beacon of `epoch` on PUB."""

    epoch: Big


class Partial(Message, frozen=True):
    """This node's partial sum of one stage, (T, D) in the sync type."""

    epoch: Big
    step: Big
    stage: Count
    arrays: Heads


class Candidates(Message, frozen=True):
    """The end of a step, or the answer to MoreCandidates, for the R rows asked for.

    R = 0: no arrays. Else the rows' candidates, one row after another: ids i32 (1, n), logits f32 (1, m), and
    log-sum-exps f64 (R, 2). Seconds are of the whole step; paused_s: of compute_s, at least so long this node's thread
    had no core to run on.
    """

    epoch: Big
    step: Big
    stage: Count
    compute_s: Seconds
    paused_s: Seconds
    wait_s: Seconds
    arrays: Heads


class Fault(Message, frozen=True):
    """An exception ended this worker's part of the step."""

    epoch: Big
    step: Big
    text: Text


class Resend(Message, frozen=True):
    """Send again the input of `stage`: a Step, Sum or MoreCandidates that was lost. Answered by it, on ROUTER."""

    epoch: Big
    step: Big
    stage: Count


class Probed(Message, frozen=True):
    """The answer to the Probe of that number. clock_us: this worker's clock, in microseconds since 1970."""

    number: Count
    clock_us: Big
    arrays: Heads


TO_WORKER = Kinds(Beacon, Step, Sum, MoreCandidates, Bye, Welcome, Refuse, Enrolled, Plan, Offer, Weights, Ping, Probe)
TO_ROOT = Kinds(Join, Enroll, Credit, Need, Preparing, Loaded, BeaconAck, Partial, Candidates, Fault, Resend, Probed)
