"""How the arguments of the compiled exchange lie in memory: int64 fields. Knows no numba."""

from __future__ import annotations

from typing import NamedTuple


class ExchangeJob(NamedTuple):
    """The first seven fields are the addresses of libzmq's functions of these names."""

    zmq_send: int = 0
    zmq_msg_init: int = 0
    zmq_msg_recv: int = 0
    zmq_msg_close: int = 0
    zmq_msg_data: int = 0
    zmq_msg_size: int = 0
    zmq_msg_more: int = 0
    to: int = 0
    """The socket that `header` and `body` are sent to."""
    header: int = 0
    header_bytes: int = 0
    body: int = 0
    body_bytes: int = 0
    publish_sum: int = 0
    """1: they are sent when `add_kernel` has written `body`; 0: at once."""
    source: int = 0
    """The socket that the parts come from; 0 to receive nothing."""
    expected: int = 0
    """The header of every part."""
    expected_bytes: int = 0
    part_bytes: int = 0
    peers: int = 0
    """`n_peers` times the fields of `Peer`."""
    n_peers: int = 0
    frames: int = 0
    """Memory for MAX_FRAMES times zmq_msg_t. If `status` is UNEXPECTED, `n_frames` of them are open."""
    n_frames: int = 0
    spin_ns: int = 0
    """How long parts are waited for."""
    add_kernel: int = 0
    """Called over `add_items` of `add_job` when all parts are here; 0 for none."""
    add_job: int = 0
    add_items: int = 0
    status: int = 0
    last: int = 0
    """The index of the peer whose part came last."""
    waited_ns: int = 0
    busy_ns: int = 0
    """Time spent sending and adding."""


class Peer(NamedTuple):
    """One peer of an exchange."""

    identity: int = 0
    """Of a peer at a ROUTER: the address of its identity."""
    identity_bytes: int = 0
    """0: frames come without an identity."""
    part: int = 0
    """Where its part is written."""
    received: int = 0
    """1 when it is."""


PEER_FIELDS = len(Peer._fields)
FRAME_BYTES = 64
"""sizeof(zmq_msg_t)."""
MAX_FRAMES = 4
"""Frames of a message that are received at once: identity, header and array are three."""
COMPLETE, TIMED_OUT, UNEXPECTED = range(3)
"""`ExchangeJob.status`. UNEXPECTED: another message came than the parts that are awaited."""
