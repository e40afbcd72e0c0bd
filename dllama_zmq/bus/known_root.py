"""This computer's end of a connection to a root that it knows, or that it gets to know by a token."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing

import zmq

from dllama_zmq.bus import sockets
from dllama_zmq.bus.addresses import host_of, resolve, why_no_answer
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.messages import Enroll, Enrolled, Kinds, Refuse
from dllama_zmq.bus.security import USED, Peer
from dllama_zmq.cluster import is_loopback
from dllama_zmq.errors import ProtocolError, RootLost, TokenError, TrustError
from dllama_zmq.node_config import Security
from dllama_zmq.trust import Invitation, Known, Role, find, own_key, remember
from dllama_zmq.trust.known import changed

logger = logging.getLogger(__name__)

ENROL_S = 5.0
_AGAIN_S = 0.5
_PAUSE_S = 2.0
TO_HOLDER = Kinds(Enrolled, Refuse)
"""The root's answer to the holder of a token."""


def peer_for(endpoint: str, security: Security, role: Role) -> Peer | None:
    """The keys for the root at `endpoint`; None for an open bus, and for one of this computer that is not known.

    Raises TrustError if that root's key is not known, BusError for a name that this computer does not know.
    """
    if security == "none" or not endpoint.startswith("tcp://"):
        return None
    known = known_at(endpoint)
    if known is None and is_loopback(host_of(endpoint)):
        return None
    if known is None:
        command = "token" if role is Role.worker else "token --client"
        raise TrustError(
            f"this computer does not know the key of the root at {endpoint}: make a token there (dllama-zmq {command}) "
            "and paste its line here; if `security: none` is in that cluster's file, give --security none here"
        )
    return Peer(own_key(), known.public)


def known_at(endpoint: str) -> Known | None:
    """The root that is known at an endpoint, or at an address of its host's name. Raises BusError, TrustError."""
    return next((known for known in map(find, (endpoint, *resolve(endpoint))) if known is not None), None)


def join_by(
    context: zmq.Context[zmq.Socket[bytes]], invitation: Invitation, wait_s: float, again: bool = False
) -> tuple[str, Peer, str]:
    """Have the root admit this computer's own key by a token, and remember the root.

    Returns the root's address at which that worked, the keys for it, and the name that the key is admitted as. again: a
    token that was used is no error where its root is known already, for supervisors start the same command again.

    Raises TokenError if the root does not take the token, TrustError where another root is known at its address,
    RootLost if none of its addresses answers within `wait_s`.
    """
    is_worker = invitation.role is Role.worker
    addresses, others = invitation.replies, invitation.clients
    if not is_worker:
        addresses, others = others, addresses
    before = None
    for address in addresses:
        if (known := find(address)) is not None and known.public != invitation.root:
            raise changed(address, known)
        before = known or before
    keys = own_key()
    address, name = _enrol(context, addresses, invitation, keys.public, wait_s)
    if isinstance(name, TokenError):
        if before is None or not again:
            raise name
        logger.warning("%s; this computer knows the root already, and continues", name)
        return address, Peer(keys, invitation.root), before.name
    remember(addresses, invitation.root, name)
    unknown = [other for other in others if find(other) is None]
    if unknown:
        remember(unknown, invitation.root)
    return address, Peer(keys, invitation.root), name


def enrol(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, token: Peer, public: str, wait_s: float = ENROL_S
) -> str:
    """Have the root at `endpoint` admit the key `public`, and return the name that it is admitted as; "" for any.

    endpoint: for workers; that for clients admits clients alone. token: the token's own key pair, and the root's key.
    Raises TokenError if the root does not take the token, RootLost if it cannot be reached within `wait_s`.
    """
    until = time.monotonic() + wait_s
    with closing(sockets.Connection(context, endpoint, token)) as connection:
        if not connection.up(wait_s):
            if connection.monitor.not_admitted:
                raise TokenError(f"the root at {endpoint} does not take this token: it {USED}")
            why = connection.monitor.refusal or why_no_answer(endpoint, "its port (5570 for workers, 5572 for clients)")
            raise RootLost(f"nobody at {endpoint} takes the token: {why}")
        frames = None
        while frames is None and time.monotonic() < until:  # the root drops what it reads before its guard knows of us
            connection.socket.send_multipart(encode(Enroll(public)), zmq.NOBLOCK)
            frames = sockets.receive(connection.socket, min(until, time.monotonic() + _AGAIN_S), spin_s=0.0)
    if frames is None:
        raise RootLost(f"the root at {endpoint} has not answered the token within {wait_s:.0f} s")
    answer, _ = decode(frames, TO_HOLDER)
    if isinstance(answer, Enrolled):
        return answer.name
    if isinstance(answer, Refuse):
        raise TokenError(f"the root at {endpoint} does not take this token: {answer.reason}")
    raise ProtocolError(f"the root at {endpoint} answered the token with {type(answer).__name__}")


def _enrol(
    context: zmq.Context[zmq.Socket[bytes]],
    addresses: Sequence[str],
    invitation: Invitation,
    public: str,
    wait_s: float,
) -> tuple[str, str | TokenError]:
    """The address that answered, and the name there, or why the token is not taken."""
    token, until = Peer(invitation.keys, invitation.root), time.monotonic() + wait_s
    logger.info("joining the root at %s", " or ".join(addresses))
    while True:
        for address in addresses:
            try:
                return address, enrol(context, address, token, public)
            except TokenError as error:
                return address, error
            except RootLost as error:
                if time.monotonic() > until and address == addresses[-1]:
                    raise
                logger.info("waiting for the root: %s", error)
        time.sleep(_PAUSE_S)
