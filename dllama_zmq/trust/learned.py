"""The keys that a root learned from tokens or over ssh: one line each, `ROLE NAME KEY`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from dllama_zmq.errors import TrustError
from dllama_zmq.trust.files import folder, lines_of, locked, read_private, write_private
from dllama_zmq.trust.keys import Role, check_public

_ANY = "-"  # no name begins with it


class Entry(Struct, frozen=True):
    """A key that may connect. name: of the worker or client; empty: any free worker, or a client without a name."""

    role: Role
    name: str
    public: str


def learned_path(cluster: str) -> Path:
    """The file of the keys that this cluster's root has learned."""
    return folder() / "clusters" / f"{cluster}.keys"


def read_learned(cluster: str) -> list[Entry]:
    """The entries of the file. Raises TrustError."""
    path = learned_path(cluster)
    entries = []
    for number, words in lines_of(read_private(path, secret=False) or ""):
        try:
            role, name, public = words
            entries.append(Entry(Role(role), "" if name == _ANY else name, check_public(public)))
        except (ValueError, TrustError):
            raise TrustError(f"{path}:{number}: is no `ROLE NAME KEY`; remove this line") from None
    return entries


def keep(cluster: str, entry: Entry) -> None:
    """Add a key. It replaces an earlier key of the same role and name."""
    with locked(learned_path(cluster)):
        write_learned(cluster, with_entry(read_learned(cluster), entry))


def forget(cluster: str, which: str) -> list[Entry]:
    """Remove and return the entries with this name or this public key."""
    with locked(learned_path(cluster)):
        entries = read_learned(cluster)
        gone = [entry for entry in entries if which and which in (entry.name, entry.public)]
        if gone:
            write_learned(cluster, [entry for entry in entries if entry not in gone])
    return gone


def with_entry(entries: Iterable[Entry], entry: Entry) -> list[Entry]:
    """`entries` and one more, which replaces an earlier one of the same role and name."""
    others = [
        one for one in entries if one != entry and (not entry.name or (one.role, one.name) != (entry.role, entry.name))
    ]
    return [*others, entry]


def write_learned(cluster: str, entries: Iterable[Entry]) -> None:
    """Replace the entries in the file. The caller holds `locked`."""
    rows = (f"{entry.role.value} {entry.name or _ANY} {entry.public}\n" for entry in entries)
    write_private(learned_path(cluster), "".join(rows))
