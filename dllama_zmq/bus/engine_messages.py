"""The messages between the front and the engine of one root, two processes of one computer: token ids, never text.

They are msgpack over a PAIR of ipc sockets (inproc in tests), in order in each direction. Both ends are of one version,
so they carry no protocol number. The sockets have no bound, but their contents have: while the engine is in a step, the
front sends at most `max_sequences` requests and withdraws them (see Withdrawn). While the front is stopped, the engine
ends the requests that it has, which takes 0.2 KB for each step of 16, and gets no others.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from dllama_zmq.bus.client_messages import Error, Status, StatusRequest, StepStats, Stop
from dllama_zmq.bus.text_messages import Links, LinksRequest, Model
from dllama_zmq.sampling import Sampling


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# --- front to engine ------------------------------------------------------------------------------------------------


class Listening(_Message, frozen=True):
    """The first message: the front listens to clients, or why it cannot."""

    error: str


class Submit(_Message, frozen=True):
    """Generate what follows `tokens`. `id` is the front's own; `client`: prompts of different clients take turns.

    stop_ids: end the answer and are not part of it. n_ids: only ids below it are generated. grammar: the answer is a
    sentence of it, as the front has read it.
    """

    id: int
    client: bytes
    tokens: list[int]
    max_tokens: int | None
    sampling: Sampling
    stop_ids: list[int]
    n_ids: int
    grammar: str = ""


class SubmitEmbed(_Message, frozen=True):
    """Evaluate `tokens`; the last answer is Embedded. `id` and `client` as in Submit."""

    id: int
    client: bytes
    tokens: list[int]


class Withdraw(_Message, frozen=True):
    """Forget that request; answered with Withdrawn between two steps, and nothing more is said of it."""

    id: int


# --- engine to front ------------------------------------------------------------------------------------------------


class Facts(_Message, frozen=True):
    """The first message: the facts that the front needs to answer clients.

    endpoints: where it listens to them. silence_s: how long a step may take. model: without what its tokenizer knows.
    """

    endpoints: list[str]
    max_sequences: int
    silence_s: float
    model: Model


class Readiness(_Message, frozen=True):
    """Whether every node is ready, else why not. Sent on every change, and once a second while it forms.

    patience_s: how long a request waits for nodes that are not ready.
    """

    ready: bool
    note: str
    patience_s: float


class PromptProgress(msgspec.Struct, frozen=True, array_like=True):
    """`done` of a prompt's `total` tokens are evaluated, `n_tokens` of them in this step.

    n_cached: of these, tokens whose keys and values were there already.
    """

    id: int
    done: int
    total: int
    n_tokens: int
    n_cached: int


class Sampled(msgspec.Struct, frozen=True, array_like=True):
    """One generated token. logprobs: of this token and then of the most likely ones, where they were asked for."""

    id: int
    token: int
    logprobs: list[tuple[int, float]]


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """A request has its last token."""

    id: int
    reason: Literal["stop", "length"]


class Stepped(_Message, frozen=True):
    """The results of one step."""

    figures: StepStats
    prompts: list[PromptProgress]
    sampled: list[Sampled]
    ended: list[Ended]


class Embedded(_Message, frozen=True):
    """A request of SubmitEmbed has ended: the mean of its hidden states, as a vector of length 1."""

    id: int
    values: list[float]


class Withdrawn(_Message, frozen=True):
    """The request of a Withdraw has left. Until then the front sends no other in its place."""

    id: int


class GoingDown(_Message, frozen=True):
    """The engine has ended, and why, for clients that wait for answers."""

    why: str


ToEngine: TypeAlias = Listening | Submit | SubmitEmbed | Withdraw | StatusRequest | LinksRequest | Stop
"""A client's question about the cluster is passed on as it came; it is answered between two steps."""
ToFront: TypeAlias = Facts | Readiness | Stepped | Embedded | Error | Withdrawn | Status | Links | GoingDown
"""An Error has the front's own id of its request. Status and Links have the id 0, and a Status no requests: the front
adds them, for each client that has asked."""

TO_ENGINE: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
TO_FRONT: msgspec.msgpack.Decoder[ToFront] = msgspec.msgpack.Decoder(ToFront)
ENCODER = msgspec.msgpack.Encoder()
