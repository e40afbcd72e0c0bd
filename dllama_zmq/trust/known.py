"""The roots that this computer knows, like `known_hosts` of ssh: one line each, `ADDRESS[,ADDRESS...] KEY [NAME]`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from dllama_zmq.errors import TrustError
from dllama_zmq.trust.files import folder, lines_of, locked, read_private, write_private
from dllama_zmq.trust.keys import check_public


class Known(Struct, frozen=True):
    """A root's public key, and the name of this computer's worker or client there. place: file and line."""

    public: str
    name: str
    place: str


def find(address: str) -> Known | None:
    """The root known at an address such as tcp://192.168.1.10:5570. Raises TrustError if the file is damaged."""
    return _read().get(_plain(address))


def remember(addresses: Sequence[str], public: str, name: str = "") -> None:
    """Record a root's addresses and key. Raises TrustError if one of the addresses is known with another key."""
    path = known_roots_path()
    with locked(path):
        known = _read()
        for address in addresses:
            other = known.get(_plain(address))
            if other is not None and other.public != public:
                raise changed(address, other)
        new = list(dict.fromkeys(map(_plain, addresses)))
        places = {known[address].place for address in new if address in known}
        new += [address for address, one in known.items() if one.place in places and address not in new]
        text = read_private(path, secret=False) or ""
        kept = [line for number, line in enumerate(text.splitlines(), 1) if f"{path}:{number}" not in places]
        row = f"{','.join(new)} {check_public(public)} {name}".rstrip()
        write_private(path, "".join(f"{line}\n" for line in [*kept, row]))


def changed(address: str, known: Known) -> TrustError:
    """The error for a root whose key differs from the known one: it may be another computer."""
    return TrustError(
        f"the root at {address} has another key than the one known at {known.place}: somebody may intercept the "
        "connection, or the root has a new key; if you know that it has, remove that line and join with a new token"
    )


def known_roots_path() -> Path:
    """The file of the roots that this computer knows."""
    return folder() / "known_roots"


def _read() -> dict[str, Known]:
    path = known_roots_path()
    found: dict[str, Known] = {}
    for number, words in lines_of(read_private(path, secret=False) or ""):
        try:
            addresses, public, *rest = words
            known = Known(check_public(public), rest[0] if rest else "", f"{path}:{number}")
        except (ValueError, TrustError):
            raise TrustError(f"{path}:{number}: is no `ADDRESS KEY [NAME]`; remove this line") from None
        for address in addresses.split(","):
            found.setdefault(_plain(address), known)
    return found


def _plain(address: str) -> str:
    """The canonical form of an endpoint: lower case, IPv6 in its shortest form (RFC 5952)."""
    text = address.lower()
    literal = re.fullmatch(r"tcp://\[([0-9a-f:.]+)\]:(\d+)", text)
    try:
        return text if literal is None else f"tcp://[{ipaddress.ip_address(literal[1])}]:{literal[2]}"
    except ValueError:
        return text
