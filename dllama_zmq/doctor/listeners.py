"""Which process listens at a TCP port of this computer. Source: proc(5), /proc/net/tcp."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dllama_zmq.host import ROOT, read

_LISTENS = "0A"
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens: a process, or (pid 0) only its user, if the process is another user's."""

    pid: int
    name: str
    user: str

    def __str__(self) -> str:
        return f"{self.name or 'process'} (process {self.pid})" if self.pid else f"a process of user {self.user}"


def listener_at(port: int, root: Path = ROOT) -> Listener | None:
    """Who listens at the port on any address, IPv4 or IPv6; None if nobody does or the system does not say."""
    for name in ("tcp", "tcp6"):
        for line in read(root / "proc/net" / name).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                uid, inode = fields[7], fields[9]
                pid = next(_holders(inode, root), 0)
                return Listener(pid, read(root / f"proc/{pid}/comm").strip() if pid else "", _user(uid))
    return None


def is_of(pid: int, ancestor: int, root: Path = ROOT) -> bool:
    """Whether a process is `ancestor` or one of its descendants."""
    for _ in range(_MAX_DEPTH):
        if pid == ancestor:
            return True
        _, _, after_name = read(root / f"proc/{pid}/stat").rpartition(")")
        parent = after_name.split()[1:2]
        if not parent or parent[0] == "0":
            return False
        pid = int(parent[0])
    return False


def _holders(inode: str, root: Path) -> Iterator[int]:
    """The processes of this user that have the socket of that inode open."""
    for folder in (root / "proc").glob("[0-9]*"):
        with suppress(OSError):
            for name in os.listdir(folder / "fd"):
                with suppress(OSError):  # it may be closed by now
                    if os.readlink(folder / "fd" / name) == f"socket:[{inode}]":
                        yield int(folder.name)


def _user(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return uid
