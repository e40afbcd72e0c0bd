"""Tokens: a line to paste that admits one new key to a cluster within ten minutes.

A token's secret is a CURVE secret key. Its holder connects with it, so both ends are authenticated and nothing can be
replayed; sends its own public key; and connects again with that key. The root keeps only the token's public key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import time
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from zmq.utils import z85

from dllama_zmq.errors import TokenError, TrustError
from dllama_zmq.trust.files import folder, lines_of, locked, read_private, write_private
from dllama_zmq.trust.keys import KEY_BYTES, KeyPair, Role, check_public

LIFETIME_S = 600.0
_VERSION = 1
_PREFIX = "dz"  # else a token could begin like a flag
_DIGEST_BYTES = 4
_MAX_TEXT = 4096
_MAX_TOKENS = 256
_ANY = "-"  # no name begins with it
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_Key = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Address = Annotated[str, Meta(min_length=1, max_length=256)]


class Token(Struct, frozen=True):
    """What the root knows of an unused token: what it admits, and until when.

    name: of the worker or client; empty: any free worker, or a client without a name. until: seconds of the clock
    `clock` (`clock_now`).
    """

    role: Role
    name: str
    public: str
    until: float
    clock: str

    @classmethod
    def lasting(cls, role: Role, name: str, public: str, lifetime_s: float = LIFETIME_S) -> Token:
        """A token whose lifetime begins now."""
        clock, now = clock_now()
        return cls(role, name, public, now + lifetime_s, clock)

    @property
    def left_s(self) -> float:
        """The seconds for which it can still be used; 0 if it has expired."""
        clock, now = clock_now()
        return max(0.0, self.until - now) if clock == self.clock else 0.0

    @property
    def expired(self) -> bool:
        return not self.left_s


class _Wire(Struct, frozen=True, array_like=True):
    version: int
    replies: Annotated[list[_Address], Meta(max_length=16)]
    clients: Annotated[list[_Address], Meta(max_length=16)]
    root: _Key
    secret: _Key
    role: Role
    name: Annotated[str, Meta(max_length=64)]


class Invitation(Struct, frozen=True):
    """The content of a token's text.

    replies, clients: the root's addresses for workers and for clients, best first. root: its public key. keys: the
    token's own key pair.
    """

    role: Role
    name: str
    replies: tuple[str, ...]
    clients: tuple[str, ...]
    root: str
    keys: KeyPair

    @property
    def text(self) -> str:
        """The line to paste: `dz` and base64url of 4 bytes of SHA-256 and a msgpack array."""
        wire = _Wire(
            _VERSION,
            list(self.replies),
            list(self.clients),
            z85.decode(self.root),
            z85.decode(self.keys.secret),
            self.role,
            self.name,
        )
        packed = msgspec.msgpack.encode(wire)
        return _as_text(_digest(packed) + packed)

    @classmethod
    def read(cls, text: str) -> Invitation:
        """The invitation in a pasted line. Raises TokenError if the line is damaged."""
        text = "".join(text.split())  # a terminal may have broken the line
        damaged = TokenError("this is not a whole token; paste the whole line that `dllama-zmq token` printed")
        if len(text) > _MAX_TEXT:
            raise damaged
        try:
            code = text.removeprefix(_PREFIX)
            data = base64.b64decode(code + "=" * (-len(code) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise damaged from None
        digest, packed = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if _as_text(data) != text or digest != _digest(packed):
            raise damaged
        try:
            version = msgspec.msgpack.decode(packed, type=list[msgspec.Raw])[0]
            if msgspec.msgpack.decode(version) != _VERSION:
                raise TokenError("this token is of another version of dllama-zmq; use one version on all computers")
            wire = msgspec.msgpack.decode(packed, type=_Wire)
        except (msgspec.MsgspecError, IndexError, UnicodeDecodeError):
            raise damaged from None
        root, secret = z85.encode(wire.root).decode(), z85.encode(wire.secret).decode()
        return cls(wire.role, wire.name, tuple(wire.replies), tuple(wire.clients), root, KeyPair.of_secret(secret))


def clock_now() -> tuple[str, float]:
    """The clock that tokens are timed by: its name, and its seconds, which are equal in all processes of this computer.

    On Linux it is the time since boot, which nothing sets: a Raspberry Pi does not know the date until the network
    does. Its name is that of the boot, since it restarts with the computer. Elsewhere the name is "-" and the seconds
    are since 1970.
    """
    try:
        return _BOOT_ID.read_text().strip(), time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return _ANY, time.time()


def issue(cluster: str, role: Role, name: str, lifetime_s: float = LIFETIME_S) -> KeyPair:
    """Record a new token of the cluster, and return its key pair, which is stored nowhere."""
    keys = KeyPair.new()
    path = tokens_path(cluster)
    with locked(path):
        tokens = [token for token in read_tokens(cluster) if not token.expired]
        if len(tokens) >= _MAX_TOKENS:
            raise TrustError(f"{path}: {len(tokens)} unused tokens are the limit; wait until one expires")
        write_tokens(cluster, [*tokens, Token.lasting(role, name, keys.public, lifetime_s)])
    return keys


def withdraw(cluster: str, name: str) -> list[Token]:
    """Remove and return the tokens with this name."""
    with locked(tokens_path(cluster)):
        tokens = read_tokens(cluster)
        gone = [token for token in tokens if name and token.name == name]
        if gone:
            write_tokens(cluster, [token for token in tokens if token not in gone])
    return gone


def tokens_path(cluster: str) -> Path:
    """The file of a cluster's unused tokens."""
    return folder() / "clusters" / f"{cluster}.tokens"


def read_tokens(cluster: str) -> list[Token]:
    """The tokens in the file, including expired ones. Raises TrustError."""
    path = tokens_path(cluster)
    tokens = []
    for number, words in lines_of(read_private(path) or ""):
        try:
            role, name, public, until, clock = words
            tokens.append(Token(Role(role), "" if name == _ANY else name, check_public(public), float(until), clock))
            if not math.isfinite(tokens[-1].until):
                raise ValueError
        except (ValueError, TrustError):
            raise TrustError(f"{path}:{number}: is no token; remove this line") from None
    return tokens


def write_tokens(cluster: str, tokens: list[Token]) -> None:
    """Replace the tokens in the file. The caller holds `locked`."""
    rows = (
        f"{token.role.value} {token.name or _ANY} {token.public} {token.until:.0f} {token.clock}\n" for token in tokens
    )
    write_private(tokens_path(cluster), "".join(rows))


def _as_text(data: bytes) -> str:
    return _PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_DIGEST_BYTES]
