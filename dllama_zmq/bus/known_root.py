"""This computer's end of a connection to a root that it knows, or that it gets to know by a token."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import zmq

from dllama_zmq.bus.addresses import host_of, resolve
from dllama_zmq.bus.enrol import enrol
from dllama_zmq.bus.security import Peer
from dllama_zmq.cluster import is_loopback
from dllama_zmq.errors import RootLost, TokenError, TrustError
from dllama_zmq.node_config import Security
from dllama_zmq.trust import Invitation, Known, Role, find, own_key, remember
from dllama_zmq.trust.known import changed

logger = logging.getLogger(__name__)

_PAUSE_S = 2.0


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
