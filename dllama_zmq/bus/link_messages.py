"""The messages that measure the link between the root and each worker, and those by which a client asks for it."""

from __future__ import annotations

import msgspec

from dllama_zmq.bus.messages import Big, Count, Heads, Message
from dllama_zmq.bus.text_messages import RequestId

MAX_PROBE_BYTES = 16 << 20
"""The most bytes of a probe, and of its answer."""


# --- root to one worker, on ROUTER, and back ------------------------------------------------------------------------


class Probe(Message, frozen=True):
    """Answer at once, between two steps, with Probed of this number and `answer_bytes` bytes.

    Its own bytes (u8, at most MAX_PROBE_BYTES), if there are any, mean nothing. One that asks for more is not answered.
    """

    number: Count
    answer_bytes: Count
    arrays: Heads


class Probed(Message, frozen=True):
    """The answer to the Probe of that number. clock_us: this worker's clock, in microseconds since 1970."""

    number: Count
    clock_us: Big
    arrays: Heads


# --- client to root, and back ---------------------------------------------------------------------------------------


class LinksRequest(Message, frozen=True):
    """How fast are the links to the workers now? Answered with Links, when each has been measured between two steps."""

    id: RequestId


class LinkStatus(msgspec.Struct, frozen=True):
    """The link between the root and one worker, as messages of the bus find it. None: it was not measured.

    round_trip_s: the median of some messages without content, both programs' part included. to_bytes_per_s,
    from_bytes_per_s: to the worker, and from it. clock_s: how far its clock is ahead of the root's, to half a round
    trip. note: why something was not measured.
    """

    name: str
    round_trip_s: float | None = None
    to_bytes_per_s: float | None = None
    from_bytes_per_s: float | None = None
    clock_s: float | None = None
    note: str = ""


class Links(Message, frozen=True):
    """Every worker's link, in node order. clock_us: the root's clock, in microseconds since 1970."""

    id: Big
    clock_us: Big
    links: list[LinkStatus]
