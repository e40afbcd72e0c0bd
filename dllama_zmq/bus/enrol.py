"""Giving a root a new public key by a token: what the root answers, and what the token's holder does."""

from __future__ import annotations

import logging
import time
from contextlib import closing

import zmq

from dllama_zmq.bus import sockets
from dllama_zmq.bus.addresses import why_no_answer
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.messages import Enroll, Enrolled, Kinds, Refuse
from dllama_zmq.bus.security import Peer, Server
from dllama_zmq.errors import ProtocolError, RootLost, TokenError, TrustError

logger = logging.getLogger(__name__)

ENROL_S = 5.0
_AGAIN_S = 0.5
TO_HOLDER = Kinds(Enrolled, Refuse)
"""The root's answer to the holder of a token."""
_USED = "has been used or has expired; make another one on the root's computer: dllama-zmq token"


def enrolled(security: Server | None, key: str, message: Enroll) -> Enrolled | Refuse:
    """The root's answer to a peer that has connected with `key`. A good token's new key is on the ring from here on."""
    token = security.ring.token(key) if security is not None and key else None
    if security is None or token is None:
        return Refuse(f"the token {_USED}" if key else "this connection has no token", retry=False)
    try:
        entry = security.ring.use(token, message.public)
    except TrustError as error:
        return Refuse(str(error)[:2000], retry=False)
    logger.info("enrolled %s name=%s key=%s", entry.role.value, entry.name or "any", entry.public)
    return Enrolled(entry.name)


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
                raise TokenError(f"the root at {endpoint} does not take this token: it {_USED}")
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
