"""CURVE key pairs as Z85 text of 40 characters (RFC 26 and RFC 32 of ZeroMQ), and this user's own pair."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import zmq
from zmq.utils import z85

from dllama_zmq.errors import TrustError
from dllama_zmq.trust.files import folder, locked, read_private, write_private

KEY_BYTES = 32


class Role(StrEnum):
    """What a key may connect as."""

    worker = "worker"
    client = "client"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public key and its secret key."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> KeyPair:
        """A random pair. Raises TrustError if libzmq has no CURVE."""
        require_curve()
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())

    @classmethod
    def of_secret(cls, secret: str) -> KeyPair:
        """The pair of a secret key. Raises TrustError if `secret` is none."""
        require_curve()
        if not _is_key(secret):
            raise TrustError("not a secret key: expected 40 characters of Z85")
        return cls(zmq.curve_public(secret.encode()).decode(), secret)


def require_curve() -> None:
    """Raise TrustError if libzmq was built without CURVE."""
    if not zmq.has("curve"):
        raise TrustError(
            f"this computer's libzmq {zmq.zmq_version()} was built without CURVE, so nothing can be encrypted; install "
            "the wheel of pyzmq: pip install --force-reinstall --only-binary :all: pyzmq"
        )


def check_public(text: str) -> str:
    """Return `text`, a public key. Raises TrustError if it is none."""
    if not _is_key(text):
        raise TrustError(f"{text[:60]!r} is no public key; expected the 40 characters that `dllama-zmq keygen` prints")
    return text


def own_key(create: bool = True) -> KeyPair:
    """This user's key pair on this computer, as root, worker and client alike; it is made if there is none yet.

    Raises TrustError if it cannot be read, if others can read it, or (not create) if there is none.
    """
    path = own_key_path()
    found = _read(path)
    if found is None and create:
        with locked(path):
            found = _read(path)
            if found is None:
                found = KeyPair.new()
                write_private(path, f"{found.secret}\n")
    if found is None:
        raise TrustError(f"{path}: there is no key yet; make one: dllama-zmq keygen")
    return found


def new_own_key() -> KeyPair:
    """Make a new key pair for this user and replace the present one."""
    path = own_key_path()
    with locked(path):
        _read(path)  # raises if the present file is not a key of this user
        keys = KeyPair.new()
        write_private(path, f"{keys.secret}\n")
    return keys


def own_key_path() -> Path:
    """The file of this user's secret key."""
    return folder() / "key"


def _read(path: Path) -> KeyPair | None:
    text = read_private(path)
    if text is None:
        return None
    try:
        return KeyPair.of_secret(text.strip())
    except TrustError as error:
        raise TrustError(f"{path}: {error}") from None


def _is_key(text: str) -> bool:
    try:
        return len(z85.decode(text.encode("ascii"))) == KEY_BYTES
    # a character that Z85 does not have, a wrong length, five characters of 2^32 or more
    except (KeyError, ValueError, struct.error):
        return False
