"""The messages between clients and the root: the third link of `PROTOCOL.md`. No arrays here."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from dllama_zmq.bus.messages import Big, Count, Enroll, Kinds, Message, Name, Seconds, Text
from dllama_zmq.bus.prompts import AnyPrompt
from dllama_zmq.bus.text_messages import (
    Detokenize,
    Detokenized,
    Embed,
    Embedding,
    Links,
    LinksRequest,
    Model,
    ModelRequest,
    RequestId,
    Tokenize,
    Tokens,
)
from dllama_zmq.grammar import Grammar
from dllama_zmq.sampling import Sampling
from dllama_zmq.stop_strings import MAX_STOP_CHARACTERS, MAX_STOPS

MAX_ANSWERS = 16
Answers = Annotated[int, msgspec.Meta(ge=1, le=MAX_ANSWERS)]
Index = Annotated[int, msgspec.Meta(ge=0, le=MAX_ANSWERS - 1)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Stops = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]], msgspec.Meta(max_length=MAX_STOPS)
]
Number = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
Whole = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]


class StepStats(msgspec.Struct, frozen=True, array_like=True):
    """The figures of one step at the root: seconds in all and waiting, payload bytes sent and received.

    waited_for_s: seconds that each node that came last at some stage made the others wait.
    """

    wall_s: Seconds
    wait_s: Seconds
    sent_bytes: Big
    received_bytes: Big
    waited_for_s: dict[Name, Seconds]

    def __add__(self, other: StepStats) -> StepStats:
        """The figures of two steps together."""
        one, two = self.waited_for_s, other.waited_for_s
        return StepStats(
            self.wall_s + other.wall_s,
            self.wait_s + other.wait_s,
            self.sent_bytes + other.sent_bytes,
            self.received_bytes + other.received_bytes,
            {name: one.get(name, 0.0) + two.get(name, 0.0) for name in one | two},
        )


NO_STEPS = StepStats(0.0, 0.0, 0, 0, {})
"""To add to."""


# --- client to root -------------------------------------------------------------------------------------------------


class Generate(Message, frozen=True):
    """Continue `prompt`, up to the first of the strings `stop`. The client chooses `id`; every answer carries it.

    n: number of answers; that of index i has seed + i. specials: the text shows special tokens by name.
    """

    id: RequestId
    prompt: AnyPrompt
    max_tokens: Whole | None
    sampling: Sampling
    ignore_eos: bool
    stop: Stops
    grammar: Grammar | None = None
    n: Answers = 1
    specials: bool = False


class Cancel(Message, frozen=True):
    """Stop that request; answered with Done(reason="cancelled") of each answer that has not ended."""

    id: RequestId


class StatusRequest(Message, frozen=True):
    """Ask for the state of the cluster. Answered with Status."""

    id: RequestId


class Stop(Message, frozen=True):
    """Stop the cluster. Answered with Stopping."""

    id: RequestId


# --- root to client -------------------------------------------------------------------------------------------------


class Queued(Message, frozen=True):
    """The request waits behind `ahead` others, or for the reason in `note`. Repeated every second between steps.

    silence_s: longest time that a step of this cluster may take.
    """

    id: Big
    ahead: Count
    note: Text
    silence_s: Seconds


class Started(Message, frozen=True):
    """The answer begins. seed: the given one, or the one chosen for it. silence_s: as in Queued.

    prompt_end: how the prompt's text ends, as the template wrote it: the last 256 characters; "" for token ids.
    """

    id: Big
    prompt_tokens: Count
    seed: Seed
    silence_s: Seconds
    prompt_end: Text = ""


class Prefill(Message, frozen=True):
    """`done` prompt tokens of `total` are evaluated, the last `n_tokens` with these figures. cached_tokens: those of
    `done` that were found in the prefix cache.
    """

    id: Big
    done: Count
    total: Count
    n_tokens: Count
    cached_tokens: Count
    figures: StepStats


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """A token, its text or name, and the logarithm of its probability."""

    token: Count
    text: Text
    logprob: Number


class TokenText(Message, frozen=True):
    """One generated token, the text it completes, and the figures of its step (none for the first).

    logprobs: if asked for, that of the token, then those of the most likely tokens. index: of the answer.
    """

    id: Big
    token: Count
    text: Text
    figures: StepStats | None
    logprobs: list[Logprob]
    index: Index = 0


class Done(Message, frozen=True):
    """The answer `index` has ended; `text` was held back. The request ends with its last answer.

    stop: the stop string that ended the text, "" if none did.
    """

    id: Big
    reason: Literal["stop", "length", "cancelled"]
    text: Text
    index: Index = 0
    stop: Text = ""


class Error(Message, frozen=True):
    """The request ended in an error, which is of the class `kind` in errors.py."""

    id: Big
    kind: Name
    text: Text


class NodeStatus(msgspec.Struct, frozen=True):
    """One node, for people and tables. seconds: from joining until its weights were ready. doing, percent: what it does
    until then.

    address: the IP address of its connection; empty over ipc.
    kept_bytes: bytes of its weights that were not sent.
    memory_bytes: what its process will need at most. free_bytes: memory that its host had free when it joined (the
    root's: now), None if that is not known. round_trip_s: of the TCP connection, as the kernel estimates it; None
    over ipc. version: of its program, "" if it is absent.
    """

    name: str
    state: str
    reason: str
    host: str
    address: str
    pid: int
    threads: int
    memory_bytes: int
    free_bytes: int | None
    weight_bytes: int
    kv_bytes: int
    sent_bytes: int = 0
    kept_bytes: int = 0
    total_bytes: int = 0
    seconds: float = 0.0
    doing: str = ""
    percent: int = 0
    round_trip_s: float | None = None
    version: str = ""


class NodeTimes(msgspec.Struct):
    """Seconds of one node in some steps: computing, waiting for others, and making the others wait.

    waited_for_s: it came last, beyond what messages usually take. Parts of that: paused_s: its program did not run when
    it had to compute; messages_s: its message came late, though it had computed; the rest: it computed longer.
    """

    compute_s: float = 0.0
    wait_s: float = 0.0
    waited_for_s: float = 0.0
    paused_s: float = 0.0
    messages_s: float = 0.0

    def add(self, other: NodeTimes) -> None:
        """Add the seconds of other steps."""
        self.compute_s += other.compute_s
        self.wait_s += other.wait_s
        self.waited_for_s += other.waited_for_s
        self.paused_s += other.paused_s
        self.messages_s += other.messages_s


class PhaseTimes(msgspec.Struct, frozen=True):
    """The last steps of one phase: their number, tokens and seconds, and the seconds of each node.

    slowest: the node that the others waited for, "" if no node stands out; share: its part of all waiting, 0 to 1.
    """

    steps: int
    tokens: int
    wall_s: float
    slowest: str
    share: float
    nodes: dict[str, NodeTimes]


class TrafficRow(msgspec.Struct, frozen=True):
    """Bytes that the root sent to one worker or received from it, and the bytes that the plan predicts."""

    node: str
    phase: str
    direction: str
    kind: str
    messages: int
    payload_bytes: int
    wire_bytes: int
    predicted_payload_bytes: int
    predicted_wire_bytes: int


class RequestStatus(msgspec.Struct, frozen=True):
    """A running or waiting request: its tokens so far, seconds since it arrived, and tokens/s of its answer.

    cached_tokens: prompt tokens found in the prefix cache.
    """

    state: Literal["running", "waiting"]
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    seconds: float
    tokens_per_s: float


class KVStatus(msgspec.Struct, frozen=True):
    """The KV cache: pages of `page_positions` positions each.

    cached: pages that no request uses and that are kept for later prompts with the same beginning.
    prompt_tokens: of all prompts so far. cached_tokens: those of them found in the prefix cache.
    preemptions: how often a request had to give up its pages for an older one, or for the first of another client.
    """

    page_positions: int
    pages: int
    in_use: int
    cached: int
    prompt_tokens: int
    cached_tokens: int
    preemptions: int


class Status(Message, frozen=True):
    """The state of a cluster.

    oversubscribed: the root's computer has fewer cores than its nodes have threads. None of them is named as slow.
    recent: by phase, the last 10 to 20 s of steps. api: the URL of its API server; empty: it has none.
    security: curve, none (an open bus) or local (no network reaches it). refused: connections that were not let in,
    by the address they came from.
    """

    id: Big
    name: Name
    version: Name
    state: Literal["forming", "ready"]
    note: Text
    pid: Count
    uptime_s: Seconds
    model: Text
    api: Text
    security: Name
    sync: Name
    kernels: Name
    seq_len: Count
    active: Count
    queued: Count
    requests: list[RequestStatus]
    kv: KVStatus
    oversubscribed: bool
    steps: dict[str, int]
    tokens: dict[str, int]
    sampled: dict[str, int]
    refused: dict[str, int]
    nodes: list[NodeStatus]
    recent: dict[str, PhaseTimes]
    traffic: list[TrafficRow]


class Stopping(Message, frozen=True):
    """The cluster is going down."""

    id: Big


FROM_CLIENT = Kinds(
    Generate, Cancel, StatusRequest, Stop, Tokenize, Detokenize, ModelRequest, Embed, Enroll, LinksRequest
)
TO_CLIENT = Kinds(
    Queued, Started, Prefill, TokenText, Done, Error, Status, Stopping, Tokens, Detokenized, Model, Embedding, Links
)
