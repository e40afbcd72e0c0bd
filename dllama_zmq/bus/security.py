"""CURVE on the sockets of the bus (RFC 26 of ZeroMQ): which endpoints have it, with whose keys, and why it fails.

Both ends are authenticated: a peer knows the public key of its root, and the root's ring has the keys of its peers
(`admission.py`). Endpoints that only this computer's own processes can reach (ipc, inproc and loopback TCP) have none
of it.
"""

from __future__ import annotations

import logging

import zmq
from msgspec import Struct
from zmq.constants import SocketOption

from dllama_zmq.bus.addresses import host_of
from dllama_zmq.bus.messages import Enroll, Enrolled, Refuse
from dllama_zmq.cluster import is_loopback
from dllama_zmq.errors import TrustError
from dllama_zmq.trust import KeyPair, Ring, Role

logger = logging.getLogger(__name__)

SEAL_BYTES = 33
"""Bytes that CURVE adds to each frame: a command's name, a nonce, flags and a MAC (RFC 26, MESSAGE)."""
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
"""The ends of a handshake after which libzmq does not connect again."""
FAILED = REFUSED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
USED = "has been used or has expired; make another one on the root's computer: dllama-zmq token"
"""Of a token that is not taken."""
_TCP = "tcp://"


class Server(Struct, frozen=True):
    """The root's end: its key pair, and the ring whose keys may connect, as what.

    admits_tokens: the key of a token may connect too, to enrol its holder's own key. everywhere: on loopback as well.
    """

    keys: KeyPair
    ring: Ring
    role: Role
    admits_tokens: bool = True
    everywhere: bool = False

    def secures(self, endpoint: str) -> bool:
        """Whether a socket bound to `endpoint` has CURVE."""
        return endpoint.startswith(_TCP) and (self.everywhere or not is_loopback(host_of(endpoint)))

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Give CURVE to the endpoints that the socket is bound to from now on."""
        socket.set(SocketOption.CURVE_SERVER, 1)
        socket.set(SocketOption.CURVE_SECRETKEY, self.keys.secret.encode())

    def admits(self, public: str) -> bool:
        """Whether a key is on the ring in this role."""
        return bool(self.ring.admits(public, self.role))

    def may_enrol(self, public: str) -> bool:
        """Whether it is the key of a token. Clients may enrol where workers do, too."""
        token = self.ring.token(public) if self.admits_tokens else None
        return token is not None and self.role in (Role.worker, token.role)


class Peer(Struct, frozen=True):
    """A worker's or a client's end: its key pair, and the public key of its root."""

    keys: KeyPair
    server: str

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Give CURVE to the endpoints that the socket connects to from now on."""
        socket.set(SocketOption.CURVE_PUBLICKEY, self.keys.public.encode())
        socket.set(SocketOption.CURVE_SECRETKEY, self.keys.secret.encode())
        socket.set(SocketOption.CURVE_SERVERKEY, self.server.encode())


def enrolled(security: Server | None, key: str, message: Enroll) -> Enrolled | Refuse:
    """The root's answer to a peer that has connected with `key`. A good token's new key is on the ring from here on."""
    token = security.ring.token(key) if security is not None and key else None
    if security is None or token is None:
        return Refuse(f"the token {USED}" if key else "this connection has no token", retry=False)
    try:
        entry = security.ring.use(token, message.public)
    except TrustError as error:
        return Refuse(str(error)[:2000], retry=False)
    logger.info("enrolled %s name=%s key=%s", entry.role.value, entry.name or "any", entry.public)
    return Enrolled(entry.name)


def why_failed(event: int, value: int, endpoint: str, peer: Peer | None) -> str:
    """What a failed handshake with the root at `endpoint` means, and what to do; empty if nothing can be said.

    event, value: as a socket monitor has them.
    """
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and peer is not None:
        return (
            f"the root at {endpoint} does not admit the key of this computer, {peer.keys.public}: list it in the "
            "cluster's file there, or make a token there (dllama-zmq token) and join with it here (--join TOKEN)"
        )
    mismatch = event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
    if mismatch and peer is None:
        return (
            f"the root at {endpoint} wants an encrypted connection, and this computer does not know its key: make a "
            "token there (dllama-zmq token) and join with it here (--join TOKEN)"
        )
    if mismatch:
        return (
            f"the program at {endpoint} is not encrypted, but this computer knows an encrypted root there: is "
            "`security: none` in that cluster's file, or is it another program?"
        )
    if peer is not None:
        return (
            f"the program at {endpoint} broke off the handshake: it is no root, or its key is not {peer.server}, which "
            "this computer knows; if the root has a new key, join with a new token"
        )
    return ""


def why_refused(error: int, secured: bool) -> str:
    """Why the root's end could not continue a handshake, in words for the root's log.

    error: as a socket monitor has it; of libzmq where the peer has left. secured: the root's end has CURVE.
    """
    if not secured:
        return "its handshake is not that of this bus, which is not encrypted at this address"
    if error == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        return "its connection is not encrypted as this cluster's are"
    if error < zmq.PROTOCOL_ERROR_ZMTP_UNSPECIFIED:
        return "it left in mid-handshake: its link broke, or it knows no key of this root, or another one"
    if error == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
        return "it looks for a root with another key"
    return "its handshake is not as it must be"
